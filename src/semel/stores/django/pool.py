"""Connections of the store's own beside those that Django keeps for its threads.

A rollback of the view's `atomic()` must not take a claim, a renewal or a recorded step with it.
Django's `connections` have one connection a thread, so these are made beside it.
"""

from __future__ import annotations

import contextlib
import copy
import queue
from collections.abc import Iterator
from typing import Any, Final

from django.db import Error, connections
from django.db.utils import load_backend

from semel.core.commands import StoreUnavailable

_LOCK_TIMEOUT: Final = "set session innodb_lock_wait_timeout = 10"
IN_MEMORY: Final = (
    "an in-memory SQLite database has one connection and a claim needs another: give the database a"
    " file (in tests DATABASES[…]['TEST']['NAME']), use django.test.TestCase, or"
    ' SEMEL = {"store": "memory://"}'
)


class ConnectionPool:
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
