"""PostgreSQL sessions of this process's threads, and of one event loop: two pools each.

Commands have connections of their own, so that they never wait for operations, each of which keeps
a connection for as long as its handler runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import pq

from semel.core.commands import Abandoned, Claim, Complete, Lookup, Steps, StoreCommand
from semel.stores.batching import Batcher
from semel.stores.postgres import commands
from semel.stores.postgres.connections import (
    AGAIN,
    AsyncPostgreSQLConnection,
    Connector,
    PostgreSQLConnection,
    translate,
)
from semel.stores.postgres.messages import Message, require
from semel.stores.postgres.pools import AsyncPool, Pool, is_clean
from semel.stores.retry import CommandRetry

log = logging.getLogger("semel")

BATCHED: Final = (Claim, Complete, Lookup)
"""Commands of which an event loop sends many in one statement."""
HARMLESS: Final = (Lookup, Steps, Abandoned)
"""Commands that change nothing: they may be given again whatever became of them."""


def _undone(error: Exception) -> bool:
    return isinstance(error, psycopg.Error) and error.sqlstate in AGAIN


def _stale(error: Exception) -> bool:
    """Whether the connection was lost: perhaps it had gone stale in the pool."""
    return isinstance(error, psycopg.OperationalError)


def _harmless(error: Exception) -> bool:
    return _undone(error) or (_stale(error) and getattr(error, "sqlstate", None) is None)


_WRITES: Final = CommandRetry(_undone)
_READS: Final = CommandRetry(_harmless)
_BEGINNINGS: Final = CommandRetry(_stale, limit=1, pause=0.0)
"""Beginning changes nothing: it is tried anew on another connection."""


class SessionSettings(NamedTuple):
    """How connections are made, and how many."""

    connector: Connector
    size: int
    for_commands: int
    timeout: float


class ThreadSessions:
    """The sessions of this process's threads."""

    def __init__(self, settings: SessionSettings) -> None:
        connect = settings.connector.connect
        self._transactions = Pool(partial(connect, prepares=True), settings.size, settings.timeout)
        self._commands = Pool(connect, settings.for_commands, settings.timeout)

    def run(
        self, command: StoreCommand, statement: str, parameters: Sequence[Any]
    ) -> commands.Rows:
        """Run a command's statement, a whole transaction. Raises `StoreError`."""

        def once() -> commands.Rows:
            connection = self._commands.get()
            try:
                return connection.execute(statement, parameters, binary=True).fetchall()
            finally:
                finish_sync(connection)
                self._commands.put(connection)

        harmless = isinstance(command, HARMLESS)
        try:
            return (_READS if harmless else _WRITES).run(once)
        except psycopg.Error as error:
            raise translate(error, sent=not harmless) from error

    def begin(
        self, message: Callable[[PostgreSQLConnection], Message]
    ) -> tuple[PostgreSQLConnection, list[pq.abc.PGresult]]:
        """Begin an operation's transaction by a message; return its results as well.

        Raises `StoreError`.
        """

        def once() -> tuple[PostgreSQLConnection, list[pq.abc.PGresult]]:
            connection = self._transactions.get()
            try:
                connection.beginning = message(connection)
                results = connection.send(connection.beginning)
                require(connection, results)
            except BaseException:
                self._discard(connection)
                raise
            return connection, results

        try:
            return _BEGINNINGS.run(once)
        except psycopg.Error as error:
            raise translate(error, sent=False) from error

    def give_back(self, connection: PostgreSQLConnection) -> None:
        """Take a transaction's connection back, clean."""
        loop = asyncio._get_running_loop()
        if loop is not None and not is_clean(connection):
            # A plain handler's, whose operation ends on an event loop.
            loop.run_in_executor(None, self._finish, connection)
        else:
            self._finish(connection)

    def _finish(self, connection: PostgreSQLConnection) -> None:
        finish_sync(connection)
        self._transactions.put(connection)

    def _discard(self, connection: PostgreSQLConnection) -> None:
        """Take back a connection of which nobody knows what it is in the middle of."""
        connection.finish()
        self._transactions.put(connection)

    def close(self) -> None:
        """Close all, those in use when they come back."""
        self._transactions.close()
        self._commands.close()


