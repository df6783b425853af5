"""Connections to PostgreSQL, bounded in time and safe to hand to a handler; meaning of errors."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final, Self, TypeVar

import psycopg
from psycopg import pq
from psycopg.waiting import Ready, Wait

from semel.core.commands import StoreError, StoreUnavailable, StoreUnknown
from semel.stores.base import StoreSetupError
from semel.stores.postgres.lent import Lent
from semel.stores.postgres.messages import Message, R, Talk, converse
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


class PostgreSQLConnection(Lent, psycopg.Connection[Any]):
    """The connection of a plain handler (`op.connection()`): psycopg's own, in the transaction.

    What is written commits with the key's record, or not at all. `commit()` and `close()` do
    nothing: the commit comes with the response. `rollback()` undoes what was written since the
    operation began, which goes on. `with connection.transaction():` is a savepoint. After the end
    of the operation all that is asked of it raises `psycopg.ProgrammingError`.
    """

    def wait(self, gen: Talk[R], interval: float = POLL, timeout: float | None = None) -> R:
        """Carry a conversation of the handler's out."""
        self.require_operation(gen)
        if self.limit is None or timeout is not None:
            return super().wait(gen, interval, timeout)
        return self._carry(gen)

    def _carry(self, gen: Talk[R]) -> R:
        """Carry a conversation out, within the limit."""
        if self.limit is None:
            return super().wait(gen, POLL)
        limit = time.monotonic() + self.limit
        try:
            wanted = next(gen)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        return super().wait(_bounded(gen, wanted, limit), POLL)

    def finish(self) -> None:
        """End the connection, unless a thread is using it, which then has it to the end."""
        if not self.busy:
            self.pgconn.finish()

    def send(self, message: Message) -> list[pq.abc.PGresult]:
        """Send several statements in one message; return their results."""
        with self.lock:
            return self._carry(converse(self.pgconn, message, self.prepared))

    def undo(self) -> None:
        """Roll back, and make the session what it was."""
        with self.lock:
            self._carry(self._undo())

    def interrupt(self) -> bool:
        """Have the server stop what a thread of the handler's still does. False: it goes on."""
        self.cancel_safe(timeout=_STOPPING)
        ended: bool = self.lock.acquire(timeout=_STOPPING)
        if ended:
            self.lock.release()
        return ended

    def commit(self) -> None:
        """Do nothing: the commit comes with the response, together with the key's record."""

    def rollback(self) -> None:
        """Undo what was written since the operation began; it goes on, and may complete."""
        with self.lock:
            self.wait(self._begin_anew())

    def close(self) -> None:
        """Do nothing: the connection is the operation's, and goes back with its end."""


class AsyncPostgreSQLConnection(Lent, psycopg.AsyncConnection[Any]):
    """The connection of an async handler: as `PostgreSQLConnection`, awaitable."""

    borrowed: Borrowed | None = None
    """As a thread beside the event loop has it."""
    _watch: Watch | None = None

    async def wait(self, gen: Talk[R], interval: float = POLL, timeout: float | None = None) -> R:
        """Carry a conversation of the handler's out."""
        self.require_operation(gen)
        return await self._carry(gen, interval, timeout)

    async def _carry(self, gen: Talk[R], interval: float = POLL, timeout: float | None = None) -> R:
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
        """End the connection, unless a thread is using it, which then has it to the end."""
        self.unwatch()
        if self.borrowed is None or not self.borrowed.busy:
            self.pgconn.finish()

    async def send(self, message: Message) -> list[pq.abc.PGresult]:
        """Send several statements in one message; return their results."""
        async with self.lock:
            return await self._carry(converse(self.pgconn, message, self.prepared))

    async def undo(self) -> None:
        """As `PostgreSQLConnection.undo`."""
        async with self.lock:
            await self._carry(self._undo())

    @property
    def busy(self) -> bool:
        """Whether a statement is under way, here or on a thread, or waits to be."""
        return self.lock.locked() or (self.borrowed is not None and self.borrowed.busy)

    async def interrupt(self) -> None:
        """Have the server stop what the handler's tasks and threads still do."""
        if self.pgconn.transaction_status != pq.TransactionStatus.ACTIVE:
            self.finish()  # somebody waits for notifications, and would for ever
            return
        await self.cancel_safe(timeout=_STOPPING)
        if self.borrowed is not None and self.borrowed.busy:
            await asyncio.to_thread(self.borrowed.interrupt)
        try:
            async with asyncio.timeout(_STOPPING), self.lock:
                pass
        except TimeoutError:
            self.finish()

    def for_the_next(self) -> Self:
        """As `Lent.for_the_next`; what a thread has refuses to work too."""
        borrowed, self.borrowed = self.borrowed, None
        if borrowed is not None and not borrowed.end():
            self.over = True
            return type(self)(pq.PGconn())  # whoever uses the session has it to the end
        return super().for_the_next()

    async def commit(self) -> None:
        """Do nothing: the commit comes with the response, together with the key's record."""

    async def rollback(self) -> None:
        """Undo what was written since the operation began; it goes on, and may complete."""
        async with self.lock:
            await self.wait(self._begin_anew())

    async def close(self) -> None:
        """Do nothing: the connection is the operation's, and goes back with its end."""


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
            connection.bound = bounded.encode()
            if prepares:
                connection.threshold = _THRESHOLD
        connection._prepared.for_the_next(connection.threshold)
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
        self._autocommit = True
        # On one session: neither may use a name of the other's, nor what the other has deallocated.
        self._prepared = lender._prepared
        self.prepared = lender.prepared
        self.bound, self.beginning = lender.bound, lender.beginning
        self.handed = True

    def end(self) -> bool:
        """Refuse to work from now on. False: a statement is still under way."""
        self.over = True
        if self.busy:
            return False
        self.pgconn = pq.PGconn()
        return True

    def __del__(self, _warn: Any = None) -> None:
        """It is the lender's to close."""


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
