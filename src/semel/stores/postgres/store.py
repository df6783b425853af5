"""The store of records in PostgreSQL, beside your own tables, for any number of servers.

An operation that is declared atomic costs one transaction, no message and no commit more than its
own: BEGIN takes an advisory lock on the key and looks it up, COMMIT carries the record. All else is
a function in the database (`sql/migrations`), safe in READ COMMITTED: the primary key
arbitrates, and every write compares the token. Nothing here depends on a session, so pgbouncer may
stand between, in transaction mode.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import psycopg

from semel.after_fork import call_after_fork
from semel.core.commands import Found, Lookup, Open, Reply, StoreCommand, StoreUnavailable
from semel.failpoints import failpoint
from semel.stores.base import StoreSetupError
from semel.stores.per_loop import PerLoop
from semel.stores.postgres import commands
from semel.stores.postgres import migrations as postgres_migrations
from semel.stores.postgres.connections import Connector
from semel.stores.postgres.lent import token_of
from semel.stores.postgres.sessions import LoopSessions, SessionSettings, ThreadSessions
from semel.stores.postgres.transaction import (
    PostgreSQLTransaction,
    begin_message,
    open_message,
)

__all__ = ["PostgreSQLStore"]

log = logging.getLogger("semel")

OLDEST: Final = 120000


class PostgreSQLStore:
    """`postgresql://user@host/database`.

    `url`: what libpq takes, multi-host URLs included. `pool_size`: connections of this process that
    operations may hold at a time, and as many of each event loop; claims and steps have
    `command_connections` of their own, so that they never wait for operations. `timeout`: seconds
    for a connection to be had and for a reply to a command, then `StoreUnavailable` or
    `StoreUnknown`. `idle_in_transaction`: seconds that an operation's transaction may stand still
    before the server ends it and frees its key, for processes that hang; 0 sets no bound; a handler
    that says RESET ALL lifts it for its operation. `migrate`: bring the tables up to date at the
    start; without it `start` refuses and names `semel migrate`.
    """

    name = "postgresql"
    atomic = True
    lookup_first = False
    opens = True
    expires_itself = False
    file = None

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
        connector = Connector(url, timeout, idle_in_transaction)
        self._settings = SessionSettings(connector, pool_size, command_connections, timeout)
        self._idle = b"%d" % int(idle_in_transaction * 1000)
        self._timeout = timeout
        self._migrate = migrate
        self._forget()
        call_after_fork(self._forget)

    def for_a_thread(self) -> PostgreSQLStore:
        """Return a store of the same database; see `store_for_a_thread`."""
        return PostgreSQLStore(
            self._url, pool_size=1, command_connections=1, timeout=self._timeout, migrate=False
        )

    def _forget(self) -> None:
        """In a child process: its parent's connections are not its own; open new ones when asked.

        They are left alone, not closed: to close them would end the parent's sessions.
        """
        self._lock = threading.Lock()
        self._stopped = False
        self._inherited = getattr(self, "_sync", None), getattr(self, "_loops", None)
        self._sync: ThreadSessions | None = None
        self._loops = PerLoop(self._new_loop)

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
        postgres_migrations.refuse_foreign_tables(connection)
        todo = postgres_migrations.missing(connection)
        if todo and not self._migrate:
            raise StoreSetupError(
                f"the database lacks Semel's migrations {todo}: run `semel migrate"
                f" {_without_password(self._url)}`"
            )
        if todo:
            postgres_migrations.migrate(connection)
        postgres_migrations.require_all_columns(connection)

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
        if sync is not None:
            sync.close()
        for sessions in self._loops.pop_all().values():
            sessions.close()

    def _threads(self) -> ThreadSessions:
        sessions = self._sync
        if sessions is None:
            with self._lock:
                self._refuse_stopped()
                if self._sync is None:
                    self._sync = ThreadSessions(self._settings)
                sessions = self._sync
        return sessions

    def _new_loop(self, loop: asyncio.AbstractEventLoop) -> LoopSessions:
        self._refuse_stopped()
        return LoopSessions(loop, self._settings)

    def _refuse_stopped(self) -> None:
        if self._stopped:
            raise StoreUnavailable("the store has been stopped")

    # --- commands --------------------------------------------------------------------------

    def execute(self, command: StoreCommand) -> Reply:
        """Carry out one command at once."""
        statement, parameters = commands.statement(command)
        return commands.reply(command, self._threads().run(command, statement, parameters))

    async def aexecute(self, command: StoreCommand) -> Reply:
        """Carry out one command; claims, completions and look-ups are sent in batches."""
        sessions = self._loops.get()
        batcher = sessions.batchers.get(type(command))
        if batcher is not None:
            reply: Reply = await batcher.ask(command)
            return reply
        statement, parameters = commands.statement(command)
        return commands.reply(command, await sessions.run(command, statement, parameters))

    # --- atomic ----------------------------------------------------------------------------

    def begin(self) -> PostgreSQLTransaction:
        """Begin a transaction beside a claim that is a record."""
        sessions = self._threads()
        connection, _ = sessions.begin(lambda made: begin_message(made, self._idle))
        failpoint("after_begin")
        return PostgreSQLTransaction(connection, sessions.give_back)

    async def abegin(self) -> PostgreSQLTransaction:
        """As `begin`, without blocking the event loop."""
        sessions = self._loops.get()
        connection, _ = await sessions.begin(lambda made: begin_message(made, self._idle))
        failpoint("after_begin")
        return PostgreSQLTransaction(connection, sessions.give_back)

    def open(self, command: Open) -> PostgreSQLTransaction | Found | None:
        """Begin a transaction that is the claim."""
        sessions = self._threads()
        connection, results = sessions.begin(lambda made: open_message(made, command, self._idle))
        token = token_of(results)
        if token:
            failpoint("after_begin")
            return PostgreSQLTransaction(connection, sessions.give_back, command, token)
        sessions.give_back(connection)
        return self.execute(Lookup(command.key)) if token == 0 else None  # type: ignore[return-value]

    async def aopen(self, command: Open) -> PostgreSQLTransaction | Found | None:
        """As `open`, without blocking the event loop."""
        sessions = self._loops.get()
        connection, results = await sessions.begin(
            lambda made: open_message(made, command, self._idle)
        )
        token = token_of(results)
        if token:
            failpoint("after_begin")
            return PostgreSQLTransaction(connection, sessions.give_back, command, token)
        sessions.give_back(connection)
        return await self.aexecute(Lookup(command.key)) if token == 0 else None  # type: ignore[return-value]


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")))
