"""The business transaction: the handler's session, whose real commit carries the record."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from sqlalchemy import exc
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from semel.core.commands import Complete
from semel.failpoints import failpoint
from semel.stores.base import StoreSetupError
from semel.stores.effects import Effect
from semel.stores.sqlalchemy.connection import begin_immediate, put_back
from semel.stores.sqlalchemy.errors import translate
from semel.stores.sqlalchemy.handed import (
    BUSY,
    ENDED,
    OVER,
    OperationAsyncConnection,
    OperationConnection,
)

log = logging.getLogger("semel")

C = TypeVar("C", OperationConnection, OperationAsyncConnection)
Write = Callable[[Connection, Complete], bool]

COMMIT_LIMIT: Final = 30.0
"""Seconds that an async engine's server has for a commit before its outcome is called unknown."""
_JOINED: Final[dict[str, Any]] = {"binds": None, "join_transaction_mode": "create_savepoint"}


def begin(connection: Connection) -> None:
    """Begin it, and mark its beginning where a failed statement can end it unseen."""
    connection.begin()
    if connection.dialect.name == "sqlite":
        begin_immediate(connection)
    if not _aborts(connection):
        connection.exec_driver_sql("savepoint semel")


def _aborts(connection: Connection) -> bool:
    """Whether a transaction that has failed refuses to commit.

    PostgreSQL's does. InnoDB undoes all of it for a deadlock, SQLite for a full disk, and what a
    handler does after it has swallowed the error is a new transaction: it must not commit a record
    whose effect has gone.
    """
    return connection.dialect.name == "postgresql"


class _Work:
    """The transaction on the connection, whichever engine it is of."""

    def __init__(
        self, connection: OperationConnection, write: Write, session: Callable[[], Session | None]
    ) -> None:
        self._connection = connection
        self._write = write
        self._session = session
        self._transaction = connection.get_transaction()
        self.committing = False
        """Whether the commit was sent: an error after that says nothing of its outcome."""
        connection.begin_anew = self._begin_anew
        connection.own = False

    def _begin_anew(self) -> None:
        """Undo what was written, what its session has pending included, and begin again."""
        session, root = self._session(), self._transaction
        if session is not None:
            session.rollback()
        with self._connection.as_semel():
            if root is not None:
                root.rollback()
            begin(self._connection)
        self._transaction = self._connection.get_transaction()

    def finish(self, command: Complete) -> bool:
        """Flush, write the completion, commit. False: fenced, and rolled back."""
        connection, session, root = self._connection, self._session(), self._transaction
        if connection.running:
            raise exc.InvalidRequestError(BUSY)
        if session is not None:
            session.commit()  # releases its savepoint
        connection.over = True
        if root is None or not root.is_active or connection.effect is Effect.TRANSACTION:
            raise exc.InvalidRequestError(ENDED)
        connection.own = True
        if not _aborts(connection):
            connection.exec_driver_sql("release savepoint semel")  # fails where it is another
        if connection.place:
            put_back(connection, connection.place)
        if not self._write(connection, command):
            root.rollback()
            return False
        failpoint("before_commit")
        self.committing = True
        root.commit()
        failpoint("after_commit")
        return True

    def roll_back(self) -> None:
        """Undo everything."""
        self._connection.over = self._connection.own = True
        if self._connection.running:
            self._connection.discard()
        if self._transaction is not None:
            self._transaction.close()


class SQLAlchemyTransaction:
    """One operation's transaction on one connection of a sync engine, for plain handlers."""

    token: int | None = None  # the claim is a record of its own

    def __init__(
        self, connection: OperationConnection, write: Write, sessions: sessionmaker[Any] | None
    ) -> None:
        self._connection: OperationConnection | None = connection
        self._work = _Work(connection, write, lambda: self._session)
        self._sessions = sessions or sessionmaker()
        self._session: Session | None = None

    @property
    def connection(self) -> Connection:
        """SQLAlchemy's connection, in the transaction; see `OperationConnection`."""
        return _had(self._connection)

    @property
    def async_connection(self) -> Any:
        """Refuse: its statements would block the event loop."""
        raise StoreSetupError(NEEDS_ASYNC)

    @property
    def session(self) -> Session:
        """The one session of the transaction; its `commit` and `rollback` are savepoints."""
        connection = _had(self._connection)
        if self._session is None:
            self._session = self._sessions(bind=connection, **_JOINED)
        return self._session

    @property
    def async_session(self) -> Any:
        """Refuse: its statements would block the event loop."""
        raise StoreSetupError(NEEDS_ASYNC)

    def complete(self, command: Complete) -> bool:
        """Flush the session, write the completion and commit."""
        connection, self._connection = _had(self._connection), None
        try:
            return self._work.finish(command)
        except BaseException as error:
            if self._work.committing or not isinstance(error, Exception):
                with _quietly():
                    connection.invalidate()  # nobody knows what it is in the middle of
            if isinstance(error, Exception):
                raise translate(error, committing=self._work.committing) from error
            raise
        finally:
            self._close(connection)

    async def acomplete(self, command: Complete) -> bool:
        """As `complete`, for a plain handler that ran on a thread beside the event loop."""
        return await asyncio.to_thread(self.complete, command)

    def rollback(self) -> None:
        """Undo what is not committed, and give the connection back."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        loop = asyncio._get_running_loop()
        if loop is not None:
            loop.run_in_executor(None, self._close, connection)
        else:
            self._close(connection)

    async def arollback(self) -> None:
        """As `rollback`, and wait until it is done."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.to_thread(self._close, connection)

    def _close(self, connection: OperationConnection) -> None:
        with _quietly():
            self._work.roll_back()
        with _quietly():
            if self._session is not None:
                self._session.close()
        with _quietly():
            connection.end()


