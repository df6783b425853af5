"""State that belongs to one event loop each: connections, pools, batchers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["PerLoop"]

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One value for each event loop, made when it is first asked for.

    `make` is given the running loop, is called under a lock, and may raise. Values of loops that
    have been closed are dropped when another is made. After a fork, make another `PerLoop`.
    """

    __slots__ = ("_lock", "_make", "_values")

    def __init__(self, make: Callable[[asyncio.AbstractEventLoop], T]) -> None:
        self._make = make
        self._values: dict[asyncio.AbstractEventLoop, T] = {}
        self._lock = threading.Lock()

    def get(self) -> T:
        """Return the running loop's value."""
        loop = asyncio.get_running_loop()
        value = self._values.get(loop)
        return value if value is not None else self._made(loop)

    def _made(self, loop: asyncio.AbstractEventLoop) -> T:
        with self._lock:
            for closed in [other for other in self._values if other.is_closed()]:
                del self._values[closed]
            value = self._values[loop] = self._make(loop)
            return value

    def pop(self) -> T | None:
        """Take the running loop's value out, if it has one."""
        with self._lock:
            return self._values.pop(asyncio.get_running_loop(), None)

    def pop_all(self) -> dict[asyncio.AbstractEventLoop, T]:
        """Take every loop's value out, to close it; from any thread."""
        with self._lock:
            values, self._values = self._values, {}
            return values
