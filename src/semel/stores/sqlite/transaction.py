"""The business transaction of a handler: a turn with the writer, seen as a connection."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from semel.core.commands import Complete, StoreError, StoreUnavailable
from semel.stores.sqlite.aio import AsyncSQLiteConnection
from semel.stores.sqlite.group_commit import UNDONE, Done
from semel.stores.sqlite.handed import OVER, Cursor, EndedCursor, Factory, SQLiteConnection
from semel.stores.sqlite.writer import Turn, Writer

T = TypeVar("T")
Write = Callable[[sqlite3.Connection, Complete], bool]


class TurnUse:
    """How the handler uses its turn: its cursors, and what it has set on the connection."""

    def __init__(self, writer: Writer, turn: Turn) -> None:
        self._writer = writer
        self._turn = turn
        self._using = threading.RLock()  # a turn does not end in the middle of a statement
        self._cursors: list[Cursor] = []
        self._added: list[Callable[[], object]] = []
        self._changes = writer.connection.total_changes
        self.row_factory: Factory | None = None

    def __enter__(self) -> sqlite3.Connection:
        self._using.acquire()
        connection = self._writer.connection
        if self._turn.had and connection.in_transaction:
            return connection
        self._using.release()
        if not self._turn.had:
            raise sqlite3.ProgrammingError(OVER)
        raise StoreUnavailable(UNDONE)

    def __exit__(self, *error: object) -> None:
        self._using.release()

    @property
    def changes(self) -> int:
        """How many rows were changed in the turn."""
        with self as connection:
            return connection.total_changes - self._changes

    def cursor(self) -> Cursor:
        """Return a cursor for this turn. Raises as entering does."""
        with self as connection:
            cursor = connection.cursor(Cursor)
        cursor._use = self
        if self.row_factory is not None:
            cursor.row_factory = self.row_factory
        return cursor

    def reads(self, cursor: Cursor) -> None:
        """Note a cursor with rows to fetch: an unfinished query would outlive the transaction."""
        self._cursors.append(cursor)

    def refusal(self, error: sqlite3.DatabaseError) -> sqlite3.DatabaseError:
        """Return an error that says why a statement was refused, where Semel has refused it."""
        return self._writer.permissions.explain(error)

    def add(self, remove: Callable[[], object]) -> None:
        """Note how to remove, at the end of the turn, what was added to the connection."""
        self._added.append(remove)

    def rewind(self) -> None:
        """Undo what was written in the turn, which goes on."""
        with self:
            self._close_cursors()
            self._writer.rewind()

    def _close_cursors(self) -> None:
        for cursor in self._cursors:
            cursor.close()
            cursor.__class__ = EndedCursor
        self._cursors.clear()

    def end(self, finish: Callable[[], T]) -> T:
        """End the turn by what is given, once no thread is in the middle of a statement."""
        with self._using:
            self._close_cursors()
            while self._added:
                with contextlib.suppress(sqlite3.Error):  # a thread still reads by it
                    self._added.pop()()
            return finish()


class SQLiteTransaction:
    """One atomic operation's turn with the writer."""

    __slots__ = ("_turn", "_use", "_write", "_writer", "token")

    def __init__(self, writer: Writer, turn: Turn, write: Write) -> None:
        self._writer = writer
        self._turn = turn
        self._write = write
        self._use = TurnUse(writer, turn)
        self.token: int | None = None  # the claim is a record of its own

    @property
    def connection(self) -> SQLiteConnection:
        """For plain code."""
        return SQLiteConnection(self._use)

    @property
    def async_connection(self) -> AsyncSQLiteConnection:
        """For async code."""
        return AsyncSQLiteConnection(self._use)

    def _finish(self, command: Complete, done: Done, *, may_block: bool) -> bool:
        return self._use.end(
            lambda: self._writer.finish_turn(
                self._turn,
                lambda connection: self._write(connection, command),
                done,
                may_block=may_block,
            )
        )

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
            self._use.end(lambda: self._writer.abandon_turn(self._turn))

    async def arollback(self) -> None:
        """As `rollback`."""
        self.rollback()


def resolve(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], value: object) -> None:
    """Set a future's result from any thread, unless it was cancelled."""

    def settle() -> None:
        if not future.done():
            future.set_result(value)

    loop.call_soon_threadsafe(settle)