class AsyncSQLAlchemyTransaction:
    """The same on a connection of an `AsyncEngine`, for async handlers."""

    token: int | None = None

    def __init__(
        self,
        connection: OperationAsyncConnection,
        write: Write,
        sessions: async_sessionmaker[Any] | None,
        ending: set[asyncio.Task[None]],
    ) -> None:
        assert isinstance(connection.sync_connection, OperationConnection)
        self._connection: OperationAsyncConnection | None = connection
        self._work = _Work(connection.sync_connection, write, self._sync_session)
        self._sessions = sessions or async_sessionmaker(expire_on_commit=False)
        self._session: AsyncSession | None = None
        self._loop = asyncio.get_running_loop()
        self._ending = ending

    @property
    def async_connection(self) -> AsyncConnection:
        """SQLAlchemy's connection, in the transaction; see `OperationConnection`."""
        return _had(self._connection)

    @property
    def connection(self) -> Any:
        """Refuse: a thread has no way to the event loop's connection."""
        raise StoreSetupError(NEEDS_SYNC)

    @property
    def async_session(self) -> AsyncSession:
        """The one session of the transaction; its `commit` and `rollback` are savepoints."""
        connection = _had(self._connection)
        if self._session is None:
            self._session = self._sessions(bind=connection, **_JOINED)
        return self._session

    @property
    def session(self) -> Any:
        """Refuse, as `connection` does."""
        raise StoreSetupError(NEEDS_SYNC)

    def complete(self, command: Complete) -> bool:
        """Refuse: the transaction lives on its event loop."""
        raise StoreSetupError(NEEDS_SYNC)

    async def acomplete(self, command: Complete) -> bool:
        """Flush the session, write the completion and commit, without blocking the event loop."""
        connection, self._connection = _had(self._connection), None
        try:
            async with asyncio.timeout(COMMIT_LIMIT):
                return await connection.run_sync(lambda _: self._work.finish(command))
        except BaseException as error:
            if self._work.committing or not isinstance(error, Exception):
                await asyncio.shield(self._start(_discard(connection)))
            if isinstance(error, Exception):
                raise translate(error, committing=self._work.committing) from error
            raise
        finally:
            await asyncio.shield(self._start(self._close(connection)))

    def rollback(self) -> None:
        """Undo what is not committed, and give the connection back, meanwhile."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._start(self._close(connection))

    async def arollback(self) -> None:
        """As `rollback`, and wait until it is done."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.shield(self._start(self._close(connection)))

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._ending.add(task)  # or it may be collected before its end
        task.add_done_callback(self._ending.discard)
        return task

    def _sync_session(self) -> Session | None:
        return self._session.sync_session if self._session is not None else None

    async def _close(self, connection: OperationAsyncConnection) -> None:
        with _quietly():
            await connection.run_sync(lambda _: self._work.roll_back())
        with _quietly():
            if self._session is not None:
                await self._session.close()
        with _quietly():
            await connection.end()


async def _discard(connection: AsyncConnection) -> None:
    with _quietly():
        await connection.invalidate()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Tidy up: what fails here has been told already, or is the server's to end."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # drivers raise what they like from a broken socket
        log.debug("could not end a transaction: %s", error)


def _had(connection: C | None) -> C:
    if connection is None:
        raise exc.ResourceClosedError(OVER)
    return connection


NEEDS_ASYNC: Final = (
    "an async handler's op.session() and op.connection() need SQLAlchemyStore(AsyncEngine)"
    " (create_async_engine); with a sync Engine write the handler as a plain def"
)
NEEDS_SYNC: Final = (
    "a plain handler's op.session() and op.connection() need SQLAlchemyStore(Engine)"
    " (create_engine); with an AsyncEngine write the handler as async def"
)
