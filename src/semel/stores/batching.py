"""Per-event-loop batching of store commands.

Commands issued while a statement is in flight are combined into the next one, so many requests
share statements and commits; a single command is sent immediately.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from semel.core.commands import Complete, StoreUnknown

MOST: Final = 256
"""Most commands in one statement."""
MOST_BYTES: Final = 8 * 1024 * 1024
"""Most bytes of responses in one statement, unless one command has more."""

Send = Callable[[Sequence[Any]], Awaitable[list[Any]]]


class Batcher:
    """Combines commands of one kind, one statement at a time.

    `patient`: tasks that have just had a reply may issue their next command before the next
    statement is sent. Where a round trip is shorter than that takes, a statement would carry but
    two or three commands otherwise.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, send: Send, *, patient: bool = False
    ) -> None:
        self._patient = patient
        self._loop = loop
        self._send = send
        self._waiting: deque[tuple[Any, asyncio.Future[Any]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def ask(self, command: Any) -> Any:
        """Have one command carried out; return its reply or raise its error."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append((command, future))
        if self._task is None:
            self._task = self._loop.create_task(self._run())
        return await future

    async def _run(self) -> None:
        batch: list[tuple[Any, asyncio.Future[Any]]] = []
        try:
            while self._waiting:
                batch = self._next()
                await self._execute(batch)
                if self._patient:
                    await asyncio.sleep(0)
        finally:
            self._task = None
            for _, future in batch:  # cancelled with the loop
                if not future.done():
                    future.set_exception(StoreUnknown("the event loop was stopped"))

    def _next(self) -> list[tuple[Any, asyncio.Future[Any]]]:
        batch: list[tuple[Any, asyncio.Future[Any]]] = []
        size = 0
        while self._waiting and len(batch) < MOST and size < MOST_BYTES:
            command, future = self._waiting.popleft()
            if future.cancelled():
                continue
            batch.append((command, future))
            if isinstance(command, Complete):
                size += len(command.response.body or b"")
        return batch

    async def _execute(self, batch: list[tuple[Any, asyncio.Future[Any]]]) -> None:
        if not batch:
            return
        try:
            replies = await self._send([command for command, _ in batch])
        except Exception as error:  # noqa: BLE001  # each of them is told
            replies = [error] * len(batch)
        for (_, future), reply in zip(batch, replies, strict=True):
            if future.done():
                continue
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)
