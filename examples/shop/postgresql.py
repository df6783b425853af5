"""The shop's database in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row


class PostgreSQL:
    """A database on a server; `name` is its URL."""

    identity = "bigint generated always as identity primary key"
    now = """to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""
    Error = psycopg.Error

    def __init__(self, name: str) -> None:
        self.url = name
        self._plain: psycopg.AsyncConnection | None = None
        self._connecting = asyncio.Lock()

    def create(self, schema: Mapping[str, str]) -> None:
        """Create what is not there, by its name."""
        with psycopg.connect(self.url) as connection:
            # Servers that start together take turns. ("if not exists" would lock as well: an index
            # that is there already would still make those who write to its table wait.)
            connection.execute("select pg_advisory_xact_lock(hashtext('shop'))")
            for name, statement in schema.items():
                there = connection.execute("select to_regclass(%s)", (name,)).fetchone()
                if there == (None,):
                    connection.execute(statement)

    async def run(
        self, db: Any, statement: str, parameters: Sequence[Any] = ()
    ) -> list[tuple[Any, ...]]:
        """Run a statement on the operation's connection and return the rows it gives."""
        cursor = await db.execute(_marked(statement), parameters)
        return await cursor.fetchall() if cursor.description else []

    @contextmanager
    def opened(self) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        """A connection for one page. Each statement commits by itself."""
        with psycopg.connect(self.url, autocommit=True, row_factory=dict_row) as connection:
            yield connection

    def query(
        self,
        connection: psycopg.Connection[dict[str, Any]],
        statement: str,
        parameters: Sequence[Any] = (),
    ) -> list[dict[str, Any]]:
        """Return the rows that a query gives."""
        return connection.execute(_marked(statement), parameters).fetchall()

    async def unprotected(self) -> Any:
        """Return what handlers write with when the shop runs without Semel."""
        async with self._connecting:
            if self._plain is None or self._plain.closed:  # the server may have been restarted
                self._plain = await psycopg.AsyncConnection.connect(self.url, autocommit=True)
            return self._plain


def _marked(statement: str) -> str:
    """The shop's statements have `?` where a value goes; psycopg wants `%s`."""
    return statement.replace("?", "%s")
