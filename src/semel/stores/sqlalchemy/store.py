"""Records through your own SQLAlchemy engine, beside your own tables: one transaction for both.

PostgreSQL, MySQL and MariaDB (InnoDB), SQLite; `Engine` for plain handlers, `AsyncEngine` for async
ones. A claim is a row with a lease; `op.session()` is a session of the transaction whose commit
carries the record.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

try:
    from sqlalchemy import event
    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.exc import IntegrityError
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, async_sessionmaker
    from sqlalchemy.orm import sessionmaker
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "SQLAlchemyStore needs SQLAlchemy 2: pip install 'semel[sqlalchemy]'"
    ) from error

from semel.after_fork import call_after_fork
from semel.core.commands import (
    Abandoned,
    Claim,
    ForgetStep,
    Found,
    Lookup,
    Open,
    RecordStep,
    Reply,
    Steps,
    StoreCommand,
    StoreUnavailable,
    Sweep,
)
from semel.failpoints import failpoint
from semel.stores.base import StoreSetupError
from semel.stores.sqlalchemy import tables as sqlalchemy_tables
from semel.stores.sqlalchemy.commands import CLOCKS, SQLAlchemyCommands
from semel.stores.sqlalchemy.errors import FAILURES, again, translate
from semel.stores.sqlalchemy.tables import MYSQL, metadata
from semel.stores.sqlalchemy.transaction import (
    NEEDS_ASYNC,
    NEEDS_SYNC,
    AsyncSQLAlchemyTransaction,
    SQLAlchemyTransaction,
    begin,
    begin_immediate,
)
from semel.stores.sqlite.steps import SQLiteSteps

__all__ = ["SQLAlchemyStore", "metadata"]

RETRIES: Final = 3
"""How often a transaction that the database has undone (deadlock, serialization) is given again."""
COMMANDS_AT_ONCE: Final = 16
"""Threads that carry out commands for event loops, where the engine is a sync one."""
READS: Final = (Lookup, Steps, Abandoned)

log = logging.getLogger("semel")

T = TypeVar("T")


class SQLAlchemyStore:
    """`SQLAlchemyStore(create_engine(url))` or `SQLAlchemyStore(create_async_engine(url))`.

    `engine`: what your own tables are reached by. An operation's transaction takes one of its
    connections; claims and steps take theirs from a second pool of the same make and size, so that
    they never wait for operations. `sessions`: your `sessionmaker` or `async_sessionmaker`, for
    `op.session()`; without it SQLAlchemy's defaults, and `expire_on_commit=False` where async.
    `create_tables`: create the tables at the start; without it `start` refuses where they are
    missing (`semel.stores.sqlalchemy.metadata` is for Alembic). `timeout`: seconds for a command
    on an `AsyncEngine`; a sync driver has timeouts of its own, to be given to `create_engine`.
    `clock` gives seconds in the place of the database's clock, for tests.

    With a sync `Engine`, async handlers are protected too, but have no `op.session()`; with an
    `AsyncEngine`, plain ones. Raises `StoreSetupError` for an engine it cannot use.
    """

    name = "sqlalchemy"
    atomic = True
    lookup_first = False
    opens = False
    expires_itself = False

    def __init__(
        self,
        engine: Engine | AsyncEngine,
        *,
        sessions: sessionmaker[Any] | async_sessionmaker[Any] | None = None,
        create_tables: bool = True,
        timeout: float = 10.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if not isinstance(engine, (Engine, AsyncEngine)):
            raise StoreSetupError(
                f"engine: give create_engine(…) or create_async_engine(…), not {engine!r}"
            )
        wanted = async_sessionmaker if isinstance(engine, AsyncEngine) else sessionmaker
        if sessions is not None and not isinstance(sessions, wanted):
            raise StoreSetupError(f"sessions: give a {wanted.__name__} for this engine")
        if engine.dialect.name not in CLOCKS:
            raise StoreSetupError(
                f"{engine.dialect.name!r} is not known: PostgreSQL, MySQL, MariaDB and SQLite are"
            )
        self._engine = engine
        self._sync_engine = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        levels = (
            self._sync_engine.get_execution_options().get("isolation_level"),
            getattr(engine.dialect, "_on_connect_isolation_level", None),  # create_engine's
        )
        if "AUTOCOMMIT" in levels:
            raise StoreSetupError(
                "an engine in AUTOCOMMIT has no transaction for your writes and the record to"
                " share: give one without it"
            )
        self._sessions = sessions
        self._create_tables = create_tables
        self._timeout = timeout
        self._clock = clock
        self._sqlite = engine.dialect.name == "sqlite"
        self._commands = SQLAlchemyCommands(engine.dialect.name, clock)
        self._steps: SQLiteSteps | None = None
        """SQLite has one writer: there the steps live in a file beside the database."""
        self._started = False
        self._ending: set[asyncio.Task[None]] = set()
        self._open_pools()
        call_after_fork(self._forked)

    def _open_pools(self) -> None:
        self._lock = threading.Lock()
        self._beside = ThreadPoolExecutor(COMMANDS_AT_ONCE, thread_name_prefix="semel-commands")
        """For async handlers on a sync engine. Of its own: what ends an operation must not queue
        behind claims that wait for just that end."""
        self._threads: Engine | None = None
        self._loops: dict[asyncio.AbstractEventLoop, AsyncEngine] = {}

    def _forked(self) -> None:
        """In a child process: its parent's connections are not its own, and are left alone."""
        self._inherited = self._threads, self._loops, self._steps
        self._sync_engine.dispose(close=False)
        if self._steps is not None:
            self._steps = self._steps.anew()
        self._open_pools()

    def now(self) -> float:
        """Return the database's clock."""
        found = self.execute(Lookup(bytes(16)))
        return found.now if isinstance(found, Found) else time.time()

    # --- opening and closing ---------------------------------------------------------------

    def start(self) -> None:
        """Connect, and create the tables where they are missing. Raises `StoreSetupError`."""
        self._started = True
        try:
            if isinstance(self._engine, AsyncEngine):
                _apart(self._astart)
            else:
                with self._command_engine().connect() as connection:
                    self._set_up(connection)
        except FAILURES as error:
            raise StoreSetupError(f"{self._engine.url!r}: {error}") from error

    async def _astart(self) -> None:
        try:
            async with self._loop_engine().connect() as connection:
                await connection.run_sync(self._set_up)
        finally:
            await self._close_loop()

    def _set_up(self, connection: Connection) -> None:
        _check_server(connection)
        self._warn_of_snapshots(connection)
        if self._sqlite:
            self._steps = self._steps_beside(connection)
        for last in (False, False, True):
            lacking = sqlalchemy_tables.missing(connection)
            connection.rollback()
            if not lacking:
                return
            if not self._create_tables:
                names = ", ".join(sorted(str(one.name) for one in lacking))
                raise StoreSetupError(
                    f"{self._engine.url!r} lacks {names}: run your Alembic migration with"
                    " semel.stores.sqlalchemy.metadata in its target_metadata, or say"
                    " create_tables=True"
                )
            try:
                if self._sqlite:
                    begin_immediate(connection)
                sqlalchemy_tables.create(connection)
                connection.commit()
            except FAILURES:  # another process is creating them
                connection.rollback()
                if last:
                    raise
                time.sleep(_pause(3))

    def _warn_of_snapshots(self, connection: Connection) -> None:
        dialect = self._sync_engine.dialect
        chosen = self._sync_engine.get_execution_options().get("isolation_level")
        level = chosen or getattr(dialect, "_on_connect_isolation_level", None)
        level = level or connection.dialect.default_isolation_level
        snapshots = dialect.name == "postgresql" and level in ("REPEATABLE READ", "SERIALIZABLE")
        if dialect.name in MYSQL and getattr(dialect, "is_mariadb", False):
            row = connection.exec_driver_sql("show variables like 'innodb_snapshot_isolation'")
            snapshots = level != "READ COMMITTED" and any(on == "ON" for _, on in row)
            connection.rollback()
        if snapshots:
            log.warning(
                "operations run at %s: one that takes longer than a third of its lease can never"
                " commit, for its renewal comes after its snapshot; raise Policy(lease=…), or use"
                " READ COMMITTED",
                level,
            )

    def _steps_beside(self, connection: Connection) -> SQLiteSteps:
        files = connection.exec_driver_sql("pragma database_list").all()
        path = next((file for _, name, file in files if name == "main"), None)
        connection.rollback()
        if not path:
            raise StoreSetupError(
                f"{self._engine.url!r} is in memory, where each connection is a database of its"
                " own and nothing outlives the process: give a file, or memory:// for tests"
            )
        return SQLiteSteps(Path(path), "full", self._timeout, self._clock or time.time)

    def stop(self) -> None:
        """Close the commands' connections; the engine is yours to dispose of.

        On an event loop of an `AsyncEngine` prefer `await astop()`.
        """
        self._started = False
        with self._lock:
            threads, loops, beside = self._threads, self._loops, self._beside
        self._open_pools()
        beside.shutdown(wait=False)
        if self._steps is not None:
            self._steps.close()
        if threads is not None:
            threads.dispose()
        for loop, engine in loops.items():
            if loop is asyncio._get_running_loop():
                self._keep(loop.create_task(engine.dispose()))
            elif loop.is_running():
                with contextlib.suppress(TimeoutError):
                    asyncio.run_coroutine_threadsafe(engine.dispose(), loop).result(5)
            else:  # its connections went with it
                engine.sync_engine.dispose(close=False)

    async def astop(self) -> None:
        """Close the commands' connections of this event loop, and wait until they are closed."""
        self._started = False
        loop = asyncio.get_running_loop()
        while ending := [task for task in self._ending if task.get_loop() is loop]:
            await asyncio.wait(ending)
        await self._close_loop()

    async def _close_loop(self) -> None:
        with self._lock:
            engine = self._loops.pop(asyncio.get_running_loop(), None)
        if engine is not None:
            await engine.dispose()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    # --- connections for commands ----------------------------------------------------------

    def _command_engine(self) -> Engine:
        """The engine that commands go by, of this process's threads."""
        self._check_started()
        if self._threads is None:
            with self._lock:
                self._threads = self._threads or self._like_the_users()
        return self._threads

    def _loop_engine(self) -> AsyncEngine:
        """The same of the running event loop: asyncio's connections belong to one."""
        self._check_started()
        loop = asyncio.get_running_loop()
        engine = self._loops.get(loop)
        if engine is None:
            with self._lock:
                for gone in [other for other in self._loops if other.is_closed()]:
                    del self._loops[gone]
                engine = self._loops[loop] = AsyncEngine(self._like_the_users())
        return engine

    def _check_started(self) -> None:
        if not self._started:
            raise StoreUnavailable("the store has been stopped, or not started")

    def _like_the_users(self) -> Engine:
        """An engine with a pool of its own, made as the user's is, in READ COMMITTED."""
        engine = self._sync_engine
        pool = engine.pool.recreate()
        dialect = engine.dialect
        if not self._sqlite:

            def read_committed(connection: Any, _: Any) -> None:
                # Once a connection. MySQL's default would judge a claim by a stale snapshot, and
                # lock gaps between keys.
                dialect.set_isolation_level(connection, "READ COMMITTED")

            event.listen(pool, "connect", read_committed)
        options = {
            k: v for k, v in engine.get_execution_options().items() if k != "isolation_level"
        }
        return Engine(pool, dialect, engine.url, execution_options=options, hide_parameters=True)

    # --- commands --------------------------------------------------------------------------

    def execute(self, command: StoreCommand) -> Reply:
        """Carry out one command on the calling thread.

        With an `AsyncEngine` on an event loop and a connection of their own, opened and closed:
        renewals, sweeps and settlements come this way, requests do not.
        """
        steps = self._steps
        if steps is not None and isinstance(command, (Steps, RecordStep, ForgetStep)):
            return steps.carry_out(command, self._look_up)
        swept = steps.before(command, self._look_up) if steps is not None else 0
        if isinstance(self._engine, AsyncEngine):
            reply = _apart(lambda: self._once(command))
        else:
            reply = self._run(command)
        if steps is not None:
            steps.after(command, reply)
        return reply + swept if isinstance(command, Sweep) and isinstance(reply, int) else reply

    async def aexecute(self, command: StoreCommand) -> Reply:
        """Carry out one command without blocking the event loop; with a sync engine on a thread."""
        if isinstance(self._engine, Engine) or (self._steps and self._steps.concerns(command)):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._beside, self.execute, command)
        return await self._arun(command)

    def _look_up(self, key: bytes) -> Found | None:
        return self.execute(Lookup(key))  # type: ignore[return-value]

    async def _once(self, command: StoreCommand) -> Reply:
        try:
            return await self._arun(command)
        finally:
            await self._close_loop()

    def _run(self, command: StoreCommand) -> Reply:
        engine = self._command_engine()
        work = _Command(command, self._commands, immediate=self._sqlite)
        for attempt in range(RETRIES + 1):
            try:
                with engine.connect() as connection:
                    return work.carry_out(connection)
            except FAILURES as error:
                time.sleep(work.pause_or_raise(error, attempt))
        raise AssertionError

    async def _arun(self, command: StoreCommand) -> Reply:
        engine = self._loop_engine()
        work = _Command(command, self._commands, immediate=self._sqlite)
        for attempt in range(RETRIES + 1):
            try:
                async with asyncio.timeout(self._timeout), engine.connect() as connection:
                    return await connection.run_sync(work.carry_out)
            except FAILURES as error:
                pause = work.pause_or_raise(error, attempt)
            await asyncio.sleep(pause)
        raise AssertionError

    # --- atomic ----------------------------------------------------------------------------

    def begin(self) -> SQLAlchemyTransaction:
        """Begin a transaction beside the claim, for a plain handler. Needs a sync `Engine`."""
        if isinstance(self._engine, AsyncEngine):
            raise StoreSetupError(NEEDS_SYNC)
        try:
            connection = self._engine.connect()
            try:
                self._begin(connection)
            except BaseException:
                connection.invalidate()
                connection.close()
                raise
        except FAILURES as error:
            raise translate(error, committing=False) from error
        return SQLAlchemyTransaction(connection, self._commands.complete, self._sessions)  # type: ignore[arg-type]

    async def abegin(self) -> AsyncSQLAlchemyTransaction:
        """Begin a transaction beside the claim, for an async handler. Needs an `AsyncEngine`."""
        if isinstance(self._engine, Engine):
            raise StoreSetupError(NEEDS_ASYNC)
        try:
            connection: AsyncConnection = await self._engine.connect()
            try:
                await connection.run_sync(self._begin)
            except BaseException:
                await connection.invalidate()
                await connection.close()
                raise
        except FAILURES as error:
            raise translate(error, committing=False) from error
        return AsyncSQLAlchemyTransaction(
            connection,
            self._commands.complete,
            self._sessions,  # type: ignore[arg-type]
            self._ending,
        )

    def _begin(self, connection: Connection) -> None:
        begin(connection)
        failpoint("after_begin")

    def open(self, command: Open) -> NoReturn:
        """Refuse: a claim is a record here (`opens`)."""
        raise StoreSetupError("SQLAlchemyStore claims by a record, never by a transaction")

    async def aopen(self, command: Open) -> NoReturn:
        """Refuse, as `open` does."""
        self.open(command)


