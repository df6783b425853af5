"""SQLAlchemy's connection as the portable commands use one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.engine import Connection, Dialect

_AS_IT_IS: Final = contextlib.nullcontext()


def begin_immediate(connection: Connection) -> None:
    """Take SQLite's one write lock now, and have the driver know of a transaction.

    Python's driver begins one only before a write, so savepoints would come to stand outside. Where
    an engine's own "begin" listener has begun already, that stands.
    """
    if not connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
        connection.exec_driver_sql("begin immediate")


_PLACES: Final = {
    "postgresql": "select current_setting('role'), current_setting('search_path')",
    "mysql": "select database()",
    "mariadb": "select database()",
}


def place_of(connection: Connection) -> tuple[str, ...]:
    """Return as whom and where tables are found: a handler may be about to change it."""
    ask = _PLACES.get(connection.dialect.name)
    return () if ask is None else tuple(connection.exec_driver_sql(ask).one())


def put_back(connection: Connection, place: tuple[str, ...]) -> None:
    """Write the record as whom, and where, the connection came."""
    if connection.dialect.name != "postgresql":
        quoted = connection.dialect.identifier_preparer.quote_identifier(place[0])
        connection.exec_driver_sql(f"use {quoted}")
        return
    # What the handler has put off is checked as its role and with its settings.
    connection.exec_driver_sql("set constraints all immediate")
    connection.exec_driver_sql("reset session authorization")
    connection.execute(_PUT_BACK, {"role": place[0], "path": place[1]})


_PUT_BACK: Final = text(
    "select set_config('role', :role, true), set_config('search_path', :path, true)"
)


def paramstyle_of(dialect: Dialect) -> str:
    """Return how a driver wants its parameters. SQLite's take `?` whatever SQLAlchemy is told."""
    return "qmark" if dialect.name == "sqlite" else dialect.paramstyle


class SQLAlchemyConnection:
    """A connection in a transaction that whoever made this commits."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def rows(self, sql: str, values: tuple[Any, ...]) -> Sequence[Any]:
        """Carry a query out and return its rows."""
        return self._connection.exec_driver_sql(sql, values).all()

    def run(self, sql: str, values: tuple[Any, ...]) -> int:
        """Carry a statement out and return how many rows it has changed."""
        return self._connection.exec_driver_sql(sql, values).rowcount

    def insert(self, sql: str, values: tuple[Any, ...]) -> int | None:
        """Insert a row and return its number, or None where nothing was inserted."""
        result = self._connection.exec_driver_sql(sql, values)
        return result.lastrowid if result.rowcount == 1 else None

    def transaction(self) -> contextlib.AbstractContextManager[None]:
        """All of the command is in one; SQLite's is given the write lock before the first write."""
        if self._connection.dialect.name == "sqlite":
            begin_immediate(self._connection)
        return _AS_IT_IS

    bounded = transaction
    """How long a statement waits for a lock is the engine's to say."""
