"""Retries of work that a database has undone (deadlock, serialization failure), with jitter."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

__all__ = ["CommandRetry"]

RETRIES: Final = 3
"""Retries of one piece of work before its error is raised."""
PAUSE: Final = 0.02
"""Longest seconds before the first retry; each that follows may take twice as long."""

R = TypeVar("R")


class CommandRetry:
    """Runs work again, `limit` times at most, while `again` says of its error that it may be.

    `again` is called with each error but that of the last attempt and may have a side effect (the
    work may have to be another the next time). Any other error is raised as it is. `pause`: the
    longest seconds before the first retry, doubled for each one after it; 0 retries at once.
    """

    __slots__ = ("_again", "_limit", "_pause")

    def __init__(
        self, again: Callable[[Exception], bool], *, limit: int = RETRIES, pause: float = PAUSE
    ) -> None:
        self._again = again
        self._limit = limit
        self._pause = pause

    def run(self, work: Callable[[], R]) -> R:
        """Return what `work` returns; sleep on this thread between attempts."""
        for attempt in range(self._limit):
            try:
                return work()
            except Exception as error:
                if not self._again(error):
                    raise
            time.sleep(self._jittered(attempt))
        return work()

    async def arun(self, work: Callable[[], Awaitable[R]]) -> R:
        """As `run`, without blocking the event loop."""
        for attempt in range(self._limit):
            try:
                return await work()
            except Exception as error:
                if not self._again(error):
                    raise
            await asyncio.sleep(self._jittered(attempt))
        return await work()

    def _jittered(self, attempt: int) -> float:
        # jitter; not security-sensitive
        return random.uniform(self._pause / 10, self._pause) * (1 << attempt)
