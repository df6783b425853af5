"""Records through your own SQLAlchemy engine, beside your own tables: one transaction for both.

PostgreSQL, MySQL and MariaDB (InnoDB), SQLite; `Engine` for plain handlers, `AsyncEngine` for async
ones. A claim is a row with a lease; `op.session()` is a session of the transaction whose commit
carries the record.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, TypeVar

try:
    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
    from sqlalchemy.orm import sessionmaker
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "SQLAlchemyStore needs SQLAlchemy 2: pip install 'semel[sqlalchemy]'"
    ) from error

from semel.after_fork import call_after_fork
from semel.core.commands import (
    Complete,
    Found,
    Lookup,
    Open,
    Reply,
    StoreCommand,
    StoreError,
    StoreUnavailable,
)
from semel.failpoints import failpoint
from semel.stores.base import StoreSetupError
from semel.stores.portable.commands import READS, PortableCommands
from semel.stores.portable.dialects import DIALECTS
from semel.stores.portable.steps_file import execute_with_steps
from semel.stores.retry import CommandRetry
from semel.stores.sqlalchemy.connection import SQLAlchemyConnection, paramstyle_of
from semel.stores.sqlalchemy.engines import CommandEngines
from semel.stores.sqlalchemy.errors import FAILURES, again, translate
from semel.stores.sqlalchemy.handed import OperationAsyncConnection, OperationConnection
from semel.stores.sqlalchemy.setup import (
    check_engine,
    check_server,
    set_up_tables,
    warn_of_snapshots,
)
from semel.stores.sqlalchemy.tables import metadata
from semel.stores.sqlalchemy.transaction import (
    NEEDS_ASYNC,
    NEEDS_SYNC,
    AsyncSQLAlchemyTransaction,
    SQLAlchemyTransaction,
    begin,
)
from semel.stores.sqlite.steps import SQLiteSteps

__all__ = ["SQLAlchemyStore", "metadata"]

T = TypeVar("T")


class SQLAlchemyStore:
    """`SQLAlchemyStore(create_engine(url))` or `SQLAlchemyStore(create_async_engine(url))`.

    `engine`: what your own tables are reached by. An operation's transaction takes one of its
    connections; claims and steps take theirs from a second pool of the same make and size, so that
    they never wait for operations. `sessions`: your `sessionmaker` or `async_sessionmaker`, for
    `op.session()`; without it SQLAlchemy's defaults, and `expire_on_commit=False` where async.
    `create_tables`: create the tables at the start and bring them up to date; without it `start`
    refuses where something is missing (`semel.stores.sqlalchemy.metadata` is for Alembic).
    `timeout`: seconds for a command on an `AsyncEngine`; a sync driver has timeouts of its own, to
    be given to `create_engine`. `clock` gives seconds in the place of the database's clock, for
    tests.

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
        check_engine(engine, sessions)
        self._engine = engine
        self._sync_engine = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        self._sessions = sessions
        self._create_tables = create_tables
        self._timeout = timeout
        self._clock = clock
        dialect = self._sync_engine.dialect
        self._commands = PortableCommands(DIALECTS[dialect.name], paramstyle_of(dialect), clock)
        self._steps: SQLiteSteps | None = None
        """SQLite has one writer: there the steps live in a file beside the database."""
        self._file: Path | None = None
        self._started = False
        self._ending: set[asyncio.Task[None]] = set()
        self._engines = CommandEngines(self._sync_engine)
        call_after_fork(self._forked)

    def _forked(self) -> None:
        """In a child process: its parent's connections are not its own, and are left alone."""
        self._inherited = self._engines, self._steps
        self._sync_engine.dispose(close=False)
        if self._steps is not None:
            self._steps = self._steps.anew()
        self._engines = CommandEngines(self._sync_engine)

    @property
    def sync_engine(self) -> Engine:
        """The application's engine, below its `AsyncEngine` where it has one."""
        return self._sync_engine

    @property
    def is_async(self) -> bool:
        """Whether operations' transactions are for async code."""
        return isinstance(self._engine, AsyncEngine)

    @property
    def file(self) -> Path | None:
        """SQLite's file, once it is known (at the start); other databases have many writers."""
        return self._file

    def now(self) -> float:
        """Return the database's clock."""
        found = self.execute(Lookup(bytes(16)))
        return found.now if isinstance(found, Found) else time.time()

    # --- opening and closing ---------------------------------------------------------------

    def start(self) -> None:
        """Connect, and bring the tables up to date. Raises `StoreSetupError`."""
        if self._engines.closed:
            self._engines = CommandEngines(self._sync_engine)
        self._started = True
        try:
            if isinstance(self._engine, AsyncEngine):
                _apart(self._astart)
            else:
                with self._engines.of_threads().connect() as connection:
                    self._set_up(connection)
        except FAILURES as error:
            raise StoreSetupError(f"{self._engine.url!r}: {error}") from error

    async def _astart(self) -> None:
        try:
            async with self._engines.of_loop().connect() as connection:
                await connection.run_sync(self._set_up)
        finally:
            await self._engines.close_loop()

    def _set_up(self, connection: Connection) -> None:
        check_server(connection)
        warn_of_snapshots(connection, self._sync_engine)
        if connection.dialect.name == "sqlite":
            self._steps = self._steps_beside(connection)
        set_up_tables(connection, self._engine.url, create=self._create_tables)

    def _steps_beside(self, connection: Connection) -> SQLiteSteps:
        files = connection.exec_driver_sql("pragma database_list").all()
        path = next((file for _, name, file in files if name == "main"), None)
        connection.rollback()
        if not path:
            raise StoreSetupError(
                f"{self._engine.url!r} is in memory, where each connection is a database of its"
                " own and nothing outlives the process: give a file, or memory:// for tests"
            )
        self._file = Path(path).resolve()
        return SQLiteSteps(Path(path), "full", self._timeout, self._clock or time.time)

    def stop(self) -> None:
        """Close the commands' connections; the engine is yours to dispose of.

        On an event loop of an `AsyncEngine` prefer `await astop()`.
        """
        self._started = False
        if self._steps is not None:
            self._steps.close()
        self._engines.close(self._keep)

    async def astop(self) -> None:
        """Close the commands' connections of this event loop, and wait until they are closed."""
        self._started = False
        loop = asyncio.get_running_loop()
        while ending := [task for task in self._ending if task.get_loop() is loop]:
            await asyncio.wait(ending)
        await self._engines.close_loop()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _running(self) -> CommandEngines:
        if not self._started:
            raise StoreUnavailable("the store has been stopped, or not started")
        return self._engines

    # --- commands --------------------------------------------------------------------------

    def execute(self, command: StoreCommand) -> Reply:
        """Carry out one command on the calling thread.

        With an `AsyncEngine` on an event loop and a connection of their own, opened and closed:
        renewals, sweeps and settlements come this way, requests do not.
        """
        if self._steps is not None:
            return execute_with_steps(self._steps, command, self._execute)
        return self._execute(command)

    async def aexecute(self, command: StoreCommand) -> Reply:
        """Carry out one command without blocking the event loop; with a sync engine on a thread."""
        if isinstance(self._engine, Engine) or (self._steps and self._steps.concerns(command)):
            return await self._running().on_thread(self.execute, command)
        return await self._arun(command)

    def _execute(self, command: StoreCommand) -> Reply:
        if isinstance(self._engine, AsyncEngine):
            return _apart(lambda: self._once(command))
        return self._run(command)

    async def _once(self, command: StoreCommand) -> Reply:
        try:
            return await self._arun(command)
        finally:
            await self._engines.close_loop()

    def _run(self, command: StoreCommand) -> Reply:
        engine = self._running().of_threads()
        work = _CommandTransaction(command, self._commands, self._steps)

        def attempt() -> Reply:
            with engine.connect() as connection:
                return work.carry_out(connection)

        try:
            return CommandRetry(work.again).run(attempt)
        except FAILURES as error:
            raise work.translated(error) from error

    async def _arun(self, command: StoreCommand) -> Reply:
        engine = self._running().of_loop()
        work = _CommandTransaction(command, self._commands, self._steps)

        async def attempt() -> Reply:
            async with asyncio.timeout(self._timeout), engine.connect() as connection:
                return await connection.run_sync(work.carry_out)

        try:
            return await CommandRetry(work.again).arun(attempt)
        except FAILURES as error:
            raise work.translated(error) from error

    # --- atomic ----------------------------------------------------------------------------

    def begin(self) -> SQLAlchemyTransaction:
        """Begin a transaction beside the claim, for a plain handler. Needs a sync `Engine`."""
        if isinstance(self._engine, AsyncEngine):
            raise StoreSetupError(NEEDS_SYNC)
        try:
            connection = OperationConnection(self._engine)
            try:
                self._begin(connection)
            except BaseException:
                connection.invalidate()
                connection.end()
                raise
        except FAILURES as error:
            raise translate(error, committing=False) from error
        return SQLAlchemyTransaction(connection, self._complete, self._sessions)  # type: ignore[arg-type]

    async def abegin(self) -> AsyncSQLAlchemyTransaction:
        """Begin a transaction beside the claim, for an async handler. Needs an `AsyncEngine`."""
        if isinstance(self._engine, Engine):
            raise StoreSetupError(NEEDS_ASYNC)
        try:
            connection = await OperationAsyncConnection.of(self._engine)
            try:
                await connection.run_sync(self._begin)
            except BaseException:
                await connection.invalidate()
                await connection.end()
                raise
        except FAILURES as error:
            raise translate(error, committing=False) from error
        return AsyncSQLAlchemyTransaction(
            connection,
            self._complete,
            self._sessions,  # type: ignore[arg-type]
            self._ending,
        )

    def _begin(self, connection: Connection) -> None:
        begin(connection)
        failpoint("after_begin")

    def _complete(self, connection: Connection, command: Complete) -> bool:
        return self._commands.complete(SQLAlchemyConnection(connection), command)

    def open(self, command: Open) -> NoReturn:
        """Refuse: a claim is a record here (`opens`)."""
        raise StoreSetupError("SQLAlchemyStore claims by a record, never by a transaction")

    async def aopen(self, command: Open) -> NoReturn:
        """Refuse, as `open` does."""
        self.open(command)


