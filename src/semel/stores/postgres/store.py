"""Records in PostgreSQL, beside your own tables: any number of servers behind a load balancer.

An operation that is declared atomic costs one transaction, no message and no commit more than its
own: BEGIN takes an advisory lock on the key and looks it up, COMMIT carries the record. All else is
a function in the database (`sql/postgresql/migrations`), safe in READ COMMITTED: the primary key
arbitrates, and every write compares the token. Nothing here depends on a session, so pgbouncer may
stand between, in transaction mode.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psycopg

from semel.after_fork import call_after_fork
from semel.core.commands import (
    Abandoned,
    Claim,
    Complete,
    Found,
    Lookup,
    Open,
    Reply,
    Steps,
    StoreCommand,
    StoreUnavailable,
)
from semel.failpoints import failpoint
from semel.stores.base import StoreSetupError
from semel.stores.batching import Batcher
from semel.stores.postgres import commands
from semel.stores.postgres import migrations as postgres_migrations
from semel.stores.postgres.connections import (
    AGAIN,
    AsyncConnection,
    Connection,
    Connector,
    translate,
)
from semel.stores.postgres.messages import require
from semel.stores.postgres.pools import AsyncPool, Pool, is_clean
from semel.stores.postgres.transaction import (
    PostgreSQLTransaction,
    begin_message,
    finish_async,
    finish_sync,
    open_message,
    token_of,
)

__all__ = ["AsyncConnection", "Connection", "PostgreSQLStore", "PostgreSQLTransaction"]

log = logging.getLogger("semel")

OLDEST: Final = 120000
RETRIES: Final = 3
"""How often a command that the server has undone (deadlock, serialization) is given again."""
LANES: Final = (Claim, Complete, Lookup)
HARMLESS: Final = (Lookup, Steps, Abandoned)


class PostgreSQLStore:
    """`postgresql://user@host/database`.

    `url`: what libpq takes, multi-host URLs included. `pool_size`: connections of this process that
    operations may hold at a time, and as many of each event loop; claims and steps have
    `command_connections` of their own, so that they never wait for operations. `timeout`: seconds
    for a connection to be had and for a command to be answered, then `StoreUnavailable` or
    `StoreUnknown`. `idle_in_transaction`: seconds that an operation's transaction may stand still
    before the server ends it and frees its key, for processes that hang; 0 sets no bound; a handler
    that says RESET ALL lifts it. `migrate`: bring the tables up to date at the start; without it
    `start` refuses and names `semel migrate`.
    """

    name = "postgresql"
    atomic = True
    lookup_first = False
    opens = True
    expires_itself = False

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 10,
        command_connections: int = 4,
        timeout: float = 10.0,
        idle_in_transaction: float = 60.0,
        migrate: bool = True,
    ) -> None:
        if pool_size < 1 or command_connections < 1:
            raise StoreSetupError("pool_size, command_connections: give 1 or more")
        self._url = url
        self._connector = Connector(url, timeout, idle_in_transaction)
        self._idle = b"%d" % int(idle_in_transaction * 1000)
        self._pool_size = pool_size
        self._command_connections = command_connections
        self._timeout = timeout
        self._migrate = migrate
        self._forget()
        call_after_fork(self._forget)

    def _forget(self) -> None:
        """In a child process: its parent's connections are not its own; open new ones when asked.

        They are left alone, not closed: to close them would end the parent's sessions.
        """
        self._lock = threading.Lock()
        self._stopped = False
        self._inherited = getattr(self, "_sync", None), getattr(self, "_loops", None)
        self._sync: _SyncPools | None = None
        self._loops: dict[asyncio.AbstractEventLoop, _AsyncPools] = {}

    def now(self) -> float:
        """Return the server's clock."""
        found = self.execute(Lookup(bytes(16)))
        return found.now if isinstance(found, Found) else time.time()

    # --- opening and closing ---------------------------------------------------------------

    def start(self) -> None:
        """Connect, and create or migrate the tables. Raises `StoreSetupError`."""
        self._stopped = False
        try:
            with psycopg.connect(
                self._url, autocommit=True, connect_timeout=int(self._timeout) or 1
            ) as connection:
                self._check(connection)
        except psycopg.Error as error:
            raise StoreSetupError(f"{_without_password(self._url)}: {error}") from error

    def _check(self, connection: psycopg.Connection) -> None:
        if not psycopg.Pipeline.is_supported():
            raise StoreSetupError(
                f"libpq {psycopg.pq.version() // 10000} is too old; 14 or newer, or"
                " pip install 'psycopg[binary]'"
            )
        if connection.info.server_version < OLDEST:
            raise StoreSetupError(
                f"PostgreSQL {connection.info.server_version // 10000} is too old; 12 or newer"
            )
        settings: dict[str, str] = dict(
            connection.execute(
                "select name, setting from pg_settings where name in"
                " ('fsync', 'synchronous_commit', 'transaction_read_only')"
            ).fetchall()
        )
        if settings.get("transaction_read_only") == "on":
            raise StoreSetupError(
                "the server is read only, a standby: add target_session_attrs=read-write to the URL"
            )
        if settings.get("fsync") == "off" or settings.get("synchronous_commit") == "off":
            log.warning(
                "PostgreSQL: fsync=%(fsync)s, synchronous_commit=%(synchronous_commit)s: what was"
                " promised may be lost with the server's power",
                settings,
            )
        todo = postgres_migrations.missing(connection)
        if todo and not self._migrate:
            raise StoreSetupError(
                f"the database lacks Semel's migrations {todo}: run `semel migrate"
                f" {_without_password(self._url)}`"
            )
        if todo:
            postgres_migrations.migrate(connection)

    def migrate(self, lock_timeout: float = 5.0) -> list[int]:
        """Apply the migrations that the database lacks; return their numbers.

        Raises `StoreSetupError`.
        """
        try:
            with psycopg.connect(self._url, autocommit=True) as connection:
                return postgres_migrations.migrate(connection, lock_timeout)
        except psycopg.Error as error:
            raise StoreSetupError(f"{_without_password(self._url)}: {error}") from error

    def stop(self) -> None:
        """Close the connections; a command after this opens them anew only after `start`."""
        with self._lock:
            self._stopped = True
            sync, self._sync = self._sync, None
            loops, self._loops = self._loops, {}
        if sync is not None:
            sync.close()
        for pools in loops.values():
            pools.close()

    def _pools(self) -> _SyncPools:
        pools = self._sync
        if pools is None:
            with self._lock:
                if self._stopped:
                    raise StoreUnavailable("the store has been stopped")
                if self._sync is None:
                    self._sync = _SyncPools(self._configuration)
                pools = self._sync
        return pools

    def _loop_pools(self) -> _AsyncPools:
        loop = asyncio.get_running_loop()
        pools = self._loops.get(loop)
        if pools is None:
            with self._lock:
                if self._stopped:
                    raise StoreUnavailable("the store has been stopped")
                for gone in [other for other in self._loops if other.is_closed()]:
                    del self._loops[gone]
                pools = self._loops[loop] = _AsyncPools(self._configuration)
        return pools

    @property
    def _configuration(self) -> _Configuration:
        return _Configuration(
            self._connector, self._pool_size, self._command_connections, self._timeout
        )

    # --- commands --------------------------------------------------------------------------

    def execute(self, command: StoreCommand) -> Reply:
        """Carry out one command, straight."""
        pools = self._pools()
        statement, parameters = commands.statement(command)
        for attempt in range(RETRIES + 1):
            connection = pools.commands.get()
            try:
                cursor = connection.execute(statement, parameters, binary=True)
                return commands.reply(command, cursor.fetchall())
            except psycopg.Error as error:
                if not _again(command, error, attempt):
                    raise translate(error, sent=not isinstance(command, HARMLESS)) from error
                time.sleep(_pause(attempt))
            finally:
                finish_sync(connection)
                pools.commands.put(connection)
        raise AssertionError

    async def aexecute(self, command: StoreCommand) -> Reply:
        """Carry out one command; claims, completions and look-ups of a moment go together."""
        pools = self._loop_pools()
        lane = pools.lanes.get(type(command))
        if lane is not None:
            reply: Reply = await lane.ask(command)
            return reply
        statement, parameters = commands.statement(command)
        rows = await pools.run(command, statement, parameters)
        return commands.reply(command, rows)

    # --- atomic ----------------------------------------------------------------------------

    def begin(self) -> PostgreSQLTransaction:
        """Begin a transaction beside a claim that is a record."""
        pools = self._pools()
        for last in (False, True):
            connection = pools.transactions.get()
            try:
                message = begin_message(connection, self._idle)
                require(connection, connection.send(message))
            except BaseException as error:  # noqa: BLE001  # raised again, unless harmless
                pools.discard(connection)
                _raise_unless_stale(error, last)
                continue
            failpoint("after_begin")
            connection.limit = None
            return PostgreSQLTransaction(connection, pools.give_back)
        raise AssertionError

    async def abegin(self) -> PostgreSQLTransaction:
        """As `begin`, without blocking the event loop."""
        pools = self._loop_pools()
        for last in (False, True):
            connection = await pools.transactions.get()
            try:
                message = begin_message(connection, self._idle)
                require(connection, await connection.send(message))
            except BaseException as error:  # noqa: BLE001  # raised again, unless harmless
                pools.discard(connection)
                _raise_unless_stale(error, last)
                continue
            failpoint("after_begin")
            connection.limit = None
            return PostgreSQLTransaction(connection, pools.give_back)
        raise AssertionError

    def open(self, command: Open) -> PostgreSQLTransaction | Found | None:
        """Begin a transaction that is the claim."""
        pools = self._pools()
        for last in (False, True):
            connection = pools.transactions.get()
            try:
                message = open_message(connection, command, self._idle)
                told = token_of(connection, connection.send(message))
            except BaseException as error:  # noqa: BLE001  # raised again, unless harmless
                pools.discard(connection)
                _raise_unless_stale(error, last)
                continue
            if told:
                failpoint("after_begin")
                connection.limit = None
                return PostgreSQLTransaction(connection, pools.give_back, command, told)
            pools.give_back(connection)
            return self.execute(Lookup(command.key)) if told == 0 else None  # type: ignore[return-value]
        raise AssertionError

    async def aopen(self, command: Open) -> PostgreSQLTransaction | Found | None:
        """As `open`, without blocking the event loop."""
        pools = self._loop_pools()
        for last in (False, True):
            connection = await pools.transactions.get()
            try:
                message = open_message(connection, command, self._idle)
                told = token_of(connection, await connection.send(message))
            except BaseException as error:  # noqa: BLE001  # raised again, unless harmless
                pools.discard(connection)
                _raise_unless_stale(error, last)
                continue
            if told:
                failpoint("after_begin")
                connection.limit = None
                return PostgreSQLTransaction(connection, pools.give_back, command, told)
            pools.give_back(connection)
            return await self.aexecute(Lookup(command.key)) if told == 0 else None  # type: ignore[return-value]
        raise AssertionError


