"""Records in a database that Django knows: PostgreSQL, MariaDB, MySQL or SQLite.

Commands go through a few connections of the store's own, so that no rollback of a view takes a
claim or a recorded step with it. The operation itself runs inside `transaction.atomic()` on the
thread's own connection; its record is completed in that transaction, under its fencing token.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

try:
    from asgiref.sync import sync_to_async
    from django.db import Error, connections
except ImportError as error:  # pragma: no cover
    raise ImportError("DjangoStore needs Django: pip install 'semel[django]'") from error

from semel.after_fork import call_after_fork
from semel.core.commands import (
    Complete,
    Lookup,
    Open,
    Reply,
    Steps,
    StoreCommand,
    StoreUnavailable,
)
from semel.stores.base import StoreSetupError
from semel.stores.django.connection import (
    PARAMSTYLE,
    DjangoConnection,
    dialect_of,
    testing,
    works_on_snapshot,
)
from semel.stores.django.errors import translate, undone
from semel.stores.django.pool import ConnectionPool
from semel.stores.django.transaction import DjangoTransaction
from semel.stores.portable.commands import READS, PortableCommands
from semel.stores.portable.dialects import DIALECTS
from semel.stores.portable.schema import PortableSchema
from semel.stores.portable.steps_file import execute_with_steps
from semel.stores.retry import CommandRetry
from semel.stores.sqlite.steps import SQLiteSteps

log = logging.getLogger("semel")

SNAPSHOT: Final = (
    "DjangoStore(%r): its transactions see a snapshot, so an operation that takes longer than a"
    " third of its lease never commits: its claim has been renewed since, and is no longer what the"
    " snapshot shows. Use READ COMMITTED, or raise the lease"
)


class _Opened(NamedTuple):
    """The store's own resources in one process."""

    pool: ConnectionPool
    threads: ThreadPoolExecutor
    steps: SQLiteSteps | None
    """SQLite has one writer: there the steps live in a file beside the database."""


