"""The savepoints of a test's SQLAlchemy connection, as an operation's transactions."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from semel.core.commands import Complete, Reply, StoreCommand
from semel.stores.base import StoreSetupError
from semel.stores.sqlalchemy.connection import begin_immediate
from semel.stores.sqlalchemy.transaction import (
    NEEDS_ASYNC,
    NEEDS_SYNC,
    AsyncSQLAlchemyTransaction,
    SQLAlchemyTransaction,
)
from semel.testing.joined import JoinedStore

__all__ = ["SQLAlchemyJoinedStore", "connection_of"]


def connection_of(given: Any) -> Connection | AsyncConnection | None:
    """Return the connection of a session, or the connection itself; None for anything else."""
    if isinstance(given, Session):
        given = given.connection()
    if isinstance(given, AsyncSession):
        raise StoreSetupError("joined: give await session.connection()")
    return given if isinstance(given, (Connection, AsyncConnection)) else None


class SQLAlchemyJoinedStore(JoinedStore):
    """Operations on the connection of a test."""

    def __init__(self, connection: Connection | AsyncConnection, own: Any) -> None:
        super().__init__()
        if not connection.in_transaction():
            raise StoreSetupError(
                "joined: the connection is in no transaction: begin it, and roll it back after the"
                " test"
            )
        self._connection = connection
        self._sessions = own._sessions
        self._ending: set[asyncio.Task[None]] = set()

    async def aexecute(self, command: StoreCommand) -> Reply:
        """Carry out one command, once what was to be rolled back is."""
        await self._ended()
        return await super().aexecute(command)

    async def _ended(self) -> None:
        if self._ending:
            await asyncio.wait(self._ending)

    def begin(self) -> SQLAlchemyTransaction:
        """Begin a savepoint for a plain handler. Needs a `Connection`."""
        if isinstance(self._connection, AsyncConnection):
            raise StoreSetupError(NEEDS_SYNC)
        self.take()
        savepoint = _savepoint(self._connection)
        return _Joined(self._connection, savepoint, self)

    async def abegin(self) -> AsyncSQLAlchemyTransaction:
        """Begin a savepoint for an async handler. Needs an `AsyncConnection`."""
        if isinstance(self._connection, Connection):
            raise StoreSetupError(NEEDS_ASYNC)
        await self._ended()
        self.take()
        savepoint = await self._connection.run_sync(_savepoint)
        return _AsyncJoined(self._connection, savepoint, self)

    def written(self, connection: Connection, command: Complete) -> bool:
        """Complete the record, where the transaction has not failed."""
        connection.exec_driver_sql("select 1")
        return self.complete(command)


def _held(connection: Connection) -> None:
    """Refuse to end the test's transaction until `_let_go`; SQLAlchemy's events come too late."""

    def refuse() -> None:
        raise InvalidRequestError(
            "the transaction belongs to the operation, and here to the test: use op.session(),"
            " whose commit() and rollback() are savepoints, or raise to roll it back"
        )

    vars(connection).update(commit=refuse, rollback=refuse)


def _let_go(connection: Connection) -> None:
    for name in ("commit", "rollback"):
        vars(connection).pop(name, None)


def _savepoint(connection: Connection) -> Any:
    if connection.dialect.name == "sqlite":
        begin_immediate(connection)
    savepoint = connection.begin_nested()
    if connection.dialect.name != "postgresql":
        connection.exec_driver_sql("savepoint semel")
    _held(connection)
    return savepoint


class _Joined(SQLAlchemyTransaction):
    def __init__(
        self, connection: Connection, savepoint: Any, store: SQLAlchemyJoinedStore
    ) -> None:
        super().__init__(connection, store.written, store._sessions)
        self._work._transaction = savepoint
        self._store = store

    def rollback(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        self._store.give_back()
        _let_go(connection)
        with contextlib.suppress(Exception):
            self._work.roll_back()
        if self._session is not None:
            self._session.close()


class _AsyncJoined(AsyncSQLAlchemyTransaction):
    def __init__(
        self, connection: AsyncConnection, savepoint: Any, store: SQLAlchemyJoinedStore
    ) -> None:
        super().__init__(connection, store.written, store._sessions, store._ending)
        self._work._transaction = savepoint
        self._store = store

    async def _close(self, connection: AsyncConnection) -> None:
        self._store.give_back()
        with contextlib.suppress(Exception):
            await connection.run_sync(self._rolled_back)
        if self._session is not None:
            await self._session.close()

    def _rolled_back(self, connection: Connection) -> None:
        _let_go(connection)
        self._work.roll_back()
