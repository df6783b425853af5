"""Connections to PostgreSQL: bounded in time, safe to hand to a handler, and what errors mean."""

from __future__ import annotations

import time
from typing import Any, Final, NoReturn

import psycopg
from psycopg import pq

from semel.core.commands import StoreError, StoreUnavailable, StoreUnknown
from semel.stores.postgres_messages import Message, R, Talk, converse, say

POLL: Final = 0.1
"""Seconds between looks at the clock while an answer is awaited."""
KEEPALIVE: Final[dict[str, Any]] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""A peer that is gone without a word is noticed within half a minute."""


class TooLate(psycopg.OperationalError):
    """The server has not answered in time."""


def _bounded(talk: Talk[R], limit: float) -> Talk[R]:
    """Carry a conversation on until `limit`, by the monotonic clock."""
    wanted = next(talk)
    while True:
        ready = yield wanted
        if not ready and time.monotonic() > limit:
            raise TooLate("the server has not answered in time")
        try:
            wanted = talk.send(ready)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


class Connection(psycopg.Connection[Any]):
    """What `op.connection()` gives a plain handler: psycopg's connection, in the transaction.

    What is written commits with the key's record, or not at all. `commit()` does nothing; the
    commit comes with the answer. `with connection.transaction():` is a savepoint.
    """

    limit: float | None = None
    """Seconds that the server has for an answer; None leaves it to the handler."""
    born = 0.0
    """When it was made, by the monotonic clock."""
    prepared: set[bytes] | None = None
    """What is prepared on it; None: a pooler may be at the other end, and not the server."""

    def wait(self, gen: Talk[R], interval: float = POLL, timeout: float | None = None) -> R:
        """Carry a conversation out, within the limit."""
        if self.limit is None:
            return super().wait(gen, interval)
        return super().wait(_bounded(gen, time.monotonic() + self.limit), POLL)

    def send(self, message: Message) -> list[pq.abc.PGresult]:
        """Send several statements in one message; return their results."""
        with self.lock:
            return self.wait(converse(self.pgconn, message, self.prepared))

    def say(self, query: bytes) -> list[pq.abc.PGresult]:
        """Send one statement without values."""
        with self.lock:
            return self.wait(say(self.pgconn, query))

    def commit(self) -> None:
        """Do nothing: the commit comes with the answer, together with the key's record."""

    def rollback(self) -> NoReturn:
        """Refuse: raise an error in the handler, and all is rolled back."""
        raise psycopg.ProgrammingError(_NO_ROLLBACK)


class AsyncConnection(psycopg.AsyncConnection[Any]):
    """What `op.connection()` gives an async handler: as `Connection`, awaitable."""

    limit: float | None = None
    born = 0.0
    prepared: set[bytes] | None = None

    async def wait(self, gen: Talk[R], interval: float = POLL, timeout: float | None = None) -> R:
        """Carry a conversation out, within the limit."""
        if self.limit is None:
            return await super().wait(gen, interval)
        return await super().wait(_bounded(gen, time.monotonic() + self.limit), POLL)

    async def send(self, message: Message) -> list[pq.abc.PGresult]:
        """Send several statements in one message; return their results."""
        async with self.lock:
            return await self.wait(converse(self.pgconn, message, self.prepared))

    async def say(self, query: bytes) -> list[pq.abc.PGresult]:
        """Send one statement without values."""
        async with self.lock:
            return await self.wait(say(self.pgconn, query))

    async def commit(self) -> None:
        """Do nothing: the commit comes with the answer, together with the key's record."""

    async def rollback(self) -> NoReturn:
        """Refuse: raise an error in the handler, and all is rolled back."""
        raise psycopg.ProgrammingError(_NO_ROLLBACK)


class Borrowed(Connection):
    """An event loop's connection, for a plain handler that runs on a thread beside the loop."""

    def __init__(self, lender: AsyncConnection) -> None:
        super().__init__(lender.pgconn)
        # Each handler's is a new one on the same session, and would count its names from 0 again.
        self.prepare_threshold = None

    def __del__(self, _warn: Any = None) -> None:
        """It is the lender's to close."""


_NO_ROLLBACK = (
    "the transaction belongs to the operation: raise an error to roll all of it back, or use"
    " `with connection.transaction():` for a part"
)


NOT_DONE: Final = frozenset(
    {
        "08001",  # the connection was never made
        "08004",
        "08006",
        "25006",  # read only: a standby
        "25P02",  # the transaction had failed before
        "25P03",  # idle for too long: rolled back
        "40001",
        "40P01",
        "53000",
        "53100",
        "53200",
        "53300",
        "55000",
        "55P03",
        "57014",  # cancelled
        "57P03",
    }
)
AGAIN: Final = frozenset({"40001", "40P01", "55P03"})
"""A whole command that ended so may be given again."""


def translate(error: BaseException, *, sent: bool = True) -> StoreError:
    """Say what an error means for what was asked: not done, or not known.

    An error that the server itself reports has undone the statement, but for those that end the
    connection: their statement may have been done. `sent`: something had been sent that changes.
    """
    if isinstance(error, StoreError):
        return error
    text = f"PostgreSQL: {type(error).__name__}: {str(error).strip()}"
    state = getattr(error, "sqlstate", None)
    reported = state is not None and not state.startswith(("57P", "08"))
    if not sent or reported or state in NOT_DONE:
        return StoreUnavailable(text)
    return StoreUnknown(text)


def fenced(error: psycopg.Error | None) -> bool:
    """Whether the server refused a completion because the claim is another's."""
    return error is not None and (
        error.sqlstate == "SM001"
        or (error.sqlstate == "23505" and error.diag.table_name == "semel_record")
    )
