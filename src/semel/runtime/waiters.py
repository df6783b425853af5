"""Repeats that wait, in this process, for the first request to end."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable

from semel.after_fork import call_after_fork
from semel.core.commands import Wait
from semel.runtime import servers


class _WaitingThreads:
    """The server's threads that wait, of all services in this process: they share them."""

    def __init__(self) -> None:
        self._begin()
        call_after_fork(self._begin)

    def _begin(self) -> None:
        self._waiting = 0
        self._lock = threading.Lock()

    def enter(self, most: float) -> bool:
        """Count the calling thread in. False: `most` wait already."""
        with self._lock:
            if self._waiting >= most:
                return False
            self._waiting += 1
            return True

    def leave(self) -> None:
        """Count the calling thread out."""
        with self._lock:
            self._waiting -= 1


class Waiters:
    """The keys of operations that run in this process, and the repeats to wake when each ends.

    A repeat that arrives in another process cannot be woken and polls; see `engine.FIRST_POLL`.
    `max_threads`: how many of a server's threads may wait; None: half of them.
    """

    def __init__(self, max_threads: int | None = None) -> None:
        self._max_threads = max_threads
        self._running: dict[bytes, list[Callable[[], None]]] = {}
        self._waiting: dict[bytes, int] = {}
        self._lock = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether an operation runs in this process."""
        return bool(self._running)

    def running(self, key: bytes) -> None:
        """Note that an operation of this key runs in this process."""
        self._running.setdefault(key, [])

    def ended(self, key: bytes) -> None:
        """Wake all that wait for this key."""
        with self._lock:
            wake = self._running.pop(key, ())
        for call in wake:
            try:
                call()
            except RuntimeError:  # its event loop is closed, and its client gone
                continue

    def when_ended(self, key: bytes, call: Callable[[], None]) -> None:
        """Have `call` called, once, when the operation of this key that runs here has ended."""
        with self._lock:
            queue = self._running.get(key)
            if queue is not None:
                queue.append(call)
                return
        call()

    def _enter(self, command: Wait, wake: Callable[[], None]) -> float | None:
        """Queue up. Returns how long to wait at most, or None where the queue is full."""
        with self._lock:
            waiting = self._waiting.get(command.key, 0)
            if waiting >= command.most:
                return None
            self._waiting[command.key] = waiting + 1
            queue = self._running.get(command.key)
            if queue is not None:
                queue.append(wake)
                return min(command.limit, 1.0)
        return command.poll * random.uniform(0.75, 1.25)  # jitter; not security-sensitive

    def _leave(self, key: bytes, wake: Callable[[], None]) -> None:
        with self._lock:
            left = self._waiting[key] - 1
            if left:
                self._waiting[key] = left
            else:
                del self._waiting[key]
            queue = self._running.get(key)
            if queue is not None and wake in queue:
                queue.remove(wake)

    async def await_end(self, command: Wait) -> float | None:
        """Carry out a `Wait` on an event loop."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            loop.call_soon_threadsafe(settle)

        def settle() -> None:
            if not woken.done():
                woken.set_result(None)

        longest = self._enter(command, wake)
        if longest is None:
            return None
        started = time.monotonic()
        try:
            await asyncio.wait([woken], timeout=longest)
        finally:
            self._leave(command.key, wake)
        return time.monotonic() - started

    def wait_on_server_thread(self, command: Wait) -> float | None:
        """Carry out a `Wait` on a thread of a server, which needs some to serve other requests."""
        if not _WAITING.enter(self._most_threads(command.key)):
            return None
        try:
            return self.wait_end(command)
        finally:
            _WAITING.leave()

    def _most_threads(self, key: bytes) -> float:
        """How many of the server's threads may wait.

        Half of them: none where there is one only, unless the operation runs beside it, so that
        there must be another that cannot be seen.
        """
        if self._max_threads is not None:
            return self._max_threads
        return max(servers.count_threads() // 2, key in self._running)

    def wait_end(self, command: Wait) -> float | None:
        """Carry out a `Wait` on a thread."""
        woken = threading.Event()
        wake = woken.set
        longest = self._enter(command, wake)
        if longest is None:
            return None
        started = time.monotonic()
        try:
            woken.wait(longest)
        finally:
            self._leave(command.key, wake)
        return time.monotonic() - started


_WAITING = _WaitingThreads()
