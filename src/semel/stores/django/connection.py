"""Django's connection as the portable commands use one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

from django.db import connections

from semel.stores.portable.dialects import DIALECTS, Dialect

PARAMSTYLE: Final = "format"
"""Of Django's cursors, whatever the driver's is."""
_LOCK_TIMEOUT: Final = "set local lock_timeout = '10s'"
"""A process that stands still in its commit must not hold up the commands of others for ever."""
_ISOLATION: Final = {
    "postgresql": "show transaction_isolation",
    # Not @@…: the names differ from version to version, and one that is unknown is an error.
    "mysql": "show variables where variable_name in"
    " ('innodb_snapshot_isolation', 'transaction_isolation', 'tx_isolation')",
}


class DjangoConnection:
    """A connection that is not Django's own for the thread, in autocommit.

    Inside a transaction already open (a test's, the view's) all is part of that.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def rows(self, sql: str, values: tuple[Any, ...]) -> Sequence[Any]:
        """Carry a query out and return its rows."""
        with self._connection.cursor() as cursor:
            cursor.execute(sql, values)
            rows: Sequence[Any] = cursor.fetchall()
            return rows

    def run(self, sql: str, values: tuple[Any, ...]) -> int:
        """Carry a statement out and return how many rows it has changed."""
        with self._connection.cursor() as cursor:
            cursor.execute(sql, values)
            return int(cursor.rowcount)

    def insert(self, sql: str, values: tuple[Any, ...]) -> int | None:
        """Insert a row and return its number, or None where nothing was inserted."""
        with self._connection.cursor() as cursor:
            cursor.execute(sql, values)
            return int(cursor.lastrowid) if cursor.rowcount == 1 else None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and no statement waits for a lock for ever."""
        connection = self._connection
        if connection.in_atomic_block:
            yield
            return
        connection.set_autocommit(False)
        try:
            if connection.vendor == "postgresql":
                with connection.cursor() as cursor:
                    cursor.execute(_LOCK_TIMEOUT)
            yield
            connection.commit()
        except BaseException:
            connection.rollback()
            raise
        finally:
            connection.set_autocommit(True)

    def bounded(self) -> AbstractContextManager[None]:
        """One statement that waits for no lock for ever.

        Only PostgreSQL needs a transaction for that: a limit that stays with the session would go
        on to others behind pgbouncer. The connections of the store to other databases have theirs
        from the start.
        """
        return self.transaction() if self._connection.vendor == "postgresql" else nullcontext()


def dialect_of(connection: Any) -> Dialect:
    """Return the words of the database that a connection is to."""
    dialect = DIALECTS[connection.vendor]
    if dialect.skip_locked and not connection.features.has_select_for_update_skip_locked:
        return dialect._replace(skip_locked="")  # MariaDB before 10.6
    return dialect


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