def _raise_unless_stale(error: BaseException, last: bool) -> None:
    """Beginning changes nothing: a connection that had gone stale in the pool is tried anew."""
    if isinstance(error, psycopg.OperationalError) and not last:
        return
    if isinstance(error, psycopg.Error):
        raise translate(error, sent=False) from error
    raise error


def _again(command: StoreCommand, error: psycopg.Error, attempt: int) -> bool:
    if attempt == RETRIES:
        return False
    stale = isinstance(error, psycopg.OperationalError) and error.sqlstate is None
    return error.sqlstate in AGAIN or (stale and isinstance(command, HARMLESS))


def _pause(attempt: int) -> float:
    return random.uniform(0.002, 0.02) * (1 << attempt)  # apart, not secret


class _Configuration(NamedTuple):
    """How connections are made, and how many."""

    connector: Connector
    size: int
    for_commands: int
    timeout: float


class _SyncPools:
    """The connections of this process's threads."""

    def __init__(self, made: _Configuration) -> None:
        connect = made.connector.connect
        self.transactions = Pool(partial(connect, prepares=True), made.size, made.timeout)
        self.commands = Pool(connect, made.for_commands, made.timeout)

    def give_back(self, connection: Connection) -> None:
        """Take a transaction's connection back, clean."""
        loop = asyncio._get_running_loop()
        if loop is not None and not is_clean(connection):
            # A plain handler's, whose operation ends on an event loop.
            loop.run_in_executor(None, self._finish, connection)
        else:
            self._finish(connection)

    def _finish(self, connection: Connection) -> None:
        finish_sync(connection)
        self.transactions.put(connection)

    def discard(self, connection: Connection) -> None:
        """Take back a connection of which nobody knows what it is in the middle of."""
        connection.finish()
        self.transactions.put(connection)

    def close(self) -> None:
        """Close all, those in use when they come back."""
        self.transactions.close()
        self.commands.close()