class DjangoStore:
    """`DjangoStore("default")`: the tables of the app `semel.web.django` in `connections[alias]`.

    `command_connections`: connections of this process beside Django's own, for claims, renewals and
    steps. `timeout`: seconds to wait for one of them. `clock` gives seconds since the epoch in the
    place of the database's clock; for tests.

    Inside a `django.test.TestCase` everything goes through the test's own connection.
    """

    name = "django"
    atomic = True
    lookup_first = False
    opens = False
    expires_itself = False

    def __init__(
        self,
        alias: str = "default",
        *,
        command_connections: int = 4,
        timeout: float = 10.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if command_connections < 1:
            raise StoreSetupError("command_connections: give 1 or more")
        self.alias = alias
        self._clock = clock
        self._commands: dict[tuple[str, str], PortableCommands] = {}
        self._size = command_connections
        self._timeout = timeout
        self._forget()
        call_after_fork(self._forget)

    def _forget(self) -> None:
        """In a child process: its parent's connections are not its own, and not its to close."""
        self._inherited = getattr(self, "_open", None)
        self._lock = threading.Lock()
        self._stopped = False
        self._open: _Opened | None = None

    @property
    def file(self) -> Path | None:
        """SQLite's file; other databases have many writers."""
        if self.alias not in connections:  # said at the start, and by Django's checks
            return None
        connection = connections[self.alias]
        if connection.vendor != "sqlite":
            return None
        return Path(connection.settings_dict["NAME"]).resolve()

    def now(self) -> float:
        """Return this machine's time; the database's goes with what is read from it."""
        return self._clock() if self._clock is not None else time.time()

    # --- opening and closing ---------------------------------------------------------------

    def start(self) -> None:
        """Check that the database can be used and is migrated. Raises `StoreSetupError`."""
        if self.alias not in connections:
            raise StoreSetupError(
                f"DjangoStore({self.alias!r}): DATABASES has {', '.join(connections)}"
            )
        self._stopped = False
        vendor = connections[self.alias].vendor
        if vendor not in DIALECTS:
            raise StoreSetupError(f"DjangoStore works on {', '.join(DIALECTS)}, not on {vendor}")
        try:
            lacking = self._checked()
            if not lacking:
                self.execute(Lookup(bytes(16)))
                self.execute(Steps(bytes(16)))
        except (StoreUnavailable, Error) as error:
            raise StoreSetupError(f"DjangoStore({self.alias!r}): {error}") from error
        if lacking:
            raise StoreSetupError(
                f"DjangoStore({self.alias!r}): the database lacks {', '.join(lacking)}: run"
                f" `manage.py migrate --database {self.alias}`, with 'semel.web.django' in"
                " INSTALLED_APPS, and where that has nothing to apply `manage.py semel migrate"
                f" --database {self.alias}`"
            )

    def _checked(self) -> list[str]:
        """Look at the tables and the way of transactions; return what the tables lack."""
        held = testing(self.alias)
        if held is not None:
            return _schema(held).check(DjangoConnection(held))
        with self._opened().pool.take() as connection:
            if works_on_snapshot(connection):
                log.warning(SNAPSHOT, self.alias)
            return _schema(connection).check(DjangoConnection(connection))

    def stop(self) -> None:
        """Close the store's own connections; Django's stay."""
        with self._lock:
            self._stopped = True
            open_, self._open = self._open, None
        if open_ is not None:
            open_.threads.shutdown(wait=False)
            open_.pool.close()
            if open_.steps is not None:
                open_.steps.close()

    def _opened(self) -> _Opened:
        with self._lock:
            if self._stopped:
                raise StoreUnavailable("the store has been stopped")
            if self._open is None:
                self._open = _Opened(
                    ConnectionPool(self.alias, self._size, self._timeout),
                    ThreadPoolExecutor(self._size, "semel-django"),
                    self._steps_beside(),
                )
            return self._open

    def _steps_beside(self) -> SQLiteSteps | None:
        connection = connections[self.alias]
        if connection.vendor != "sqlite":
            return None
        path = Path(connection.settings_dict["NAME"]).absolute()
        return SQLiteSteps(path, "full", self._timeout, self.now)

    # --- commands --------------------------------------------------------------------------

    def execute(self, command: StoreCommand) -> Reply:
        """Carry out one command on a connection of the store's own."""
        held = testing(self.alias)
        if held is not None:
            try:
                return self.apply(held, command)
            except Error as error:
                raise translate(error, sent=True) from error
        steps = self._opened().steps
        if steps is not None:
            return execute_with_steps(steps, command, self._carry_out)
        return self._carry_out(command)

    def apply(
        self, connection: Any, command: StoreCommand, steps: SQLiteSteps | None = None
    ) -> Reply:
        """Carry out one command on one of Django's connections. Raises Django's errors."""
        forget = steps.forget_unsure if steps is not None else None
        return self._commands_on(connection).apply(DjangoConnection(connection), command, forget)

    def _carry_out(self, command: StoreCommand) -> Reply:
        opened = self._opened()
        harmless = isinstance(command, READS)

        def again(error: Exception) -> bool:
            return isinstance(error, Error) and (harmless or undone(error))

        def attempt() -> Reply:
            with opened.pool.take() as connection:
                return self.apply(connection, command, opened.steps)

        try:
            return CommandRetry(again).run(attempt)
        except Error as error:
            raise translate(error, sent=not harmless) from error

    def _commands_on(self, connection: Any) -> PortableCommands:
        dialect = dialect_of(connection)
        known = dialect.name, dialect.skip_locked
        commands = self._commands.get(known)
        if commands is None:
            commands = PortableCommands(dialect, PARAMSTYLE, self._clock)
            self._commands[known] = commands
        return commands

    async def aexecute(self, command: StoreCommand) -> Reply:
        """Carry out one command on a thread of the store's own; Django's connections are sync."""
        if await _tests_on_this_loop(self.alias):
            return await sync_to_async(self.execute, thread_sensitive=True)(command)
        threads = self._opened().threads
        run = functools.partial(self.execute, command)
        return await asyncio.get_running_loop().run_in_executor(threads, run)

    # --- atomic ----------------------------------------------------------------------------

    def begin(self) -> DjangoTransaction:
        """Begin `atomic()` on this thread's connection. Raises `StoreUnavailable`."""
        return DjangoTransaction(self.alias, self._complete)

    async def abegin(self) -> DjangoTransaction:
        """As `begin`, on the thread that the ORM of this async code runs on."""
        return await sync_to_async(self.begin, thread_sensitive=True)()

    def _complete(self, connection: Any, command: Complete) -> bool:
        return self._commands_on(connection).complete(DjangoConnection(connection), command)

    def open(self, command: Open) -> NoReturn:
        """Refuse: an operation and its claim have a connection each."""
        raise StoreSetupError("DjangoStore claims in a transaction of its own")

    async def aopen(self, command: Open) -> NoReturn:
        """Refuse, as `open` does."""
        self.open(command)


async def _tests_on_this_loop(alias: str) -> bool:
    """Whether the thread of this loop's sync code is a test's, with the test's transaction."""
    if "django.test.testcases" not in sys.modules:
        return False
    return await sync_to_async(testing, thread_sensitive=True)(alias) is not None


def _schema(connection: Any) -> PortableSchema:
    return PortableSchema(dialect_of(connection), PARAMSTYLE)