class LoopSessions:
    """The sessions of one event loop, and the batchers of its commands."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: SessionSettings) -> None:
        self._loop = loop
        self._ending: set[asyncio.Task[None]] = set()
        connect = settings.connector.aconnect
        self._transactions = AsyncPool(
            partial(connect, prepares=True), settings.size, settings.timeout
        )
        self._commands = AsyncPool(connect, settings.for_commands, settings.timeout)
        self.batchers: dict[type, Batcher] = {kind: Batcher(loop, self._send) for kind in BATCHED}

    async def _send(self, batch: Sequence[Any]) -> list[Any]:
        statement, parameters = commands.batch(batch)
        return list(commands.replies(batch, await self.run(batch[0], statement, parameters)))

    async def run(
        self, command: StoreCommand, statement: str, parameters: Sequence[Any]
    ) -> commands.Rows:
        """Run a command's statement, a whole transaction. Raises `StoreError`."""

        async def once() -> commands.Rows:
            connection = await self._commands.get()
            try:
                cursor = await connection.execute(statement, parameters, binary=True)
                rows: commands.Rows = await cursor.fetchall()
                return rows
            except psycopg.Error:
                raise
            except BaseException:  # cancelled while a reply was read
                connection.finish()
                raise
            finally:
                self._commands.put(connection)

        harmless = isinstance(command, HARMLESS)
        try:
            return await (_READS if harmless else _WRITES).arun(once)
        except psycopg.Error as error:
            raise translate(error, sent=not harmless) from error

    async def begin(
        self, message: Callable[[AsyncPostgreSQLConnection], Message]
    ) -> tuple[AsyncPostgreSQLConnection, list[pq.abc.PGresult]]:
        """As `ThreadSessions.begin`."""

        async def once() -> tuple[AsyncPostgreSQLConnection, list[pq.abc.PGresult]]:
            connection = await self._transactions.get()
            try:
                connection.beginning = message(connection)
                results = await connection.send(connection.beginning)
                require(connection, results)
            except BaseException:
                self._discard(connection)
                raise
            return connection, results

        try:
            return await _BEGINNINGS.arun(once)
        except psycopg.Error as error:
            raise translate(error, sent=False) from error

    def give_back(self, connection: AsyncPostgreSQLConnection) -> asyncio.Task[None] | None:
        """Take a transaction's connection back; what is open on it is rolled back meanwhile."""
        if is_clean(connection):
            self._transactions.put(connection)
            return None
        task = self._loop.create_task(self._finish(connection))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _finish(self, connection: AsyncPostgreSQLConnection) -> None:
        try:
            await finish_async(connection)
        finally:
            self._transactions.put(connection)

    def _discard(self, connection: AsyncPostgreSQLConnection) -> None:
        """Take back a connection of which nobody knows what it is in the middle of."""
        connection.finish()
        self._transactions.put(connection)

    def close(self) -> None:
        """Close all, from any thread, those in use when they come back."""
        self._transactions.close()
        self._commands.close()


def finish_sync(connection: PostgreSQLConnection) -> None:
    """End what is open on a connection, or the connection. Never raises."""
    try:
        if connection.busy and not connection.interrupt():
            return
        if not connection.closed and not is_clean(connection):
            connection.undo()
    except Exception as error:  # noqa: BLE001  # the server's own timeouts end the transaction
        log.debug("could not roll back: %s", error)
        connection.finish()


async def finish_async(connection: AsyncPostgreSQLConnection) -> None:
    """As `finish_sync`; where it is cancelled, the connection is ended."""
    try:
        if connection.busy:
            await connection.interrupt()
        if not connection.closed and not is_clean(connection):
            await connection.undo()
    except asyncio.CancelledError:
        connection.finish()
        raise
    except Exception as error:  # noqa: BLE001
        log.debug("could not roll back: %s", error)
        connection.finish()
