"""The savepoints of a test's psycopg connection, as an operation's transactions."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from semel.core.commands import Complete, Reply, StoreCommand, StoreUnavailable
from semel.stores.base import StoreSetupError
from semel.stores.postgres.connections import AsyncPostgreSQLConnection, PostgreSQLConnection
from semel.testing.joined import JoinedStore

__all__ = ["PsycopgJoinedStore"]


class PsycopgJoinedStore(JoinedStore):
    """Operations on the connection of a test."""

    def __init__(self, connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
        super().__init__()
        idle = connection.info.transaction_status == TransactionStatus.IDLE
        if connection.autocommit and idle:
            raise StoreSetupError(
                "joined: the connection is in no transaction and commits by itself: open it without"
                " autocommit, or use joined inside `with connection.transaction():`"
            )
        self._connection = connection
        self._ending: set[asyncio.Task[None]] = set()

    async def aexecute(self, command: StoreCommand) -> Reply:
        """Carry out one command, once what was to be rolled back is."""
        if self._ending:
            await asyncio.wait(self._ending)
        return await super().aexecute(command)

    def begin(self) -> PsycopgJoined:
        """Begin a savepoint for a plain handler. Needs a `Connection`."""
        if isinstance(self._connection, psycopg.AsyncConnection):
            raise StoreSetupError("joined: a plain handler needs psycopg's Connection")
        self.take()
        self._connection.execute("select 1")  # begins, where it has not
        transaction = self._connection.transaction()
        transaction.__enter__()
        return PsycopgJoined(self, self._connection, transaction)

    async def abegin(self) -> PsycopgJoined:
        """Begin a savepoint for an async handler. Needs an `AsyncConnection`."""
        if isinstance(self._connection, psycopg.Connection):
            raise StoreSetupError("joined: an async handler needs psycopg's AsyncConnection")
        if self._ending:
            await asyncio.wait(self._ending)
        self.take()
        await self._connection.execute("select 1")
        transaction = self._connection.transaction()
        await transaction.__aenter__()
        return PsycopgJoined(self, self._connection, transaction)

    def began(self, task: asyncio.Task[None]) -> None:
        """Have the next command wait for a rollback that has begun."""
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


class PsycopgJoined:
    """One operation's savepoint. Meanwhile the connection's `commit` and `rollback` are not its."""

    token: int | None = None

    def __init__(self, store: PsycopgJoinedStore, connection: Any, transaction: Any) -> None:
        self._store = store
        self._had = connection
        self._transaction = transaction
        self._over = False
        plain = isinstance(connection, psycopg.Connection)
        kind: Any = PostgreSQLConnection if plain else AsyncPostgreSQLConnection
        for name in ("commit", "rollback"):
            setattr(connection, name, getattr(kind, name).__get__(connection))

    @property
    def connection(self) -> Any:
        """The test's connection, for plain code."""
        return self._open()

    @property
    def async_connection(self) -> Any:
        """The test's connection, for async code."""
        return self._open()

    def _open(self) -> Any:
        if self._over:
            raise psycopg.ProgrammingError("the operation is over: its transaction has ended")
        return self._had

    def complete(self, command: Complete) -> bool:
        """Complete the record and release the savepoint."""
        try:
            self._had.execute("select 1")
        except psycopg.Error as error:
            self._end(roll_back=True)
            raise StoreUnavailable(f"a statement of the handler had failed: {error}") from error
        kept = self._store.complete(command)
        self._end(roll_back=not kept)
        return kept

    async def acomplete(self, command: Complete) -> bool:
        """As `complete`, for either kind of connection."""
        if isinstance(self._had, psycopg.Connection):
            return self.complete(command)
        try:
            await self._had.execute("select 1")
        except psycopg.Error as error:
            await self._aend(roll_back=True)
            raise StoreUnavailable(f"a statement of the handler had failed: {error}") from error
        kept = self._store.complete(command)
        await self._aend(roll_back=not kept)
        return kept

    def rollback(self) -> None:
        """Undo what was written since the savepoint."""
        if self._over:
            return
        if isinstance(self._had, psycopg.Connection):
            self._end(roll_back=True)
        else:
            self._over = True
            self._store.began(asyncio.ensure_future(self._aend(roll_back=True)))

    def _cause(self, roll_back: bool) -> tuple[Any, Any, None]:
        self._over = True
        self._store.give_back()
        for name in ("commit", "rollback"):
            vars(self._had).pop(name, None)
        if not roll_back:
            return None, None, None
        return psycopg.Rollback, psycopg.Rollback(self._transaction), None

    def _end(self, *, roll_back: bool) -> None:
        cause = self._cause(roll_back)
        with contextlib.suppress(psycopg.Error):
            self._transaction.__exit__(*cause)

    async def _aend(self, *, roll_back: bool) -> None:
        cause = self._cause(roll_back)
        with contextlib.suppress(psycopg.Error):
            await self._transaction.__aexit__(*cause)
