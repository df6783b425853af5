"""Records in a database that Django knows: PostgreSQL, MariaDB, MySQL or SQLite.

Commands go through a few connections of the store's own, so that no rollback of a view takes a
claim or a recorded step with it. The operation itself runs inside `transaction.atomic()` on the
thread's own connection; its record is completed in that transaction, under its fencing token.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NoReturn

try:
    from asgiref.sync import sync_to_async
    from django.db import Error, connections
except ImportError as error:  # pragma: no cover
    raise ImportError("DjangoStore needs Django: pip install 'semel[django]'") from error

from semel.after_fork import call_after_fork
from semel.core.commands import (
    Abandoned,
    ForgetStep,
    Lookup,
    Open,
    Recorded,
    RecordStep,
    Reply,
    Steps,
    StoreCommand,
    StoreUnavailable,
)
from semel.stores.base import StoreSetupError
from semel.stores.django.commands import DjangoCommands
from semel.stores.django.connections import Lanes, testing, translate, undone, works_on_snapshot
from semel.stores.django.transaction import DjangoTransaction
from semel.stores.sqlite.steps import SQLiteSteps

log = logging.getLogger("semel")

SNAPSHOT: Final = (
    "DjangoStore(%r): its transactions see a snapshot, so an operation that takes longer than a"
    " third of its lease never commits: its claim has been renewed since, and is no longer what the"
    " snapshot shows. Use READ COMMITTED, or raise the lease"
)
RETRIES: Final = 3
"""How often a command that the database has undone (deadlock, serialization) is given again."""
HARMLESS: Final = (Lookup, Steps, Abandoned)
VENDORS: Final = ("postgresql", "mysql", "sqlite")


class DjangoStore(DjangoCommands):
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
        super().__init__(clock)
        self.alias = alias
        self._size = command_connections
        self._timeout = timeout
        self._forget()
        call_after_fork(self._forget)

    def _forget(self) -> None:
        """In a child process: its parent's connections are not its own, and not its to close."""
        self._inherited = getattr(self, "_lanes", None), getattr(self, "_steps", None)
        self._lock = threading.Lock()
        self._stopped = False
        self._lanes: Lanes | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._steps: SQLiteSteps | None = None

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
        if vendor not in VENDORS:
            raise StoreSetupError(f"DjangoStore works on {', '.join(VENDORS)}, not on {vendor}")
        try:
            self.execute(Lookup(bytes(16)))
            self.execute(Steps(bytes(16)))
            if testing(self.alias) is None:
                with self._opened()[0].take() as connection:
                    if works_on_snapshot(connection):
                        log.warning(SNAPSHOT, self.alias)
        except (StoreUnavailable, Error) as error:
            raise StoreSetupError(
                f"DjangoStore({self.alias!r}): {error}. Its tables are made by `manage.py migrate`,"
                " with 'semel.web.django' in INSTALLED_APPS"
            ) from error

    def stop(self) -> None:
        """Close the store's own connections; Django's stay."""
        with self._lock:
            self._stopped = True
            lanes, self._lanes = self._lanes, None
            threads, self._threads = self._threads, None
            steps, self._steps = self._steps, None
        if threads is not None:
            threads.shutdown(wait=False)
        if lanes is not None:
            lanes.close()
        if steps is not None:
            steps.close()

    def _opened(self) -> tuple[Lanes, ThreadPoolExecutor]:
        with self._lock:
            if self._stopped:
                raise StoreUnavailable("the store has been stopped")
            if self._lanes is None or self._threads is None:
                self._lanes = Lanes(self.alias, self._size, self._timeout)
                self._threads = ThreadPoolExecutor(self._size, "semel-django")
            return self._lanes, self._threads

    # --- commands --------------------------------------------------------------------------

    def execute(self, command: StoreCommand) -> Reply:
        """Carry out one command on a connection of the store's own."""
        held = testing(self.alias)
        if held is not None:
            try:
                return self.apply(held, command)
            except Error as error:
                raise translate(error, sent=True) from error
        lanes, _ = self._opened()
        for attempt in range(RETRIES + 1):
            try:
                with lanes.take() as connection:
                    return self.apply(connection, command)
            except Error as error:
                harmless = isinstance(command, HARMLESS)
                if attempt == RETRIES or not (undone(error) or harmless):
                    raise translate(error, sent=not harmless) from error
                time.sleep(random.uniform(0.002, 0.02) * (1 << attempt))  # apart, not secret
        raise AssertionError

    async def aexecute(self, command: StoreCommand) -> Reply:
        """Carry out one command on a thread of the store's own; Django's connections are sync."""
        if await _tests_on_this_loop(self.alias):
            return await sync_to_async(self.execute, thread_sensitive=True)(command)
        _, threads = self._opened()
        run = functools.partial(self.execute, command)
        return await asyncio.get_running_loop().run_in_executor(threads, run)

    # --- steps on SQLite -------------------------------------------------------------------
    # It has one writer: a step inside the view's open transaction would wait for that very view, so
    # steps have a file beside the database.

    def _file(self, connection: Any) -> SQLiteSteps | None:
        if connection.vendor != "sqlite" or connection.in_atomic_block:
            return None
        with self._lock:
            if self._steps is None:
                path = Path(connection.settings_dict["NAME"]).absolute()
                self._steps = SQLiteSteps(path, "full", self._timeout, self.now)
            return self._steps

    def _read_steps(self, connection: Any, key: bytes) -> dict[str, bytes | None]:
        file = self._file(connection)
        return file.read(Steps(key)) if file else super()._read_steps(connection, key)

    def _record_step(self, connection: Any, command: RecordStep) -> Recorded | None:
        file = self._file(connection)
        if file is None:
            return super()._record_step(connection, command)
        held = self._holds(connection, command.key, command.token)
        return file.record(command) if held else None

    def _forget_step(self, connection: Any, command: ForgetStep) -> bool:
        file = self._file(connection)
        if file is None:
            return super()._forget_step(connection, command)
        return self._holds(connection, command.key, command.token) and file.forget(command)

    def _forget_steps(self, connection: Any, key: bytes) -> None:
        file = self._file(connection)
        if file is None:
            super()._forget_steps(connection, key)
        else:
            file.forget_over(key)

    def _forget_unsure(self, connection: Any, key: bytes) -> None:
        file = self._file(connection)
        if file is None:
            super()._forget_unsure(connection, key)
        else:
            file.forget_unsure(key)

    def _sweep_steps(self, connection: Any, limit: int) -> int:
        file = self._file(connection)
        if file is None:
            return super()._sweep_steps(connection, limit)
        return file.sweep(limit, lambda key: self._found(connection, key))

    # --- atomic ----------------------------------------------------------------------------

    def begin(self) -> DjangoTransaction:
        """Begin `atomic()` on this thread's connection. Raises `StoreUnavailable`."""
        return DjangoTransaction(self.alias, self)

    async def abegin(self) -> DjangoTransaction:
        """As `begin`, on the thread that the ORM of this async code runs on."""
        return await sync_to_async(self.begin, thread_sensitive=True)()

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
