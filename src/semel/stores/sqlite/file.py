"""One SQLite file: connections to it, its migrations, and the check that it is still there."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semel.core.commands import StoreError, StoreUnavailable, StoreUnknown
from semel.failpoints import failpoint
from semel.stores import statements as sql
from semel.stores.schema import COLUMNS_OF, refuse_foreign, require_columns
from semel.stores.sqlite.turnstile import Turnstile

log = logging.getLogger("semel")


def has_wal_reset_race(version: tuple[int, int, int]) -> bool:
    """Say whether this SQLite can corrupt a WAL that several connections write and checkpoint.

    Fixed in 3.51.3, and in 3.50.7 and 3.44.6 (sqlite.org/wal.html, "the WAL-reset bug").
    """
    if version >= (3, 51, 3) or version < (3, 7, 0):
        return False
    return not ((3, 50, 7) <= version < (3, 51, 0) or (3, 44, 6) <= version < (3, 45, 0))


class File:
    """The database file of a store, and what every connection to it has in common."""

    def __init__(self, path: Path, synchronous: str, timeout: float) -> None:
        self.path = path
        self.synchronous = synchronous
        self._timeout = timeout
        self._identity: tuple[int, int] | None = None

    def connect(self) -> sqlite3.Connection:
        """Open a connection. The file must be there: only `migrate` makes it.

        Raises `sqlite3.Error`.
        """
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw",
            uri=True,
            timeout=self._timeout,  # another process may be closing the file, or recovering it
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        connection.execute("pragma wal_autocheckpoint = 0")
        connection.execute(f"pragma synchronous = {self.synchronous}")
        connection.execute("pragma foreign_keys = on")
        # Large batches would need a file elsewhere, where there may be no room for one.
        connection.execute("pragma temp_store = memory")
        connection.execute("pragma busy_timeout = 0")  # from now on the turnstile does the waiting
        return connection

    def migrate(self, turnstile: Turnstile, now: float) -> None:
        """Make the file where there is none, and apply the migrations that it lacks.

        All in one transaction: a process killed in the middle leaves nothing half done.
        Raises `sqlite3.Error`, `StoreUnavailable` where others hold it for too long, and
        `StoreSetupError` where its tables are another kind of store's, or lack columns.
        """
        if not turnstile.enter(time.monotonic() + self._timeout):
            raise StoreUnavailable(f"another process has held the file for {self._timeout} s")
        try:
            connection = sqlite3.connect(
                self.path, timeout=self._timeout, isolation_level=None, check_same_thread=False
            )
            try:
                _refuse_foreign(connection)
                (mode,) = connection.execute("pragma journal_mode = wal").fetchone()
                if mode != "wal":
                    raise StoreUnavailable(f"its journal mode is {mode} and cannot be made WAL")
                connection.execute("begin immediate")
                _apply_migrations(connection, self.path, now)
                _require_columns(connection)
                connection.execute("commit")
            finally:
                connection.close()
        finally:
            turnstile.leave()
        self._identity = self._look()

    def require_unchanged(self) -> None:
        """Raise `StoreUnavailable` where the file is not the one that was opened.

        A process goes on writing to a deleted file, where no other process and no restart would
        ever find its records.
        """
        try:
            if self._look() == self._identity:
                return
            problem = "has been replaced by another file"
        except OSError as error:
            problem = f"has gone ({error.strerror})"
        raise StoreUnavailable(
            f"{self.path} {problem} since it was opened; put it back, or restart to begin with what"
            " is there now"
        )

    def _look(self) -> tuple[int, int]:
        found = os.stat(self.path)
        return found.st_dev, found.st_ino


def _refuse_foreign(connection: sqlite3.Connection) -> None:
    tables = connection.execute("select name from sqlite_master where type = 'table'")
    names = {name for (name,) in tables}
    portable = (
        "semel_schema" in names
        and connection.execute("select 1 from semel_schema where kind = 'portable'").fetchone()
    )
    if portable or ("semel_record" in names and "semel_migration" not in names):
        refuse_foreign("sqlite://", "a file")


def _require_columns(connection: sqlite3.Connection) -> None:
    columns = connection.execute("select name from pragma_table_info('semel_record')")
    found = {"semel_record": {name for (name,) in columns}}
    require_columns(found, {"semel_record": COLUMNS_OF["semel_record"]})  # steps: in another file


def _apply_migrations(connection: sqlite3.Connection, path: Path, now: float) -> None:
    connection.execute(
        "create table if not exists semel_migration (number integer primary key, applied_at real)"
    )
    (newest,) = connection.execute("select max(number) from semel_migration").fetchone()
    known = sql.migrations("sqlite")
    if newest is not None and newest > known[-1][0]:
        log.warning(
            "%s has migration %d, this version of Semel knows %d: a newer one has been here",
            path,
            newest,
            known[-1][0],
        )
    for number, script in known:
        if newest is None or number > newest:
            for statement in _statements(script):
                connection.execute(statement)
                failpoint("in_migration")
            connection.execute("insert into semel_migration values (?, ?)", (number, now))


def _statements(script: str) -> list[str]:
    lines = [line.split("--")[0].rstrip() for line in script.splitlines()]
    return [part.strip() for part in "\n".join(lines).split(";") if part.strip()]


class Readers:
    """A connection for each thread that reads; all can be closed, even in mid-use."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._own = threading.local()
        self._all: weakref.WeakSet[_ThreadReader] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = False

    def fetch(self, statement: str, parameters: Sequence[Any]) -> Any:
        """Run a query for one row and return it, or None. Raises `sqlite3.Error`."""
        reader: _ThreadReader | None = getattr(self._own, "reader", None)
        if reader is None:
            reader = self._own.reader = self._open()
        with reader.lock:
            return reader.connection.execute(statement, parameters).fetchone()

    def _open(self) -> _ThreadReader:
        with self._lock:
            if self._closed:
                raise sqlite3.ProgrammingError("closed meanwhile")
            connection = self._file.connect()
            connection.execute("pragma query_only = on")
            reader = _ThreadReader(connection)
            self._all.add(reader)
            return reader

    def close(self) -> None:
        """Close every thread's connection, each after the query under way."""
        with self._lock:
            self._closed = True
            for reader in list(self._all):
                with reader.lock:
                    reader.connection.close()


class _ThreadReader:
    __slots__ = ("__weakref__", "connection", "lock")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.lock = threading.Lock()


def translate(error: Exception, *, at_commit: bool = False) -> StoreError:
    """Map an error of SQLite to StoreUnavailable (not executed) or StoreUnknown (may have been)."""
    if isinstance(error, StoreError):
        return error
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if at_commit and code is not None and code & 0xFF == sqlite3.SQLITE_IOERR:
        return StoreUnknown(f"SQLite: {name} at commit: {error}")
    return StoreUnavailable(f"SQLite: {name}: {error}")
