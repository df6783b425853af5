"""Connections to PostgreSQL, bounded in time and safe to hand to a handler; meaning of errors."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final, NoReturn, TypeVar

import psycopg
from psycopg import pq
from psycopg.waiting import Ready, Wait

from semel.core.commands import StoreError, StoreUnavailable, StoreUnknown
from semel.stores.base import StoreSetupError
from semel.stores.postgres.messages import Message, R, Talk, converse, say
from semel.stores.postgres.watch import Watch

POLL: Final = 0.1
"""Seconds between looks at the clock while a reply is awaited."""
_STOPPING: Final = 5.0
"""Seconds that the server has to stop a statement."""
KEEPALIVE: Final[dict[str, Any]] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""A peer that is gone without a word is noticed within half a minute."""


class TooLate(psycopg.OperationalError):
    """The server has not answered in time."""

    def __init__(self) -> None:
        super().__init__("the server has not answered in time")


def _bounded(talk: Talk[R], wanted: Any, limit: float | None) -> Talk[R]:
    """Carry a conversation on that waits for `wanted`, until `limit` by the monotonic clock."""
    while True:
        ready = yield wanted
        if not ready and limit is not None and time.monotonic() > limit:
            raise TooLate
        try:
            wanted = talk.send(ready)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


C = TypeVar("C", "PostgreSQLConnection", "AsyncPostgreSQLConnection")


class PostgreSQLConnection(psycopg.Connection[Any]):
    """The connection of a plain handler (`op.connection()`): psycopg's own, in the transaction.

    What is written commits with the key's record, or not at all. `commit()` does nothing; the
    commit comes with the response. `with connection.transaction():` is a savepoint.
    """

    limit: float | None = None
    """Seconds that the server has for a reply; None leaves it to the handler."""
    born = 0.0
    """When it was made, by the monotonic clock."""
    prepared: set[bytes] | None = None
    """Names of statements prepared on it; None: a pooler may be between it and the server."""

    def wait(self, gen: Talk[R], interval: float = POLL, timeout: float | None = None) -> R:
        """Carry a conversation out, within the limit."""
        if self.limit is None:
            return super().wait(gen, interval)
        limit = time.monotonic() + self.limit
        try:
            wanted = next(gen)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        return super().wait(_bounded(gen, wanted, limit), POLL)

    def finish(self) -> None:
        """End the connection, whatever it is in the middle of."""
        self.pgconn.finish()

    def send(self, message: Message) -> list[pq.abc.PGresult]:
        """Send several statements in one message; return their results."""
        with self.lock:
            return self.wait(converse(self.pgconn, message, self.prepared))

    def say(self, query: bytes) -> list[pq.abc.PGresult]:
        """Send one statement without values."""
        with self.lock:
            return self.wait(say(self.pgconn, query))

    def undo(self) -> None:
        """Roll back as psycopg does, which then forgets what it has prepared: a table may have been
        altered, and what was prepared before would fail for ever."""
        with self.lock:
            self.wait(self._rollback_gen())

    def _deallocate(self, name: bytes | None) -> Talk[None]:
        if name is None and self.prepared:  # psycopg says DEALLOCATE ALL: ours is gone with its own
            self.prepared.clear()
        return super()._deallocate(name)

    def commit(self) -> None:
        """Do nothing: the commit comes with the response, together with the key's record."""

    def rollback(self) -> NoReturn:
        """Refuse: raise an error in the handler, and all is rolled back."""
        raise psycopg.ProgrammingError(_NO_ROLLBACK)


