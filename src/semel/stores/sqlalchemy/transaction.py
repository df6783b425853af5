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
from sqlalchemy.util import greenlet_spawn

from semel.core.commands import Complete
from semel.failpoints import failpoint
from semel.stores.base import StoreSetupError
from semel.stores.effects import SessionEffect
from semel.stores.sqlalchemy.connection import begin_immediate, place_of, put_back
from semel.stores.sqlalchemy.errors import translate
from semel.stores.sqlalchemy.handed import (
    BUSY,
    ENDED,
    OVER,
    OperationAsyncConnection,
    OperationConnection,
)
from semel.stores.sqlalchemy.joined import Pin
from semel.stores.sqlalchemy.provisioning import take_turns

log = logging.getLogger("semel")

C = TypeVar("C", OperationConnection, OperationAsyncConnection)
Write = Callable[[Connection, Complete], bool]

COMMIT_LIMIT: Final = 30.0
"""Seconds that an async engine's server has for a commit before its outcome is called unknown."""


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

    def __init__(self, connection: OperationConnection, write: Write) -> None:
        self._connection = connection
        self._write = write
        self.session: Session | None = None
        """That of `op.session()`, which commits with the operation."""
        self._joined: list[Pin] = []
        self._transaction = connection.get_transaction()
        self.committing = False
        """Whether the commit was sent: an error after that says nothing of its outcome."""
        connection.begin_anew = self._begin_anew
        connection.own = False

    def join(self, pin: Pin) -> OperationConnection:
        """Have a session as a part of the transaction; return what its connection stands on."""
        self._joined = [*self._live(), pin]
        return self._connection

    def _live(self) -> list[Pin]:
        return [pin for pin in self._joined if pin.live]

    def own_session(self, session: Session) -> None:
        """Have the session of `op.session()`."""
        self.session = session
        Pin(session, self._connection.engine, self.join)

    def _begin_anew(self) -> None:
        """Undo what was written, what its sessions have pending included, and begin again."""
        root = self._transaction
        self._connection.savepoints.forget()
        for pin in self._live():
            pin.session.rollback()
        with self._connection.as_semel():
            if root is not None:
                root.rollback()
            begin(self._connection)
        self._transaction = self._connection.get_transaction()

    def finish(self, command: Complete) -> bool:
        """Flush, write the completion, commit. False: fenced, and rolled back."""
        connection, root = self._connection, self._transaction
        if connection.running:
            raise exc.InvalidRequestError(BUSY)
        self._require_whole()
        if self.session is not None:
            self.session.commit()  # releases its savepoint
        for pin in self._live():
            if pin.session is not self.session:
                _leave(pin)
        self._require_whole()
        connection.over = True
        if root is None or not root.is_active or connection.effect is SessionEffect.TRANSACTION:
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

    def _require_whole(self) -> None:
        if self._connection.broken is not None:
            raise exc.InvalidRequestError(self._connection.broken)

    def tell(self) -> None:
        """Call the listeners for the sessions' `after_commit`."""
        for call in self._connection.committed:
            try:
                call()
            except Exception:
                log.exception("a listener for a session's after_commit failed; all is committed")

    def roll_back(self) -> None:
        """Undo everything."""
        self._connection.over = self._connection.own = True
        if self._connection.running:
            self._connection.discard()
        if self._transaction is not None:
            self._transaction.close()
        for pin in self._live():
            with _quietly():
                pin.session.close()


def _leave(pin: Pin) -> None:
    """Drop what a session has not committed, as the end of its request would."""
    if pin.pending:
        log.warning(
            "a session of an operation has written and not committed: that is rolled back. Commit"
            " it before the response is made"
        )
    pin.session.close()


