"""The connection that an async handler is handed, with the methods of `aiosqlite`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable
from typing import Any, Generic, Self, TypeVar

from semel.stores.sqlite.handed import (
    Connected,
    Cursor,
    Factory,
    Parameters,
    enter_block,
    leave_block,
)

T = TypeVar("T")


class AsyncCursor:
    """A cursor whose methods are awaited, of `async with connection.execute(…)` and `cursor()`."""

    def __init__(self, cursor: Cursor, connection: AsyncSQLiteConnection) -> None:
        self._cursor = cursor
        self.connection = connection
        """The operation's connection."""

    async def execute(self, statement: str, parameters: Parameters = ()) -> Self:
        """Run one statement."""
        self._cursor.execute(statement, parameters)
        return self

    async def executemany(self, statement: str, parameters: Iterable[Parameters]) -> Self:
        """Run one statement for each set of parameters."""
        self._cursor.executemany(statement, parameters)
        return self

    async def executescript(self, script: str) -> Self:
        """Run the statements of a script one by one."""
        self._cursor.executescript(script)
        return self

    async def fetchone(self) -> Any:
        """Return the next row, or None."""
        return self._cursor.fetchone()

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        """Return the next rows, `arraysize` where no number is given."""
        return self._cursor.fetchmany(self.arraysize if size is None else size)

    async def fetchall(self) -> list[Any]:
        """Return the rows that are left."""
        return self._cursor.fetchall()

    async def close(self) -> None:
        """Close it."""
        self._cursor.close()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        for row in self._cursor:
            return row
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._cursor.close()

    @property
    def rowcount(self) -> int:
        """How many rows the last statement has changed."""
        return self._cursor.rowcount

    @property
    def lastrowid(self) -> int | None:
        """The number of the row that was inserted last."""
        return self._cursor.lastrowid

    @property
    def description(self) -> Any:
        """The columns of the last query."""
        return self._cursor.description

    @property
    def arraysize(self) -> int:
        """How many rows `fetchmany` returns."""
        return self._cursor.arraysize

    @arraysize.setter
    def arraysize(self, value: int) -> None:
        self._cursor.arraysize = value

    @property
    def row_factory(self) -> Factory | None:
        """What makes rows of tuples."""
        return self._cursor.row_factory

    @row_factory.setter
    def row_factory(self, factory: Factory | None) -> None:
        self._cursor.row_factory = factory


class Ran(Coroutine[Any, Any, T], Generic[T]):
    """A statement to be awaited, or to be entered with `async with`, as in `aiosqlite`."""

    __slots__ = ("_awaited", "_connection", "_cursor")

    def __init__(self, connection: AsyncSQLiteConnection, awaited: Coroutine[Any, Any, T]) -> None:
        self._connection = connection
        self._awaited = awaited
        self._cursor: AsyncCursor | None = None

    def send(self, value: Any, /) -> Any:
        """Carry it on, for the event loop."""
        return self._awaited.send(value)

    def throw(self, *error: Any) -> Any:
        """Raise in it, for the event loop."""
        return self._awaited.throw(*error)

    def close(self) -> None:
        """Give it up."""
        self._awaited.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._awaited.__await__()

    async def __aenter__(self) -> AsyncCursor:
        cursor: Any = await self._awaited
        if not isinstance(cursor, AsyncCursor):
            cursor = AsyncCursor(cursor, self._connection)
        self._cursor = cursor
        return self._cursor

    async def __aexit__(self, *error: object) -> None:
        if self._cursor is not None:
            await self._cursor.close()


class AsyncSQLiteConnection(Connected):
    """The connection of an async handler: as `SQLiteConnection`, with awaitable methods.

    Statements run on the event loop's thread (microseconds for indexed rows of a local file); the
    commit, with its fsync, does not. `await connection.execute(…)` gives a cursor of `sqlite3`,
    from which is fetched without awaiting; `async with connection.execute(…) as cursor:` and
    `connection.cursor()` give one of `aiosqlite`'s kind, whose methods are awaited.
    """

    def execute(self, statement: str, parameters: Parameters = ()) -> Ran[Cursor]:
        """Run one statement; fetch from the cursor without awaiting."""
        return self._ran(lambda cursor: cursor.execute(statement, parameters))

    def executemany(self, statement: str, parameters: Iterable[Parameters]) -> Ran[Cursor]:
        """Run one statement for each set of parameters."""
        return self._ran(lambda cursor: cursor.executemany(statement, parameters))

    def executescript(self, script: str) -> Ran[Cursor]:
        """Run the statements of a script one by one; see `Cursor.executescript`."""
        return self._ran(lambda cursor: cursor.executescript(script))

    def _ran(self, run: Callable[[Cursor], Cursor]) -> Ran[Cursor]:
        async def awaited() -> Cursor:
            return run(self._use.cursor())

        return Ran(self, awaited())

    def cursor(self) -> Ran[AsyncCursor]:
        """Return a cursor, `await`ed or with `async with`."""

        async def awaited() -> AsyncCursor:
            return AsyncCursor(self._use.cursor(), self)

        return Ran(self, awaited())

    async def execute_fetchall(self, statement: str, parameters: Parameters = ()) -> list[Any]:
        """Run a query and return its rows."""
        return self._use.cursor().execute(statement, parameters).fetchall()

    async def execute_insert(self, statement: str, parameters: Parameters = ()) -> Any:
        """Insert a row and return a row with its number."""
        cursor = self._use.cursor().execute(statement, parameters)
        return self._use.cursor().execute("select ?", (cursor.lastrowid,)).fetchone()

    async def commit(self) -> None:
        """Do nothing: the commit comes with the response, together with the key's record."""

    async def rollback(self) -> None:
        """Undo what was written in the operation, which goes on, and may complete."""
        self._use.rewind()

    async def close(self) -> None:
        """Do nothing: the connection is the operation's, and goes back with its end."""

    async def __aenter__(self) -> Self:
        enter_block(self._use)
        return self

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        leave_block(self._use, kind)

    async def create_function(
        self, name: str, num_params: int, func: Any, deterministic: bool = False
    ) -> None:
        """Add a function to SQL, until the end of the operation."""
        self._create_function(name, num_params, func, deterministic)

    async def create_aggregate(self, name: str, n_arg: int, aggregate_class: Any) -> None:
        """Add an aggregate function to SQL, until the end of the operation."""
        self._create_aggregate(name, n_arg, aggregate_class)

    async def create_collation(self, name: str, callback: Any) -> None:
        """Add a collation to SQL, until the end of the operation."""
        self._create_collation(name, callback)