class AsyncPostgreSQLConnection(psycopg.AsyncConnection[Any]):
    """The connection of an async handler: as `PostgreSQLConnection`, awaitable."""

    limit: float | None = None
    born = 0.0
    prepared: set[bytes] | None = None
    _watch: Watch | None = None

    async def wait(self, gen: Talk[R], interval: float = POLL, timeout: float | None = None) -> R:
        """Carry a conversation out, within the limit."""
        try:
            wanted = next(gen)
            if wanted == Wait.R and timeout is None:
                deadline = None
                if self.limit is not None:
                    deadline = asyncio.get_running_loop().time() + self.limit
                while wanted == Wait.R:
                    await self._readable(deadline)
                    wanted = gen.send(Ready.R)
        except StopIteration as end:
            if self.pgconn.status != pq.ConnStatus.OK:
                self.unwatch()  # libpq has closed its socket
            return end.value  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            await self._interrupt(gen)
            raise
        except BaseException:
            self.unwatch()
            raise
        self.unwatch()  # there is more to send than fits: psycopg's own way
        limit = None if self.limit is None else time.monotonic() + self.limit
        rest = _bounded(gen, wanted, limit)
        if timeout is None:
            return await super().wait(rest, POLL)
        return await super().wait(rest, interval, timeout)

    async def _readable(self, deadline: float | None) -> None:
        try:
            watch = self._watch = self._watch or Watch(self.pgconn.socket)
            if await watch.readable(deadline):
                return
        except (OSError, ValueError) as error:
            raise psycopg.OperationalError(f"the socket was closed: {error}") from error
        raise TooLate

    async def _interrupt(self, gen: Talk[Any]) -> None:
        """Have the server stop what it does for a task that is cancelled, as psycopg would."""
        self.unwatch()
        if self.pgconn.transaction_status != pq.TransactionStatus.ACTIVE:
            return
        try:
            async with asyncio.timeout(_STOPPING):
                await self.cancel_safe(timeout=_STOPPING)
                await psycopg.waiting.wait_async(gen, self.pgconn.socket, POLL)
        except psycopg.errors.QueryCanceled:
            pass
        except BaseException as error:
            self.pgconn.finish()
            if not isinstance(error, Exception):
                raise

    def watch(self) -> None:
        """Have the event loop watch the socket until `unwatch`: one handler on it has it."""
        self._watch = self._watch or Watch(self.pgconn.socket)
        self._watch.stays = True

    def unwatch(self) -> None:
        """Have the event loop watch the socket no more: before it is closed, or in other hands."""
        if self._watch is not None:
            self._watch.stays = False
            self._watch.end()

    def unwatch_for_thread(self) -> None:
        """As `unwatch`, before a thread may close the socket: wherever this is called."""
        if self._watch is not None:
            self._watch.stays = False
            self._watch.end_from_any_thread()

    def finish(self) -> None:
        """End the connection, whatever it is in the middle of."""
        self.unwatch()
        self.pgconn.finish()

    async def close(self) -> None:
        """End the connection: the operation is undone."""
        self.unwatch()
        await super().close()

    async def send(self, message: Message) -> list[pq.abc.PGresult]:
        """Send several statements in one message; return their results."""
        async with self.lock:
            return await self.wait(converse(self.pgconn, message, self.prepared))

    async def say(self, query: bytes) -> list[pq.abc.PGresult]:
        """Send one statement without values."""
        async with self.lock:
            return await self.wait(say(self.pgconn, query))

    async def undo(self) -> None:
        """As `PostgreSQLConnection.undo`."""
        async with self.lock:
            await self.wait(self._rollback_gen())

    def _deallocate(self, name: bytes | None) -> Talk[None]:
        if name is None and self.prepared:
            self.prepared.clear()
        return super()._deallocate(name)

    async def commit(self) -> None:
        """Do nothing: the commit comes with the response, together with the key's record."""

    async def rollback(self) -> NoReturn:
        """Refuse: raise an error in the handler, and all is rolled back."""
        raise psycopg.ProgrammingError(_NO_ROLLBACK)


class Connector:
    """Makes connections: `timeout` and `idle` in seconds, see `PostgreSQLStore`.

    Raises `StoreSetupError` for an `idle` that the server would not take.
    """

    def __init__(self, url: str, timeout: float, idle: float) -> None:
        if not 0 <= idle <= _MOST_IDLE:
            raise StoreSetupError(
                f"idle_in_transaction: give seconds, 0 (no bound) to {_MOST_IDLE}, not {idle!r}"
            )
        self._url = url
        self._timeout = timeout
        self._idle = idle

    def connect(self, *, prepares: bool = False) -> PostgreSQLConnection:
        """Connect. `prepares`: what handlers say often is prepared, as psycopg does by default."""
        connection: PostgreSQLConnection = PostgreSQLConnection.connect(
            self._url, **self._parameters
        )
        connection.limit = self._timeout
        try:
            cursor = connection.execute(_BOUND, self._bound(connection))
            return self._known(connection, cursor.fetchone(), prepares)
        except BaseException:
            connection.finish()
            raise

    async def aconnect(self, *, prepares: bool = False) -> AsyncPostgreSQLConnection:
        """As `connect`, without blocking the event loop."""
        connection: AsyncPostgreSQLConnection = await AsyncPostgreSQLConnection.connect(
            self._url, **self._parameters
        )
        connection.limit = self._timeout
        try:
            cursor = await connection.execute(_BOUND, self._bound(connection))
            return self._known(connection, await cursor.fetchone(), prepares)
        except BaseException:
            connection.finish()
            raise

    @property
    def _parameters(self) -> dict[str, Any]:
        return {
            "autocommit": True,
            "prepare_threshold": None,
            "connect_timeout": max(1, int(self._timeout)),
            **KEEPALIVE,
        }

    def _bound(
        self, connection: PostgreSQLConnection | AsyncPostgreSQLConnection
    ) -> dict[str, object]:
        milliseconds = str(int(self._idle * 1000))
        return {"process": connection.info.backend_pid, "idle": milliseconds}

    @staticmethod
    def _known(connection: C, row: Any, prepares: bool) -> C:
        (bounded,) = row
        if bounded is not None:
            connection.prepared = set()
            if prepares:
                connection.prepare_threshold = _THRESHOLD
        return connection


_MOST_IDLE: Final = 2_147_483
_THRESHOLD: Final = 5
"""psycopg's default: how often a statement is said before it is prepared."""
_BOUND: Final = (
    # A pooler in between gives out process numbers of its own. Its sessions are others' too, so
    # that nothing may be set on them, and it may know no prepared statements.
    "select case when pg_backend_pid() = %(process)s then"
    " set_config('idle_in_transaction_session_timeout', %(idle)s, false) end"
)


class Borrowed(PostgreSQLConnection):
    """An event loop's connection, for a plain handler that runs on a thread beside the loop."""

    def __init__(self, lender: AsyncPostgreSQLConnection) -> None:
        super().__init__(lender.pgconn)
        # On one session: neither may use a name of the other's, nor what the other has deallocated.
        self._prepared = lender._prepared
        self.prepared = lender.prepared

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
    """Map a psycopg error to StoreUnavailable (certainly not executed) or StoreUnknown (it may be).

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