class SQLAlchemyTransaction:
    """One operation's transaction on one connection of a sync engine, for plain handlers."""

    token: int | None = None  # the claim is a record of its own

    def __init__(
        self, connection: OperationConnection, write: Write, sessions: sessionmaker[Any] | None
    ) -> None:
        self._connection: OperationConnection | None = connection
        self._work = _Work(connection, write)
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
        _had(self._connection)
        if self._session is None:
            self._session = self._sessions()
            self._work.own_session(self._session)
        return self._session

    @property
    def async_session(self) -> Any:
        """Refuse: its statements would block the event loop."""
        raise StoreSetupError(NEEDS_ASYNC)

    def join(self, pin: Pin) -> OperationConnection:
        """Have a session of the application's as a part of the transaction."""
        _had(self._connection)
        return self._work.join(pin)

    def driver(self) -> Any:
        """Return the driver's own connection, its transaction begun."""
        return _driver(_had(self._connection))

    async def adriver(self) -> Any:
        """Refuse: its statements would block the event loop."""
        raise StoreSetupError(NEEDS_ASYNC)

    def complete(self, command: Complete) -> bool:
        """Flush the session, write the completion and commit."""
        connection, self._connection = _had(self._connection), None
        try:
            applied = self._work.finish(command)
        except BaseException as error:
            if self._work.committing or not isinstance(error, Exception):
                with _quietly():
                    connection.invalidate()  # nobody knows what it is in the middle of
            if isinstance(error, Exception):
                raise translate(error, committing=self._work.committing) from error
            raise
        finally:
            self._close(connection)
        if applied:
            self._work.tell()
        return applied

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
        self._work = _Work(connection.sync_connection, write)
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
        _had(self._connection)
        if self._session is None:
            self._session = take_turns(self._sessions())
            self._work.own_session(self._session.sync_session)
        return self._session

    @property
    def session(self) -> Any:
        """Refuse, as `connection` does."""
        raise StoreSetupError(NEEDS_SYNC)

    def join(self, pin: Pin) -> OperationConnection:
        """Have a session of the application's as a part of the transaction."""
        _had(self._connection)
        return self._work.join(pin)

    def driver(self) -> Any:
        """Refuse, as `connection` does."""
        raise StoreSetupError(NEEDS_SYNC)

    async def adriver(self) -> Any:
        """Return the driver's own connection, its transaction begun."""
        return await _had(self._connection).run_sync(_driver)

    def complete(self, command: Complete) -> bool:
        """Refuse: the transaction lives on its event loop."""
        raise StoreSetupError(NEEDS_SYNC)

    async def acomplete(self, command: Complete) -> bool:
        """Flush the session, write the completion and commit, without blocking the event loop."""
        connection, self._connection = _had(self._connection), None
        try:
            async with asyncio.timeout(COMMIT_LIMIT):
                applied: bool = await connection.run_sync(lambda _: self._work.finish(command))
        except BaseException as error:
            if self._work.committing or not isinstance(error, Exception):
                await asyncio.shield(self._start(_discard(connection)))
            if isinstance(error, Exception):
                raise translate(error, committing=self._work.committing) from error
            raise
        finally:
            await asyncio.shield(self._start(self._close(connection)))
        if applied:
            await greenlet_spawn(self._work.tell)
        return applied

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

    async def _close(self, connection: OperationAsyncConnection) -> None:
        with _quietly():
            await connection.stop()
        with _quietly():
            await connection.run_sync(lambda _: self._work.roll_back())
        with _quietly():
            await connection.end()


async def _discard(connection: AsyncConnection) -> None:
    with _quietly():
        await connection.invalidate()


def _driver(connection: Any) -> Any:
    """The connection below SQLAlchemy, which begins a transaction with its first statement only.

    What is said there is not seen here: it may be a write, and may leave settings behind.
    """
    with connection.as_semel():
        connection.place = connection.place or place_of(connection)  # a first statement
    connection.savepoints.wrote(None)
    connection.effect = max(connection.effect, SessionEffect.BEYOND)
    return connection.connection.driver_connection


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