class _AsyncPools:
    """The connections of one event loop, and its lanes."""

    def __init__(self, made: _Configuration) -> None:
        self._loop = asyncio.get_running_loop()
        self._ending: set[asyncio.Task[None]] = set()
        connect = made.connector.aconnect
        self.transactions = AsyncPool(partial(connect, prepares=True), made.size, made.timeout)
        self.commands = AsyncPool(connect, made.for_commands, made.timeout)
        self.lanes: dict[type, Batcher] = {kind: Batcher(self._loop, self._send) for kind in LANES}

    async def _send(self, batch: Sequence[Any]) -> list[Any]:
        statement, parameters = commands.batch(batch)
        return list(commands.replies(batch, await self.run(batch[0], statement, parameters)))

    async def run(
        self, command: StoreCommand, statement: str, parameters: Sequence[Any]
    ) -> commands.Rows:
        """Run a statement that is a whole transaction. Raises `StoreError`."""
        for attempt in range(RETRIES + 1):
            connection = await self.commands.get()
            try:
                cursor = await connection.execute(statement, parameters, binary=True)
                rows: commands.Rows = await cursor.fetchall()
                return rows
            except psycopg.Error as error:
                if not _again(command, error, attempt):
                    raise translate(error, sent=not isinstance(command, HARMLESS)) from error
                await asyncio.sleep(_pause(attempt))
            except BaseException:  # cancelled in the middle of an answer
                connection.finish()
                raise
            finally:
                self.commands.put(connection)
        raise AssertionError

    def give_back(self, connection: AsyncConnection) -> None:
        """Take a transaction's connection back; what is open on it is rolled back meanwhile."""
        if connection.closed or is_clean(connection):
            self.transactions.put(connection)
            return
        task = self._loop.create_task(self._finish(connection))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _finish(self, connection: AsyncConnection) -> None:
        try:
            await finish_async(connection)
        finally:
            self.transactions.put(connection)

    def discard(self, connection: AsyncConnection) -> None:
        """Take back a connection of which nobody knows what it is in the middle of."""
        connection.finish()
        self.transactions.put(connection)

    def close(self) -> None:
        """Close all, from any thread, those in use when they come back."""
        self.transactions.close()
        self.commands.close()


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")))
