"""The business transaction of a handler: a turn with the writer, seen as a connection."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterable
from typing import Any

from semel.core.commands import Complete, StoreError, StoreUnavailable
from semel.stores.sqlite.group_commit import UNDONE, Done
from semel.stores.sqlite.writer import Turn, Writer

Parameters = Any
"""A sequence, or a mapping for named parameters, of what `sqlite3` takes."""
Write = Callable[[sqlite3.Connection, Complete], bool]


class SQLiteTransaction:
    """One atomic operation's turn with the writer."""

    __slots__ = ("_cursors", "_turn", "_write", "_writer", "token")

    def __init__(self, writer: Writer, turn: Turn, write: Write) -> None:
        self._writer = writer
        self._turn = turn
        self._write = write
        self._cursors: list[Cursor] = []
        self.token: int | None = None  # the claim is a record of its own

    @property
    def connection(self) -> SQLiteConnection:
        """For plain code."""
        return SQLiteConnection(self)

    @property
    def async_connection(self) -> AsyncSQLiteConnection:
        """For async code."""
        return AsyncSQLiteConnection(self)

    def cursor(self) -> Cursor:
        """Return a cursor for this turn. Raises as `require_turn` does."""
        self.require_turn()
        cursor = self._writer.connection.cursor(Cursor)
        cursor.transaction = self
        return cursor

    def require_turn(self) -> None:
        """Raise where a statement would be outside the turn, or outside any transaction."""
        if not self._turn.had:
            raise sqlite3.ProgrammingError("the operation is over: its transaction has ended")
        if not self._writer.connection.in_transaction:
            raise StoreUnavailable(UNDONE)

    def reads(self, cursor: Cursor) -> None:
        """Note a cursor with rows to fetch: an unfinished query would outlive the transaction."""
        self._cursors.append(cursor)

    def _finish(self, command: Complete, done: Done, *, may_block: bool) -> bool:
        self._close_cursors()
        return self._writer.finish_turn(
            self._turn,
            lambda connection: self._write(connection, command),
            done,
            may_block=may_block,
        )

    def _close_cursors(self) -> None:
        for cursor in self._cursors:
            cursor.close()
        self._cursors.clear()

    def complete(self, command: Complete) -> bool:
        """Write the completion and wait for the commit."""
        event = threading.Event()
        errors: list[StoreError | None] = []

        def done(error: StoreError | None) -> None:
            errors.append(error)
            event.set()

        if not self._finish(command, done, may_block=True):
            return False
        event.wait()
        if errors[0] is not None:
            raise errors[0]
        return True

    async def acomplete(self, command: Complete) -> bool:
        """Write the completion and await the commit."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[StoreError | None] = loop.create_future()
        if not self._finish(command, lambda error: resolve(loop, future, error), may_block=False):
            return False
        loop.call_soon(self._writer.end_linger)
        error = await future
        if error is not None:
            raise error
        return True

    def rollback(self) -> None:
        """Undo what was written in this turn."""
        if self._turn.had:
            self._close_cursors()
            self._writer.abandon_turn(self._turn)

    async def arollback(self) -> None:
        """As `rollback`."""
        self.rollback()


def resolve(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], value: object) -> None:
    """Set a future's result from any thread, unless it was cancelled."""

    def settle() -> None:
        if not future.done():
            future.set_result(value)

    loop.call_soon_threadsafe(settle)


class Cursor(sqlite3.Cursor):
    """A standard cursor that serves its operation only, and only until that ends."""

    transaction: SQLiteTransaction

    def execute(self, statement: str, parameters: Parameters = (), /) -> Cursor:
        """Run one statement. Raises `sqlite3.Error` as the standard library does."""
        self.transaction.require_turn()
        super().execute(statement, parameters)
        if self.description is not None:
            self.transaction.reads(self)
        return self

    def executemany(self, statement: str, parameters: Iterable[Parameters], /) -> Cursor:
        """Run one statement for each set of parameters."""
        self.transaction.require_turn()
        super().executemany(statement, parameters)
        return self

    def executescript(self, script: str, /) -> Cursor:
        """Refuse: the standard library would commit first."""
        raise sqlite3.NotSupportedError(
            "executescript() commits first; give the statements one by one to execute()"
        )


class SQLiteConnection:
    """The connection of a plain handler (`op.connection()`), to the file that holds the key.

    What is written here commits with the key's record, or not at all. `commit`, `begin` and
    `rollback` as statements are refused; savepoints of your own are yours.
    """

    def __init__(self, transaction: SQLiteTransaction) -> None:
        self._transaction = transaction

    def execute(self, statement: str, parameters: Parameters = ()) -> Cursor:
        """Run one statement. Raises `sqlite3.Error` as the standard library does.

        Fetch before the handler returns: what is left unread is closed with the transaction.
        """
        return self._transaction.cursor().execute(statement, parameters)

    def executemany(self, statement: str, parameters: Iterable[Parameters]) -> Cursor:
        """Run one statement for each set of parameters."""
        return self._transaction.cursor().executemany(statement, parameters)

    def commit(self) -> None:
        """Do nothing: the commit comes with the response, together with the key's record."""


class AsyncSQLiteConnection:
    """The connection of an async handler: as `SQLiteConnection`, with awaitable methods.

    Statements run on the event loop's thread (microseconds for indexed rows of a local file); the
    commit, with its fsync, does not.
    """

    def __init__(self, transaction: SQLiteTransaction) -> None:
        self._transaction = transaction

    async def execute(self, statement: str, parameters: Parameters = ()) -> Cursor:
        """Run one statement; fetch from the cursor without awaiting."""
        return self._transaction.cursor().execute(statement, parameters)

    async def executemany(self, statement: str, parameters: Iterable[Parameters]) -> Cursor:
        """Run one statement for each set of parameters."""
        return self._transaction.cursor().executemany(statement, parameters)

    async def commit(self) -> None:
        """Do nothing: the commit comes with the response, together with the key's record."""
