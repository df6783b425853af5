"""Cursors and connections that a plain handler is handed, in the operation's turn."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NoReturn, Protocol, Self

Parameters = Any
"""A sequence, or a mapping for named parameters, of what `sqlite3` takes."""
Factory = Callable[[Any, tuple[Any, ...]], Any]
OVER: Final = "the operation is over: its transaction has ended"
_BLOCK: Final = ("savepoint semel_block", "rollback to semel_block", "release semel_block")


class Use(Protocol):
    """One operation's use of the writer, as a cursor or a connection sees it."""

    row_factory: Factory | None

    @property
    def changes(self) -> int:
        """How many rows were changed in the turn."""

    def __enter__(self) -> sqlite3.Connection:
        """Keep the turn for one statement. Raises where it is over, or nothing is left of it."""

    def __exit__(self, *error: object) -> None:
        """Let the turn end from now on."""

    def cursor(self) -> Cursor:
        """Return a cursor."""

    def reads(self, cursor: Cursor) -> None:
        """Note a cursor with rows to fetch: an unfinished query would outlive the transaction."""

    def refusal(self, error: sqlite3.DatabaseError) -> sqlite3.DatabaseError:
        """Return an error that says why a statement was refused, where Semel has refused it."""

    def rewind(self) -> None:
        """Undo what was written in the turn, which goes on."""

    def add(self, remove: Callable[[], object]) -> None:
        """Note how to remove, at the end of the turn, what was added to the connection."""


class Cursor(sqlite3.Cursor):
    """A standard cursor that serves its operation only, and only until that ends."""

    _use: Use

    @property
    def connection(self) -> Any:
        """The operation's connection: the writer's own is everybody's."""
        return SQLiteConnection(self._use)

    def execute(self, statement: str, parameters: Parameters = (), /) -> Self:
        """Run one statement. Raises `sqlite3.Error` as the standard library does."""
        with self._use:
            try:
                super().execute(statement, parameters)
            except sqlite3.DatabaseError as error:
                raise self._use.refusal(error) from None
            if self.description is not None:
                self._use.reads(self)
        return self

    def executemany(self, statement: str, parameters: Iterable[Parameters], /) -> Self:
        """Run one statement for each set of parameters."""
        with self._use:
            try:
                super().executemany(statement, parameters)
            except sqlite3.DatabaseError as error:
                raise self._use.refusal(error) from None
        return self

    def executescript(self, script: str, /) -> Self:
        """Run the statements of a script one by one: nothing is committed first, as sqlite3 does.

        A script's own BEGIN, COMMIT and ROLLBACK are refused.
        """
        for statement in statements_of(script):
            self.execute(statement)
        return self


class EndedCursor(Cursor):
    """What a cursor with rows becomes at the end of its operation."""

    def fetchone(self) -> NoReturn:
        """Refuse."""
        raise sqlite3.ProgrammingError(OVER)

    def fetchmany(self, size: int | None = None) -> NoReturn:
        """Refuse."""
        raise sqlite3.ProgrammingError(OVER)

    def fetchall(self) -> NoReturn:
        """Refuse."""
        raise sqlite3.ProgrammingError(OVER)

    def __next__(self) -> NoReturn:
        raise sqlite3.ProgrammingError(OVER)


def statements_of(script: str) -> Iterator[str]:
    """Split a script into its statements; a trigger's body is part of one."""
    begun = 0
    at = script.find(";")
    while at >= 0:
        if sqlite3.complete_statement(script[begun : at + 1]):
            yield script[begun : at + 1]
            begun = at + 1
        at = script.find(";", at + 1)
    if script[begun:].strip():
        yield script[begun:]


