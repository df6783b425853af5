"""Connections of the store's own beside those that Django keeps for its threads.

What a view does inside `atomic()` is rolled back with it; a claim, a renewal or a recorded step
must not be. Django's `connections` have one connection a thread, so these are made beside it.
"""

from __future__ import annotations

import contextlib
import copy
import queue
import sqlite3
import sys
from collections.abc import Iterator
from typing import Any, Final

from django.db import DatabaseError, Error, connections
from django.db.utils import load_backend

from semel.core.commands import StoreError, StoreUnavailable, StoreUnknown
from semel.stores.mysql_errors import cut_off
from semel.stores.sqlite.file import translate as translate_sqlite

_LOCK_TIMEOUT: Final = "set session innodb_lock_wait_timeout = 10"
_UNDONE: Final = frozenset({"40001", "40P01", 1020, 1213})
"""Serialization failures and deadlocks: PostgreSQL's codes, and MySQL's. 1020 is MariaDB's, under
innodb_snapshot_isolation."""
_ISOLATION: Final = {
    "postgresql": "show transaction_isolation",
    # Not @@…: the names differ from version to version, and one that is unknown is an error.
    "mysql": "show variables where variable_name in"
    " ('innodb_snapshot_isolation', 'transaction_isolation', 'tx_isolation')",
}
IN_MEMORY: Final = (
    "an in-memory SQLite database has one connection and a claim needs another: give the database a"
    " file (in tests DATABASES[…]['TEST']['NAME']), use django.test.TestCase, or"
    ' SEMEL = {"store": "memory://"}'
)


class Lanes:
    """A few connections, for commands that take a moment each. Any thread may use them."""

    def __init__(self, alias: str, size: int, timeout: float) -> None:
        self._alias = alias
        self._timeout = timeout
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue()
        for _ in range(size):
            self._idle.put(None)  # a connection that is yet to be made
        self._closed = False

    @contextlib.contextmanager
    def take(self) -> Iterator[Any]:
        """Lend a connection. One that met an error is closed: nobody knows what it is in.

        Raises `StoreUnavailable` where none can be had.
        """
        try:
            connection = self._idle.get(timeout=self._timeout)
        except queue.Empty:
            raise StoreUnavailable(
                f"no connection for commands came free in {self._timeout} s"
            ) from None
        try:
            if self._closed:
                raise StoreUnavailable("the store has been stopped")
            if connection is None:
                connection = _made(self._alias)
            try:
                _connect(connection)
            except Error as error:
                raise StoreUnavailable(f"{self._alias}: {error}") from error
            try:
                yield connection
            except BaseException:
                with contextlib.suppress(Error):
                    connection.close()
                raise
        finally:
            if self._closed and connection is not None:
                connection.close()
                connection = None
            self._idle.put(connection)

    def close(self) -> None:
        """Close all, those in use when they come back."""
        self._closed = True
        idle = []
        with contextlib.suppress(queue.Empty):
            while True:
                idle.append(self._idle.get_nowait())
        for connection in idle:
            if connection is not None:
                connection.close()
            self._idle.put(None)  # whoever waits for one is told


def _made(alias: str) -> Any:
    # As the test runner has changed it; without a pool, from which it would take what views need.
    settings = copy.deepcopy(connections[alias].settings_dict)
    settings.get("OPTIONS", {}).pop("pool", None)
    settings["ATOMIC_REQUESTS"] = False
    settings["AUTOCOMMIT"] = True
    connection = load_backend(settings["ENGINE"]).DatabaseWrapper(settings, alias)
    if connection.vendor == "sqlite" and connection.is_in_memory_db():
        raise StoreUnavailable(IN_MEMORY)
    connection.inc_thread_sharing()  # one thread at a time
    return connection


def _connect(connection: Any) -> None:
    if connection.connection is None:
        connection.ensure_connection()
        if connection.vendor == "mysql":
            with connection.cursor() as cursor:
                cursor.execute(_LOCK_TIMEOUT)


def works_on_snapshot(connection: Any) -> bool:
    """Whether a transaction refuses to write a row that has changed since it began.

    MySQL's do not: their writes see the row as it is. MariaDB's do with innodb_snapshot_isolation.
    """
    if connection.vendor not in _ISOLATION:
        return False
    with connection.cursor() as cursor:
        cursor.execute(_ISOLATION[connection.vendor])
        said = {str(value).lower().replace("-", " ") for *_, value in cursor.fetchall()}
    refuses = connection.vendor == "postgresql" or "on" in said
    return refuses and bool(said & {"repeatable read", "serializable"})


def testing(alias: str) -> Any | None:
    """Return this thread's connection where a `django.test.TestCase` holds it in a transaction.

    Only there can be seen what the test has written, so commands go there too.
    """
    if "django.test.testcases" not in sys.modules:
        return None
    connection = connections[alias]
    blocks = connection.atomic_blocks
    return connection if blocks and blocks[0]._from_testcase else None


def undone(error: Exception) -> bool:
    """Whether the database has undone it because of others, so that it may be given again."""
    return _code(error) in _UNDONE and not isinstance(error, StoreError)


def translate(error: Exception, *, sent: bool) -> StoreError:
    """Say what an error means for what was asked: not done, or not known.

    `sent`: the database may have done it before the connection was lost.
    """
    if isinstance(error, StoreError):
        return error
    cause = error.__cause__
    if isinstance(cause, sqlite3.Error):
        return translate_sqlite(cause, at_commit=sent)
    if sent and _lost(error):
        return StoreUnknown(str(error))
    return StoreUnavailable(str(error))


def _lost(error: Exception) -> bool:
    """Whether the connection went, and with it the answer."""
    if not isinstance(error, DatabaseError):
        return False  # InterfaceError: it was closed before
    code = _code(error)
    if isinstance(code, str):
        return code[:2] in ("08", "57")
    return code is None or cut_off(code)


def _code(error: Exception) -> str | int | None:
    cause = error.__cause__ or error
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if state is not None:
        return str(state)
    first = cause.args[0] if cause.args else None
    return first if isinstance(first, int) else None
