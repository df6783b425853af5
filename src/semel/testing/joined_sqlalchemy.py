"""The savepoints of a test's SQLAlchemy connection, as an operation's transactions."""

from __future__ import annotations

import asyncio
import copy
import functools
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from semel.core.commands import Complete, Reply, StoreCommand
from semel.stores.base import StoreSetupError
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.stores.sqlalchemy.connection import begin_immediate
from semel.stores.sqlalchemy.handed import OperationAsyncConnection, OperationConnection
from semel.stores.sqlalchemy.transaction import (
    NEEDS_ASYNC,
    NEEDS_SYNC,
    AsyncSQLAlchemyTransaction,
    SQLAlchemyTransaction,
)
from semel.testing.joined_records import JoinedRecords

__all__ = ["SQLAlchemyJoinedStore", "connection_of"]

_NAME: Final = "semel_joined"


def connection_of(given: Any) -> Connection | AsyncConnection | None:
    """Return the connection of a session, or the connection itself; None for anything else."""
    if isinstance(given, Session):
        given = given.connection()
    if isinstance(given, AsyncSession):
        raise StoreSetupError("joined: give await session.connection()")
    return given if isinstance(given, (Connection, AsyncConnection)) else None


class SQLAlchemyJoinedStore(JoinedRecords, SQLAlchemyStore):
    """Operations on the connection of a test."""

    def __init__(self, connection: Connection | AsyncConnection, own: SQLAlchemyStore) -> None:
        if not connection.in_transaction():
            raise StoreSetupError(
                "joined: the connection is in no transaction: begin it, and roll it back after the"
                " test"
            )
        SQLAlchemyStore.__init__(self, own._engine, sessions=own._sessions)
        JoinedRecords.__init__(self)
        self._joined = connection

    async def aexecute(self, command: StoreCommand) -> Reply:
        """Carry out one command, once what was to be rolled back is."""
        await self._undone()
        return self.execute(command)

    async def _undone(self) -> None:
        if ending := [task for task in self._ending if not task.done()]:
            await asyncio.wait(ending)

    def begin(self) -> SQLAlchemyTransaction:
        """Begin a savepoint for a plain handler. Needs a `Connection`."""
        if isinstance(self._joined, AsyncConnection):
            raise StoreSetupError(NEEDS_SYNC)
        self.take()
        return _Joined(self._connected(self._joined), self._complete, self._sessions)  # type: ignore[arg-type]

    async def abegin(self) -> AsyncSQLAlchemyTransaction:
        """Begin a savepoint for an async handler. Needs an `AsyncConnection`."""
        if isinstance(self._joined, Connection):
            raise StoreSetupError(NEEDS_ASYNC)
        await self._undone()
        self.take()
        connection = OperationAsyncConnection(
            self._joined.engine, await self._joined.run_sync(self._connected)
        )
        return AsyncSQLAlchemyTransaction(
            connection,
            self._complete,
            self._sessions,  # type: ignore[arg-type]
            self._ending,
        )

    def _connected(self, connection: Connection) -> OperationConnection:
        if connection.dialect.name == "sqlite":
            begin_immediate(connection)  # or the savepoint would be the transaction
        joined = _JoinedConnection(connection, self.give_back)
        self._begin(joined)
        return joined

    def _complete(self, connection: Connection, command: Complete) -> bool:
        connection.exec_driver_sql("select 1")  # fails where a statement of the handler's has
        return self.complete(command)


class _SharedEngine(Engine):
    """An engine that knows of one connection, whose transactions are savepoints."""

    def __init__(self, connection: Connection) -> None:
        engine = connection.engine
        dialect = copy.copy(engine.dialect)
        for word, statements, opened in _INSTEAD:
            setattr(dialect, word, functools.partial(self._say, statements, opened))
        super().__init__(engine.pool, dialect, engine.url, hide_parameters=engine.hide_parameters)
        self._shared = connection.connection
        self._opened = False

    def raw_connection(self) -> Any:
        """Return the connection that is shared."""
        return self._shared

    def undo(self) -> None:
        """Go back to the savepoint, where SQLAlchemy takes the transaction for ended."""
        if self._opened:
            self.dialect.do_rollback(self._shared)

    def _say(self, statements: tuple[str, ...], opened: bool, connection: Any) -> None:
        cursor = connection.cursor()
        try:
            for statement in statements:
                cursor.execute(statement)
        finally:
            cursor.close()
        self._opened = opened


_INSTEAD: Final = (
    ("do_begin", (f"savepoint {_NAME}",), True),
    ("do_commit", (f"release savepoint {_NAME}",), False),
    ("do_rollback", (f"rollback to savepoint {_NAME}", f"release savepoint {_NAME}"), False),
)


class _JoinedConnection(OperationConnection):
    """An operation's connection that does not go back to a pool: it is the test's."""

    def __init__(self, connection: Connection, ended: Callable[[], None]) -> None:
        self._shared_engine = _SharedEngine(connection)
        super().__init__(self._shared_engine)
        self._ended = ended

    def end(self) -> None:
        """End the operation, and leave the connection to the test."""
        self.over = self.own = True
        self._ended()
        self._shared_engine.undo()

    def discard(self) -> None:
        """Leave it to the test."""

    def invalidate(self, exception: BaseException | None = None) -> None:
        """Leave it to the test."""


class _Joined(SQLAlchemyTransaction):
    def rollback(self) -> None:
        # At once, also on an event loop: the test's next statement is on the same connection.
        connection, self._connection = self._connection, None
        if connection is not None:
            self._close(connection)

    async def arollback(self) -> None:
        self.rollback()

    async def acomplete(self, command: Complete) -> bool:
        return self.complete(command)