class Connected:
    """What both kinds of connection have in common: settings, which are the operation's only."""

    Warning = sqlite3.Warning
    Error = sqlite3.Error
    InterfaceError = sqlite3.InterfaceError
    DatabaseError = sqlite3.DatabaseError
    DataError = sqlite3.DataError
    OperationalError = sqlite3.OperationalError
    IntegrityError = sqlite3.IntegrityError
    InternalError = sqlite3.InternalError
    ProgrammingError = sqlite3.ProgrammingError
    NotSupportedError = sqlite3.NotSupportedError

    def __init__(self, use: Use) -> None:
        self._use = use

    @property
    def row_factory(self) -> Factory | None:
        """What makes rows of tuples, as in `sqlite3`: `sqlite3.Row`, say."""
        return self._use.row_factory

    @row_factory.setter
    def row_factory(self, factory: Factory | None) -> None:
        self._use.row_factory = factory

    @property
    def text_factory(self) -> Any:
        """What makes values of text, as in `sqlite3`."""
        with self._use as connection:
            return connection.text_factory

    @text_factory.setter
    def text_factory(self, factory: Any) -> None:
        with self._use as connection:
            connection.text_factory = factory

            def remove() -> None:
                connection.text_factory = str

            self._use.add(remove)

    @property
    def total_changes(self) -> int:
        """How many rows the operation has changed so far."""
        return self._use.changes

    @property
    def in_transaction(self) -> bool:
        """Whether the operation's transaction is open: until the operation is over."""
        with self._use as connection:
            return connection.in_transaction

    @property
    def isolation_level(self) -> str:
        """How the transaction has begun. It cannot be changed."""
        return "IMMEDIATE"

    @isolation_level.setter
    def isolation_level(self, value: object) -> NoReturn:
        raise sqlite3.ProgrammingError(_BEGUN.format("isolation_level"))

    @property
    def autocommit(self) -> bool:
        """False. It cannot be changed."""
        return False

    @autocommit.setter
    def autocommit(self, value: object) -> NoReturn:
        raise sqlite3.ProgrammingError(_BEGUN.format("autocommit"))

    def _create_function(self, name: str, narg: int, func: Any, deterministic: bool) -> None:
        with self._use as connection:
            _require_no_builtin(connection, name)
            connection.create_function(name, narg, func, deterministic=deterministic)
            self._use.add(lambda: connection.create_window_function(name, narg, None))

    def _create_aggregate(self, name: str, n_arg: int, aggregate_class: Any) -> None:
        with self._use as connection:
            _require_no_builtin(connection, name)
            connection.create_aggregate(name, n_arg, aggregate_class)
            self._use.add(lambda: connection.create_window_function(name, n_arg, None))

    def _create_collation(self, name: str, callback: Any) -> None:
        with self._use as connection:
            connection.create_collation(name, callback)
            self._use.add(lambda: connection.create_collation(name, None))

    def __getattr__(self, name: str) -> Any:
        if hasattr(sqlite3.Connection, name):
            raise sqlite3.NotSupportedError(_EVERYBODYS.format(name))
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _require_no_builtin(connection: sqlite3.Connection, name: str) -> None:
    """SQLite does not bring its own function back once one of the same name has been removed."""
    found = "select 1 from pragma_function_list where builtin and name = lower(?)"
    if connection.execute(found, (name,)).fetchone() is not None:
        raise sqlite3.NotSupportedError(f"{name!r} is SQLite's own function: take another name")


_BEGUN: Final = (
    "{} cannot be changed: the transaction is the operation's, has begun, and commits with the"
    " response"
)
_EVERYBODYS: Final = (
    "{}() is not for the operation's connection, which is the one writer of all operations: open a"
    " connection of your own with sqlite3.connect() where it is needed"
)


class SQLiteConnection(Connected):
    """The connection of a plain handler (`op.connection()`), to the file that holds the key.

    As `sqlite3.Connection`. What is written here commits with the key's record, or not at all:
    `commit()` and `close()` do nothing, `rollback()` undoes what the operation has written,
    `with connection:` undoes its block where that raises. `BEGIN`, `COMMIT` and `ROLLBACK` as
    statements are refused; savepoints of your own are yours. Factories, functions and temporary
    tables last as long as the operation. After its end all raises `sqlite3.ProgrammingError`.
    """

    def cursor(self, factory: type[Cursor] | None = None) -> Cursor:
        """Return a cursor. Raises `sqlite3.NotSupportedError` for a factory of your own."""
        if factory is not None and factory is not Cursor and factory is not sqlite3.Cursor:
            raise sqlite3.NotSupportedError("cursor(): leave the factory out")
        return self._use.cursor()

    def execute(self, statement: str, parameters: Parameters = (), /) -> Cursor:
        """Run one statement. Raises `sqlite3.Error` as the standard library does.

        Fetch before the handler returns: what is left unread is closed with the transaction.
        """
        return self._use.cursor().execute(statement, parameters)

    def executemany(self, statement: str, parameters: Iterable[Parameters], /) -> Cursor:
        """Run one statement for each set of parameters."""
        return self._use.cursor().executemany(statement, parameters)

    def executescript(self, script: str, /) -> Cursor:
        """Run the statements of a script one by one; see `Cursor.executescript`."""
        return self._use.cursor().executescript(script)

    def commit(self) -> None:
        """Do nothing: the commit comes with the response, together with the key's record."""

    def rollback(self) -> None:
        """Undo what was written in the operation, which goes on, and may complete."""
        self._use.rewind()

    def close(self) -> None:
        """Do nothing: the connection is the operation's, and goes back with its end."""

    def __enter__(self) -> Self:
        self.execute(_BLOCK[0])
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        leave_block(self._use, kind)

    def create_function(
        self, name: str, narg: int, func: Any, *, deterministic: bool = False
    ) -> None:
        """Add a function to SQL, until the end of the operation."""
        self._create_function(name, narg, func, deterministic)

    def create_aggregate(self, name: str, n_arg: int, aggregate_class: Any) -> None:
        """Add an aggregate function to SQL, until the end of the operation."""
        self._create_aggregate(name, n_arg, aggregate_class)

    def create_collation(self, name: str, callback: Any, /) -> None:
        """Add a collation to SQL, until the end of the operation."""
        self._create_collation(name, callback)

    def iterdump(self) -> Iterator[str]:
        """Iterate over the statements that would make the database anew."""
        from sqlite3.dump import _iterdump  # type: ignore[attr-defined]

        dump: Iterator[str] = _iterdump(self)
        return dump


def enter_block(use: Use) -> None:
    """Begin what `with connection:` undoes where it raises."""
    use.cursor().execute(_BLOCK[0])


def leave_block(use: Use, kind: object) -> None:
    cursor = use.cursor()
    try:
        if kind is not None:
            cursor.execute(_BLOCK[1])
        cursor.execute(_BLOCK[2])
    except sqlite3.OperationalError as error:
        if "no such savepoint" not in str(error):  # a rollback() has undone it already
            raise
