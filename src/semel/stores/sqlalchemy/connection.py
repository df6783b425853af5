"""SQLAlchemy's connection as the portable commands use one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy.engine import Connection, Dialect

_AS_IT_IS: Final = contextlib.nullcontext()


def begin_immediate(connection: Connection) -> None:
    """Take SQLite's one write lock now, and have the driver know of a transaction.

    Python's driver begins one only before a write, so savepoints would come to stand outside. Where
    an engine's own "begin" listener has begun already, that stands.
    """
    if not connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
        connection.exec_driver_sql("begin immediate")


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
