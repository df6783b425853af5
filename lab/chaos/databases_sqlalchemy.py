"""Databases under test through SQLAlchemy: one store for threads, one for event loops."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sqlalchemy import create_engine, inspect, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from lab.chaos.databases import BOTH, DATABASE, DatabaseUnderTest
from semel.stores import Store
from semel.stores.sqlalchemy import SQLAlchemyStore, metadata
from semel.testing.servers import MariaDB, PostgreSQL

_DRIVERS: Final = {
    "mysql": ("mysql+pymysql", "mysql+asyncmy"),
    "postgresql": ("postgresql+psycopg", "postgresql+asyncpg"),
}
_numbers = itertools.count()


class SQLAlchemyUnderTest:
    """A database of its own on a server that is shared."""

    points: tuple[str, ...] = (*BOTH, "in_sweep", DATABASE)
    insert: Any = text("insert into effect values (:attempt, :key, :token)")

    def __init__(
        self, server: MariaDB | PostgreSQL, make: Callable[[Any], Store] = SQLAlchemyStore
    ) -> None:
        self._server = server
        self._make = make
        self.title = f"SQLAlchemy on {type(server).__name__}"
        self._url = make_url(server.database(f"chaos_{os.getpid()}_{next(_numbers)}"))
        self._sync, self._async = _DRIVERS[self._url.drivername]
        # Each look has a connection of its own: servers are forked from this process.
        self._looks = create_engine(self._url.set(drivername=self._sync), poolclass=NullPool)
        with self._looks.begin() as connection:
            connection.execute(
                text("create table effect (attempt varchar(99), `key` varchar(99), token bigint)")
                if self._sync.startswith("mysql")
                else text("create table effect (attempt text, key text, token bigint)")
            )

    def store(self) -> Store:
        """Return a store for a server with an event loop."""
        url = self._url.set(drivername=self._async)
        engine: AsyncEngine = create_async_engine(url, pool_size=4, pool_pre_ping=True)
        return self._make(engine)

    def thread_store(self) -> Store:
        """Return a store for a server of threads."""
        url = self._url.set(drivername=self._sync)
        return self._make(create_engine(url, pool_size=4, pool_pre_ping=True))

    def _rows(self, statement: str) -> list[Any]:
        with self._looks.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement))]

    def effects(self) -> list[tuple[str, str, int]]:
        """Return the rows of the business table."""
        return self._rows("select * from effect")

    def states(self) -> dict[bytes, int]:
        """Return the state of every record."""
        record = metadata.tables["semel_record"]
        with self._looks.connect() as connection:
            rows = connection.execute(record.select())
            return {bytes(row.key): row.state for row in rows}

    def forget_tables(self) -> None:
        """Take the tables away, so that the next server makes them: only without records."""
        if inspect(self._looks).has_table("semel_record"):
            if self.states() or self.effects():
                return
            metadata.drop_all(self._looks)

    def crash(self) -> None:
        """Crash the server and start it again: what it had committed is there."""
        self._server.crash()
        self._server.start()


SERVERS: Final[dict[str, Callable[[], MariaDB | PostgreSQL]]] = {
    "sqlalchemy-mariadb": MariaDB,
    "sqlalchemy-postgresql": lambda: PostgreSQL(fsync=True),
}
"""What `--store` of the chaos command calls them, and their servers."""


def database_on(server: MariaDB | PostgreSQL) -> Callable[[Path], DatabaseUnderTest]:
    """Return a function that makes a database under test on a server, for `storm`."""
    return lambda folder: SQLAlchemyUnderTest(server)
