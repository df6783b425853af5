"""Pools of connections that hand out the one used last and notice a dead one before it is used.

psycopg_pool was tried. It hands connections out in turn, so that each is cold when it is used; it
comes back to a restarted server only after its own back-off; and a task of its own that is
cancelled while it connects never ends, so that an event loop could not be closed.
"""

from __future__ import annotations

import asyncio
import select
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import psycopg
from psycopg.pq import TransactionStatus

from semel.core.commands import StoreUnavailable
from semel.stores.postgres.connections import AsyncPostgreSQLConnection, PostgreSQLConnection

LIFETIME: Final = 1800.0
"""Seconds after which a connection is replaced, so that load follows a change of servers."""


def is_clean(connection: Any) -> bool:
    """Whether a connection may be used by the next as it is."""
    return (
        connection.pgconn.transaction_status == TransactionStatus.IDLE
        and not connection.effect
        and connection.left_open is None
    )


def _alive(connection: Any) -> bool:
    """Whether an idle connection's server has not hung up, nor said why and then hung up."""
    try:
        waiting = select.poll()
        waiting.register(connection.pgconn.socket, select.POLLIN)
        while waiting.poll(0):
            connection.pgconn.consume_input()
        return is_clean(connection)
    except (psycopg.Error, OSError, ValueError):
        return False


def _end(connection: Any) -> None:
    connection.finish()


class _Idle:
    """The connections that nobody uses."""

    def __init__(self) -> None:
        self._idle: list[tuple[Any, float]] = []
        self.closed = False

    def take(self) -> Any:
        """Return a connection that can be used, or None."""
        while self._idle:
            connection, born = self._idle.pop()
            if _alive(connection):
                connection.born = born
                return connection
            _end(connection)
        return None

    def keep(self, connection: Any) -> None:
        """Keep a connection for the next, or end it."""
        usable = not self.closed and is_clean(connection)
        connection = connection.for_the_next()
        if usable and time.monotonic() - connection.born < LIFETIME:
            self._idle.append((connection, connection.born))
        else:
            _end(connection)

    def close(self) -> None:
        """End them all, and those in use when they come back."""
        self.closed = True
        while self._idle:
            _end(self._idle.pop()[0])


class Pool:
    """Connections for threads."""

    def __init__(
        self, connect: Callable[[], PostgreSQLConnection], size: int, timeout: float
    ) -> None:
        self._connect = connect
        self._timeout = timeout
        self._free = threading.Semaphore(size)
        self._idle = _Idle()

    def get(self) -> PostgreSQLConnection:
        """Return a connection. Raises `StoreUnavailable` after `timeout` seconds."""
        if not self._free.acquire(timeout=self._timeout):
            raise StoreUnavailable(
                f"PostgreSQL: all connections of the pool were in use for {self._timeout} s"
            )
        try:
            connection: PostgreSQLConnection | None = self._idle.take()
            if connection is None:
                connection = self._connect()
                connection.born = time.monotonic()
        except BaseException as error:
            self._free.release()
            if isinstance(error, (psycopg.Error, OSError)):
                raise StoreUnavailable(f"PostgreSQL: no connection: {error}") from error
            raise
        connection.limit = self._timeout
        return connection

    def put(self, connection: PostgreSQLConnection) -> None:
        """Take a connection back."""
        self._idle.keep(connection)
        self._free.release()

    def close(self) -> None:
        """Close the pool."""
        self._idle.close()


class AsyncPool:
    """Connections for one event loop."""

    def __init__(
        self, connect: Callable[[], Awaitable[AsyncPostgreSQLConnection]], size: int, timeout: float
    ) -> None:
        self._connect = connect
        self._timeout = timeout
        self._free = asyncio.Semaphore(size)
        self._idle = _Idle()

    async def get(self) -> AsyncPostgreSQLConnection:
        """Return a connection. Raises `StoreUnavailable` after `timeout` seconds."""
        if self._free.locked():
            try:
                async with asyncio.timeout(self._timeout):
                    await self._free.acquire()
            except TimeoutError:
                raise StoreUnavailable(
                    f"PostgreSQL: all connections of the pool were in use for {self._timeout} s"
                ) from None
        else:
            await self._free.acquire()  # at once
        try:
            connection: AsyncPostgreSQLConnection | None = self._idle.take()
            if connection is None:
                async with asyncio.timeout(self._timeout):
                    connection = await self._connect()
                connection.born = time.monotonic()
        except BaseException as error:
            self._free.release()
            if isinstance(error, (psycopg.Error, OSError)):  # TimeoutError is an OSError
                raise StoreUnavailable(f"PostgreSQL: no connection: {error!r}") from error
            raise
        connection.limit = self._timeout
        return connection

    def put(self, connection: AsyncPostgreSQLConnection) -> None:
        """Take a connection back."""
        try:
            connection.unwatch()
            self._idle.keep(connection)
        finally:
            self._free.release()

    def close(self) -> None:
        """Close the pool."""
        self._idle.close()
