"""Databases under test: set up, written to, and read when all is over."""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from semel.stores import Store
from semel.stores.sqlite import SQLiteStore
from semel.testing.servers import PgBouncer, PostgreSQL

BOTH = (
    "before_claim",
    "after_claim",
    "after_begin",
    "before_undo",
    "after_undo",
    "before_complete",
    "before_commit",
    "after_commit",
    "after_complete",
    "before_release",
    "after_release",
    "before_renew",
    "in_migration",
)


DATABASE = "the database"
"""In the place of a failpoint: the database server itself is crashed, and started again."""


class DatabaseUnderTest(Protocol):
    """A database under test, with the business table and the records in it."""

    title: str
    points: tuple[str, ...]
    """Failpoints that a server meets while it serves new keys."""
    insert: Any
    """The statement that leaves an effect, with the parameters attempt, key, token by name."""

    def store(self) -> Store:
        """Return a store on it, not yet started."""

    def effects(self) -> list[tuple[str, str, int]]:
        """Return the rows of the business table."""

    def states(self) -> dict[bytes, int]:
        """Return the state of every record."""

    def forget_tables(self) -> None:
        """Take the migrations back, so that the next server makes them: only without records."""

    def crash(self) -> None:
        """Crash the database itself and start it again; nothing where it is no server."""


@runtime_checkable
class ThreadsApart(Protocol):
    """A database whose store for servers of threads is another than for event loops."""

    def thread_store(self) -> Store:
        """Return a store for a server of threads, not yet started."""


class SQLiteUnderTest:
    """A file of its own."""

    title = "SQLite synchronous=FULL"
    points: tuple[str, ...] = (*BOTH, "in_commit", "before_checkpoint", "in_sweep")
    insert = "insert into effect values (:attempt, :key, :token)"

    def __init__(self, folder: Path, make: Callable[[Path], Store] = SQLiteStore) -> None:
        self._path = folder / "shop.db"
        self._make = make
        self._run("create table if not exists effect (attempt, key, token)")

    def _run(self, statement: str) -> list[Any]:
        connection = sqlite3.connect(self._path, isolation_level=None)
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    def store(self) -> Store:
        """Return a store on the file."""
        return self._make(self._path)

    def effects(self) -> list[tuple[str, str, int]]:
        """Return the rows of the business table."""
        return self._run("select attempt, key, token from effect")

    def states(self) -> dict[bytes, int]:
        """Return the state of every record."""
        return dict(self._run("select key, state from semel_record"))

    def forget_tables(self) -> None:
        """Take the migrations back, where there are no records."""
        if not self._run("select 1 from sqlite_master where name = 'semel_record'"):
            return
        connection = sqlite3.connect(self._path, isolation_level=None)
        try:
            connection.execute("begin immediate")
            if not connection.execute("select count(*) from semel_record").fetchone()[0]:
                connection.execute("drop table semel_record")
                connection.execute("delete from semel_migration")
            connection.execute("commit")
        finally:
            connection.close()

    def crash(self) -> None:
        """No server: a crash of the process is all there is."""


_numbers = itertools.count()


class PostgreSQLUnderTest:
    """A database of its own on a server that is shared; `through` pgbouncer, if one is given."""

    title = "PostgreSQL fsync=on"
    points: tuple[str, ...] = (*BOTH, DATABASE)
    insert = "insert into effect values (%(attempt)s, %(key)s, %(token)s)"

    def __init__(self, server: PostgreSQL, through: PgBouncer | None = None) -> None:
        self._server = server
        self._url = server.database(name := f"chaos_{os.getpid()}_{next(_numbers)}")
        self._asked = self._url if through is None else through.url.rpartition("/")[0] + f"/{name}"
        self._run("create table effect (attempt text, key text, token bigint)")

    def _run(self, statement: str) -> list[Any]:
        import psycopg

        with psycopg.connect(self._url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def store(self) -> Store:
        """Return a store on the database."""
        from semel.stores.postgres import PostgreSQLStore

        return PostgreSQLStore(
            self._asked, pool_size=4, command_connections=2, timeout=5, idle_in_transaction=0.3
        )

    def effects(self) -> list[tuple[str, str, int]]:
        """Return the rows of the business table."""
        return self._run("select attempt, key, token from effect")

    def states(self) -> dict[bytes, int]:
        """Return the state of every record."""
        return dict(self._run("select key, state from semel_record"))

    def forget_tables(self) -> None:
        """Take the migrations back, where there are no records."""
        if self._run("select 1 from pg_tables where tablename = 'semel_record'"):
            if self._run("select 1 from semel_record limit 1") or self.effects():
                return
            self._run(
                "drop schema public cascade; create schema public;"
                " create table effect (attempt text, key text, token bigint)"
            )

    def crash(self) -> None:
        """Stop the server as `pg_ctl -m immediate` does, and start it again."""
        self._server.immediate()
        self._server.start()
