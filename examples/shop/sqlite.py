"""The shop's database as a SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any


class SQLite:
    """A file; `name` is its path."""

    identity = "integer primary key"
    now = "strftime('%Y-%m-%dT%H:%M:%fZ')"
    Error = sqlite3.Error

    def __init__(self, name: str) -> None:
        self._path = Path(name).absolute()
        self.url = f"sqlite:///{self._path}"

    def create(self, schema: Mapping[str, str]) -> None:
        """Create what is not there, by its name."""
        with self.opened() as connection:
            connection.execute("begin immediate")
            there = {name for (name,) in connection.execute("select name from sqlite_schema")}
            for name, statement in schema.items():
                if name not in there:
                    connection.execute(statement)
            connection.execute("commit")

    async def run(
        self, db: Any, statement: str, parameters: Sequence[Any] = ()
    ) -> list[tuple[Any, ...]]:
        """Run a statement on the operation's connection and return the rows it gives."""
        return (await db.execute(statement, parameters)).fetchall()

    @contextmanager
    def opened(self) -> Iterator[sqlite3.Connection]:
        """A connection for one page, which may be made by several threads in turn. Each statement
        commits by itself.
        """
        connection = self._connect()
        try:
            yield connection
        finally:
            connection.close()

    def query(
        self, connection: sqlite3.Connection, statement: str, parameters: Sequence[Any] = ()
    ) -> list[dict[str, Any]]:
        """Return the rows that a query gives."""
        cursor = connection.execute(statement, parameters)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    async def unprotected(self) -> Any:
        """Return what handlers write with when the shop runs without Semel."""
        return _Plain(self._plain)

    @cached_property
    def _plain(self) -> sqlite3.Connection:
        return self._connect()

    def _connect(self) -> sqlite3.Connection:
        """Each statement commits by itself."""
        connection = sqlite3.connect(
            self._path, timeout=10, isolation_level=None, check_same_thread=False
        )
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        return connection


class _Plain:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def execute(self, statement: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self._connection.execute(statement, parameters)