class _CommandTransaction:
    """One command as a transaction, at each attempt."""

    def __init__(
        self, command: StoreCommand, commands: PortableCommands, steps: SQLiteSteps | None
    ) -> None:
        self._command = command
        self._commands = commands
        self._forget_unsure = steps.forget_unsure if steps is not None else None
        self._reads = isinstance(command, READS)
        self._committing = False

    def carry_out(self, connection: Connection) -> Reply:
        """Carry it out and commit."""
        with connection.begin() as transaction:
            tables = SQLAlchemyConnection(connection)
            reply = self._commands.apply(tables, self._command, self._forget_unsure)
            self._committing = not self._reads
            transaction.commit()
        return reply

    def again(self, error: Exception) -> bool:
        """Whether it may be carried out again after this error."""
        if not isinstance(error, FAILURES) or not again(error, committing=self._committing):
            return False
        self._committing = False
        return True

    def translated(self, error: Exception) -> StoreError:
        """Return what the error says of the command."""
        return translate(error, committing=self._committing)


def _apart(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end on an event loop of its own, and on a thread where one runs."""

    def run() -> T:
        return asyncio.run(make())

    if asyncio._get_running_loop() is None:
        return run()
    with ThreadPoolExecutor(1) as beside:
        return beside.submit(run).result()
