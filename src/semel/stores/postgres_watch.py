"""An event loop watches a connection's socket for as long as an async handler has the connection.

psycopg has it watched anew for each answer: nine system calls under uvloop, where two are enough.
"""

from __future__ import annotations

import asyncio
import select


class Watch:
    """One socket, on the running event loop. It has to end before the socket is closed."""

    __slots__ = ("_fileno", "_loop", "_now", "_unwanted", "_waiter", "_watching", "stays")

    def __init__(self, fileno: int) -> None:
        self._fileno = fileno
        self._loop = asyncio.get_running_loop()
        self._now = select.poll()
        self._now.register(fileno, select.POLLIN)
        self._waiter: asyncio.Future[bool] | None = None
        self._watching = False
        self._unwanted = 0
        self.stays = False
        """Whether the socket is watched between answers too. Not where a thread may use it, for
        libpq closes it where it finds the server gone."""

    async def readable(self, deadline: float | None) -> bool:
        """Wait until something can be read. False: not until `deadline`, by the loop's clock.

        Raises `OSError` and `ValueError` for a socket that cannot be watched.
        """
        if self._watching:
            # libuv watches no more, and does not say so, what the server has cut (POLLERR).
            if self._now.poll(0):
                return True
        else:
            self._loop.add_reader(self._fileno, self._wake)
            self._watching = True
        self._unwanted = 0
        waiter = self._waiter = self._loop.create_future()
        timer = None if deadline is None else self._loop.call_at(deadline, self._late)
        try:
            done: bool = await waiter
            return done
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
            if not self.stays:
                self.end()

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
        """Watch no more, until somebody waits again."""
        if self._watching:
            self._watching = False
            if not self._loop.is_closed():
                self._loop.remove_reader(self._fileno)