class _Command:
    """One command as a transaction, at each attempt."""

    def __init__(
        self, command: StoreCommand, commands: SQLAlchemyCommands, *, immediate: bool
    ) -> None:
        self._command = command
        self._commands = commands
        self._immediate = immediate and not isinstance(command, READS)
        self._committing = False

    def carry_out(self, connection: Connection) -> Reply:
        """Carry it out and commit."""
        with connection.begin() as transaction:
            if self._immediate:
                begin_immediate(connection)
            reply = self._commands.apply(connection, self._command)
            self._committing = not isinstance(self._command, READS)
            transaction.commit()
        return reply

    def pause_or_raise(self, error: Exception, attempt: int) -> float:
        """Return the seconds before the next attempt, or raise the `StoreError` it comes to."""
        if isinstance(self._command, Claim) and isinstance(error, IntegrityError):
            self._command = Lookup(self._command.key)  # another has won: what is there, if it is
        committing, self._committing = self._committing, False
        if attempt < RETRIES and again(error, committing=committing):
            return _pause(attempt)
        raise translate(error, committing=committing) from error


def _check_server(connection: Connection) -> None:
    dialect = connection.dialect
    autocommit = getattr(dialect, "_on_connect_isolation_level", None) == "AUTOCOMMIT"
    if (
        autocommit
        or connection.engine.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
    ):
        raise StoreSetupError(
            "an engine in AUTOCOMMIT has no transaction for your writes and the record to share:"
            " give SQLAlchemyStore one without it"
        )
    if dialect.name in MYSQL:
        version = tuple(part for part in dialect.server_version_info or () if isinstance(part, int))
        mariadb = bool(getattr(dialect, "is_mariadb", False))
        if version < ((10, 6) if mariadb else (8, 0)):
            raise StoreSetupError(
                f"{'.'.join(map(str, version))} is too old: MariaDB 10.6 or MySQL 8.0, which skip"
                " locked rows and remember after a restart which tokens were given out"
            )


def _apart(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end on an event loop of its own, and on a thread where one runs."""

    def run() -> T:
        return asyncio.run(make())

    if asyncio._get_running_loop() is None:
        return run()
    with ThreadPoolExecutor(1) as beside:
        return beside.submit(run).result()


def _pause(attempt: int) -> float:
    return random.uniform(0.002, 0.02) * (1 << attempt)  # apart, not secret
