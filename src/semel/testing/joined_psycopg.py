"""The savepoints of a test's psycopg connection, as an operation's transactions."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, NoReturn

import psycopg
from psycopg.pq import TransactionStatus

from semel.core.commands import Complete, Open, Reply, StoreCommand, StoreUnavailable
from semel.stores.base import StoreSetupError
from semel.testing.joined_records import JoinedRecords

__all__ = ["PsycopgJoinedStore"]


class PsycopgJoinedStore(JoinedRecords):
    """Operations on the connection of a test."""

    name = "postgresql"
    atomic = True
    opens = False
    expires_itself = False

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
        return self.execute(command)

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

    def open(self, command: Open) -> NoReturn:
        """Refuse: a claim is a record here (`opens`)."""
        raise StoreSetupError("joined: a claim is a record here")

    async def aopen(self, command: Open) -> NoReturn:
        """Refuse, as `open` does."""
        self.open(command)

    def began(self, task: asyncio.Task[None]) -> None:
        """Have the next command wait for a rollback that has begun."""
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


class PsycopgJoined:
    """One operation's savepoint.

    Meanwhile the connection's `commit`, `rollback` and `close` are those of an operation.
    """

    token: int | None = None

    def __init__(self, store: PsycopgJoinedStore, connection: Any, transaction: Any) -> None:
        self._store = store
        self._had = connection
        self._transaction = transaction
        self._over = False
        plain = isinstance(connection, psycopg.Connection)
        nothing: Any = self._nothing if plain else self._anothing
        anew: Any = self._anew if plain else self._aanew
        meanwhile = {"commit": nothing, "rollback": anew, "close": nothing}
        vars(connection).update(meanwhile)

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

    async def arollback(self) -> None:
        """As `rollback`, and return once it has been carried out."""
        if isinstance(self._had, psycopg.Connection):
            self.rollback()
        elif not self._over:
            await self._aend(roll_back=True)

    def _nothing(self) -> None:
        """Do nothing: the commit comes with the result, and the connection is the test's."""

    async def _anothing(self) -> None:
        """As `_nothing`."""

    def _anew(self) -> None:
        self._transaction.__exit__(*self._undoing())
        self._transaction = self._had.transaction()
        self._transaction.__enter__()

    async def _aanew(self) -> None:
        await self._transaction.__aexit__(*self._undoing())
        self._transaction = self._had.transaction()
        await self._transaction.__aenter__()

    def _undoing(self) -> tuple[Any, Any, None]:
        return psycopg.Rollback, psycopg.Rollback(self._transaction), None

    def _cause(self, roll_back: bool) -> tuple[Any, Any, None]:
        self._over = True
        self._store.give_back()
        for name in ("commit", "rollback", "close"):
            vars(self._had).pop(name, None)
        return self._undoing() if roll_back else (None, None, None)

    def _end(self, *, roll_back: bool) -> None:
        cause = self._cause(roll_back)
        with contextlib.suppress(psycopg.Error):
            self._transaction.__exit__(*cause)

    async def _aend(self, *, roll_back: bool) -> None:
        cause = self._cause(roll_back)
        with contextlib.suppress(psycopg.Error):
            await self._transaction.__aexit__(*cause)
