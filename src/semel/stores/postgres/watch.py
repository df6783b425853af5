"""Watching of a connection's socket by the event loop, for as long as an async handler has it.

psycopg has it watched anew for each reply: nine system calls under uvloop, where two are enough.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import select
from typing import Final

BUSY: Final = 0.005
"""Seconds for which one statement may keep the event loop from everything else, as in psycopg: a
reply that comes as fast as it is read never has to be waited for."""
_END_TIMEOUT: Final = 10.0
"""Seconds that a thread gives the loop to end a watch."""


class Watch:
    """One socket, on the running event loop. It has to end before the socket is closed."""

    __slots__ = (
        "_busy_until",
        "_fileno",
        "_loop",
        "_now",
        "_unwanted",
        "_waiter",
        "_watching",
        "stays",
    )

    def __init__(self, fileno: int) -> None:
        self._fileno = fileno
        self._loop = asyncio.get_running_loop()
        self._now = select.poll()
        self._now.register(fileno, select.POLLIN)
        self._waiter: asyncio.Future[bool] | None = None
        self._watching = False
        self._unwanted = 0
        self._busy_until = 0.0
        self.stays = False
        """Whether the socket is watched between replies too. Not where a thread may use it, for
        libpq closes it where it finds the server gone."""

    async def readable(self, deadline: float | None) -> bool:
        """Wait until something can be read. False: not until `deadline`, by the loop's clock.

        Raises `OSError` and `ValueError` for a socket that cannot be watched.
        """
        if self._watching:
            # libuv watches no more, and does not say so, what the server has cut (POLLERR).
            if self._now.poll(0):
                return await self._shared(deadline)
        else:
            self._loop.add_reader(self._fileno, self._wake)
            self._watching = True
        self._unwanted = 0
        waiter = self._waiter = self._loop.create_future()
        timer = None if deadline is None else self._loop.call_at(deadline, self._late)
        try:
            done: bool = await waiter
            self._busy_until = self._loop.time() + BUSY
            return done
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
            if not self.stays:
                self.end()

    async def _shared(self, deadline: float | None) -> bool:
        """Let others have the loop, if they have not for long. False: `deadline` is over."""
        now = self._loop.time()
        if now >= self._busy_until:
            await asyncio.sleep(0)
            self._unwanted = 0
            self._busy_until = self._loop.time() + BUSY
        return deadline is None or now < deadline

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)
            return
        self._unwanted += 1
        if self._unwanted > 1:  # once it may come before its task has read what is there
            self.end()

    def _late(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(False)

    def end(self) -> None:
        """Watch no more, until somebody waits again. Who waits now finds what has happened."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)
        if self._watching:
            self._watching = False
            # `RuntimeError`: the socket was closed after all, and its number is another's.
            with contextlib.suppress(RuntimeError, OSError):
                if not self._loop.is_closed():
                    self._loop.remove_reader(self._fileno)

    def end_from_any_thread(self) -> None:
        """As `end`; from another thread than the loop's, wait until the loop has done it."""
        if not self._watching or self._loop.is_closed():
            return
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is self._loop:
            self.end()
            return
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def end() -> None:
            self.end()
            done.set_result(None)

        self._loop.call_soon_threadsafe(end)
        done.result(_END_TIMEOUT)
