"""Writes of one event loop: those of one tick go to the writer together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from semel.core.commands import Reply, StoreCommand, StoreError, StoreUnavailable
from semel.stores.sqlite.batches import PendingCommand
from semel.stores.sqlite.writer import TOO_LONG, Job, Writer, WriterClosed

_JOINED = 0.1
"""The part of `timeout` for which later writes join a batch: they are refused when it is."""


class LoopWrites:
    """Collects the commands of each tick of an event loop into a job of the writer."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, opened: Callable[[], Writer], timeout: float
    ) -> None:
        self._loop = loop
        self._opened = opened
        self._timeout = timeout
        self._waiting: list[_WaitingCommand] = []
        self._queued: _TickJob | None = None

    async def ask(self, command: StoreCommand) -> Reply:
        """Have a write carried out; return its reply. Raises `StoreError`."""
        pending = _WaitingCommand(command, self._loop.create_future())
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(pending)
        await pending.future
        return pending.result()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if self._queued is not None and self._queued.extend(waiting):
            return
        job = _TickJob(self._loop, waiting, self._timeout * _JOINED)
        try:
            while True:
                writer = self._opened()
                with contextlib.suppress(WriterClosed):
                    if len(job.waiting) > 1 or not writer.try_alone(job, may_block=False):
                        job.writer = writer
                        writer.submit(job)
                        self._queued = job
                        job.timer = self._loop.call_later(self._timeout, self._recall, writer, job)
                    return
        except StoreError as error:
            job.done(error)

    def _recall(self, writer: Writer, job: _TickJob) -> None:
        if writer.recall(job):
            job.done(StoreUnavailable(TOO_LONG.format(self._timeout)))


class _WaitingCommand(PendingCommand):
    """A command that a task of the event loop awaits."""

    __slots__ = ("future",)

    def __init__(self, command: StoreCommand, future: asyncio.Future[None]) -> None:
        super().__init__(command)
        self.future = future


class _TickJob(Job):
    """The commands of one tick of an event loop, and of the next ones while it is queued."""

    __slots__ = ("loop", "timer", "until", "waiting", "writer")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, waiting: list[_WaitingCommand], joined: float
    ) -> None:
        super().__init__(waiting, self._done)
        self.loop = loop
        self.until = loop.time() + joined
        self.waiting = waiting
        self.timer: asyncio.TimerHandle | None = None
        self.writer: Writer | None = None

    def extend(self, waiting: list[_WaitingCommand]) -> bool:
        """Take more along. False: it is too late."""
        return (
            self.writer is not None
            and self.loop.time() < self.until
            and self.writer.extend(self, waiting)
        )

    def _done(self, error: StoreError | None) -> None:
        if error is not None:
            for each in self.waiting:
                each.error = error
        self.loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        for each in self.waiting:
            if not each.future.done():
                each.future.set_result(None)
        self.waiting.clear()  # the last job is kept: not its replies too
