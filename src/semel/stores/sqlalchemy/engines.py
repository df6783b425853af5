"""Connections for commands, beside those of the application's engine."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from semel.core.commands import Reply, StoreCommand, StoreUnavailable
from semel.stores.per_loop import PerLoop

COMMANDS: Final = "semel_commands"
"""An execution option of the engines of commands: what they write is Semel's own."""
COMMANDS_AT_ONCE: Final = 16
"""Threads that carry out commands for event loops, where the engine is a sync one."""


class CommandEngines:
    """Engines with pools of their own, made as the application's engine is.

    One for the threads of this process and one for each event loop, made when they are asked for,
    so that a claim or a step never waits for operations. Not to be used after a fork.
    """

    def __init__(self, engine: Engine) -> None:
        self._like = engine
        self._lock = threading.Lock()
        self._threads: Engine | None = None
        self._loops = PerLoop(lambda loop: self._made_for_loop())
        self._executor = ThreadPoolExecutor(COMMANDS_AT_ONCE, thread_name_prefix="semel-commands")
        self.closed = False

    def of_threads(self) -> Engine:
        """Return the engine of this process's threads. Raises `StoreUnavailable` once closed."""
        engine = self._threads
        if engine is None:
            with self._lock:
                self._require_open()
                engine = self._threads = self._threads or self._made()
        return engine

    def of_loop(self) -> AsyncEngine:
        """Return the engine of the running event loop: asyncio's connections belong to one.

        Raises `StoreUnavailable` once closed.
        """
        return self._loops.get()

    async def on_thread(
        self, work: Callable[[StoreCommand], Reply], command: StoreCommand
    ) -> Reply:
        """Carry a command out on a thread, for async handlers on a sync engine.

        The threads are of their own: what ends an operation must not queue behind claims that wait
        for just that end. Raises `StoreUnavailable` once closed.
        """
        with self._lock:
            self._require_open()
            future = self._executor.submit(work, command)
        return await asyncio.wrap_future(future)

    def _require_open(self) -> None:
        if self.closed:
            raise StoreUnavailable("the store has been stopped")

    async def close_loop(self) -> None:
        """Close the running event loop's connections."""
        engine = self._loops.pop()
        if engine is not None:
            await engine.dispose()

    def close(self, keep: Callable[[asyncio.Task[None]], None]) -> None:
        """Close all, for good. `keep` is given the task that closes a loop that is running here."""
        with self._lock:
            self.closed = True
            threads, self._threads = self._threads, None
        self._executor.shutdown(wait=False)
        if threads is not None:
            threads.dispose()
        for loop, engine in self._loops.pop_all().items():
            if loop is asyncio._get_running_loop():
                keep(loop.create_task(engine.dispose()))
            elif loop.is_running():
                with contextlib.suppress(TimeoutError):
                    asyncio.run_coroutine_threadsafe(engine.dispose(), loop).result(5)
            else:  # its connections went with it
                engine.sync_engine.dispose(close=False)

    def _made_for_loop(self) -> AsyncEngine:
        # PerLoop holds its lock: either the flag is seen here, or `pop_all` takes what is made.
        self._require_open()
        return AsyncEngine(self._made())

    def _made(self) -> Engine:
        """An engine like the application's, in READ COMMITTED."""
        engine = self._like
        pool = engine.pool.recreate()
        dialect = engine.dialect
        if dialect.name != "sqlite":

            def read_committed(connection: Any, _: Any) -> None:
                # Once a connection. MySQL's default would judge a claim by a stale snapshot, and
                # lock gaps between keys.
                dialect.set_isolation_level(connection, "READ COMMITTED")

            event.listen(pool, "connect", read_committed)
        options = {
            k: v for k, v in engine.get_execution_options().items() if k != "isolation_level"
        }
        options[COMMANDS] = True
        return Engine(pool, dialect, engine.url, execution_options=options, hide_parameters=True)
