"""Virtual time: a heap of events, and server processes that crash, stand still and drift."""

from __future__ import annotations

import heapq
from collections.abc import Generator

Process = Generator[float, None, None]
"""Yields the seconds that it waits for."""


class ServerProcess:
    """A server: what runs on it dies with it, and stands still with it."""

    __slots__ = ("epoch", "name", "pace", "paused_until")

    def __init__(self, name: str, pace: float = 1.0) -> None:
        self.name = name
        self.epoch = 0
        self.paused_until = 0.0
        self.pace = pace
        """Real seconds in one second of its own monotonic clock."""


class Scheduler:
    """Runs processes in virtual time, in an order that depends on nothing but what they yield."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sequence = 0
        self._events: list[tuple[float, int, Process, ServerProcess | None, int]] = []

    def spawn(
        self, process: Process, server: ServerProcess | None = None, delay: float = 0.0
    ) -> None:
        """Start a process, on a server or beside them all."""
        self._sequence += 1
        epoch = server.epoch if server is not None else 0
        heapq.heappush(self._events, (self.now + delay, self._sequence, process, server, epoch))

    def run(self) -> None:
        """Run until nothing is left to happen."""
        events = self._events
        while events:
            when, _, process, server, epoch = heapq.heappop(events)
            if server is not None:
                if server.epoch != epoch:
                    continue  # its server has died
                if server.paused_until > when:
                    self._sequence += 1
                    heapq.heappush(
                        events, (server.paused_until, self._sequence, process, server, epoch)
                    )
                    continue
            self.now = when
            try:
                delay = next(process)
            except StopIteration:
                continue
            if server is not None:
                delay *= server.pace
            self._sequence += 1
            heapq.heappush(events, (when + delay, self._sequence, process, server, epoch))
