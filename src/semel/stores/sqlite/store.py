"""The store of records in an SQLite file: one machine, any number of processes.

WAL, `synchronous=FULL`, BEGIN IMMEDIATE only. Reads go on the caller's thread; writes share commits
(`writer`); checkpoints stay out of the way of writers. Nothing of SQLite is open while a process
forks: its locks belong to a process, and its own notes of them do not survive a fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from semel.after_fork import call_around_fork
from semel.core.commands import (
    ForgetStep,
    Found,
    Lookup,
    Open,
    RecordStep,
    Reply,
    Steps,
    StoreCommand,
    StoreError,
    StoreUnavailable,
)
from semel.stores.base import StoreSetupError
from semel.stores.per_loop import PerLoop
from semel.stores.sqlite.batches import PendingCommand, execute_batch
from semel.stores.sqlite.checkpoints import Checkpoints
from semel.stores.sqlite.commands import LOOKUP, SQLiteCommands
from semel.stores.sqlite.file import File, Readers, translate
from semel.stores.sqlite.group_commit import GroupCommit
from semel.stores.sqlite.loop_writes import LoopWrites
from semel.stores.sqlite.steps import SQLiteSteps
from semel.stores.sqlite.transaction import SQLiteTransaction, resolve
from semel.stores.sqlite.turnstile import Turnstile
from semel.stores.sqlite.writer import TOO_LONG, Job, Turn, Writer, WriterClosed

__all__ = ["SQLiteStore"]

log = logging.getLogger("semel")

OLDEST = (3, 35, 0)
FORK_TIMEOUT = 0.25
"""Seconds that a fork waits for writes under way, so that the file can be closed for it."""
_STOPPED = "the store has been stopped"


class SQLiteStore(SQLiteCommands):
    """`sqlite:///path.db`.

    `synchronous`: `"full"` (default) survives power loss as far as the disk keeps its word;
    `"normal"` may lose the last commits then, but never half of one. `timeout`: seconds that a
    write waits for other writers before `StoreUnavailable`. `clock` gives seconds since the epoch.

    May be shared by all threads and event loops of a process. A process that forks closes the file
    first; parent and child open it anew. A child that was forked in the middle of a write refuses.
    """

    name = "sqlite"
    atomic = True
    lookup_first = True
    opens = False
    expires_itself = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: str = "full",
        timeout: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if synchronous.lower() not in ("full", "normal"):
            raise StoreSetupError(f"synchronous: give full or normal, not {synchronous!r}")
        self.file = Path(path).resolve()
        self._file = File(Path(path).absolute(), synchronous.lower(), timeout)
        self._steps = SQLiteSteps(self._file.path, synchronous.lower(), timeout, clock)
        self._timeout = timeout
        self._clock = clock
        self._writer: Writer | None = None
        self._readers: Readers | None = None
        self._refusal: str | None = None
        self._lock = threading.Lock()
        self._loops = self._new_loops()
        call_around_fork(self._before_fork, self._forked_parent, self._forked_child)

    def _new_loops(self) -> PerLoop[LoopWrites]:
        return PerLoop(lambda loop: LoopWrites(loop, self._opened, self._timeout))

    def now(self) -> float:
        """Return this machine's time, the clock of every process that shares the store."""
        return self._clock()

    def for_a_thread(self) -> SQLiteStore:
        """Return a store of the same file; see `store_for_a_thread`."""
        file = self._file
        return SQLiteStore(
            file.path, synchronous=file.synchronous, timeout=self._timeout, clock=self._clock
        )

    # --- opening and closing ---------------------------------------------------------------

    def start(self) -> None:
        """Open the file, create or migrate its tables. Raises `StoreSetupError`."""
        if sqlite3.sqlite_version_info < OLDEST:
            raise StoreSetupError(
                f"SQLite {sqlite3.sqlite_version} is too old; 3.35 or newer is needed"
            )
        with self._lock:
            if self._refusal == _STOPPED:
                self._refusal = None
        try:
            self._opened()
        except StoreError as error:
            raise StoreSetupError(str(error)) from error

    def stop(self) -> None:
        """Close the file, after the writes under way; commands are refused until another start."""
        with self._lock:
            writer, self._writer = self._writer, None
            readers, self._readers = self._readers, None
            self._refusal = _STOPPED
        self._steps.close()
        if readers is not None:
            readers.close()
        if writer is not None and not writer.close(self._timeout):
            log.warning("an operation still holds %s; it closes with it", self._file.path)

    def _opened(self) -> Writer:
        return self._writer or self._open()[0]

    def _open(self) -> tuple[Writer, Readers]:
        with self._lock:
            if self._refusal is not None:
                raise StoreUnavailable(f"{self._file.path}: {self._refusal}")
            if self._writer is not None and self._readers is not None:
                return self._writer, self._readers
            try:
                self._writer = self._new_writer()
            except (sqlite3.Error, OSError, StoreError, StoreSetupError) as error:
                raise StoreUnavailable(_explain(self._file.path, error)) from error
            self._readers = Readers(self._file)
            return self._writer, self._readers

    def _new_writer(self) -> Writer:
        turnstile = Turnstile(self._file.path)
        try:
            self._file.migrate(turnstile, self._clock())
            checkpoints = Checkpoints(self._file, turnstile)
            return Writer(
                GroupCommit(
                    self._file,
                    turnstile,
                    timeout=self._timeout,
                    checkpoint=checkpoints.after_commit,
                ),
                self._execute_batch,
            )
        except BaseException:
            turnstile.close()
            raise

    # --- forks -----------------------------------------------------------------------------

    def _before_fork(self) -> None:
        self._lock.acquire()
        self._steps.lock.acquire()
        self._steps.close_held()
        readers, self._readers = self._readers, None  # first, so that who meets it closed asks anew
        if readers is not None:
            readers.close()
        if self._writer is not None and self._writer.close_if_free(FORK_TIMEOUT):
            self._writer = None

    def _forked_parent(self) -> None:
        self._steps.lock.release()
        self._lock.release()

    def _forked_child(self) -> None:
        if self._writer is not None:
            self._writer.disown()
            self._writer = None
            self._refusal = (
                "this process was forked in the middle of a write to it; fork before, or use the"
                " spawn start method"
            )
        self._steps.lock = threading.Lock()
        self._lock = threading.Lock()
        self._loops = self._new_loops()

    # --- commands --------------------------------------------------------------------------

    def execute(self, command: StoreCommand) -> Reply:
        """Carry out one command; a write commits straight where nobody else is writing."""
        if type(command) is Lookup:
            return self._lookup(command.key)
        if isinstance(command, (Steps, RecordStep, ForgetStep)):
            return self._steps.carry_out(command, self._lookup)
        swept = self._steps.before(command, self._lookup)
        reply = self._write(command)
        self._steps.after(command, reply)
        return reply + swept if isinstance(reply, int) and swept else reply

    def _write(self, command: StoreCommand) -> Reply:
        pending = PendingCommand(command)
        event = threading.Event()

        def done(error: StoreError | None) -> None:
            pending.error = error or pending.error
            event.set()

        job = Job([pending], done)
        while True:
            writer = self._opened()
            with contextlib.suppress(WriterClosed):
                if writer.try_alone(job, may_block=True):
                    break
                writer.submit(job)
                break
        if not event.wait(self._timeout) and writer.recall(job):
            raise StoreUnavailable(TOO_LONG.format(self._timeout))
        event.wait()
        return pending.result()

    async def aexecute(self, command: StoreCommand) -> Reply:
        """Carry out one command; the writes of one tick of the event loop go together."""
        if type(command) is Lookup:
            return self._lookup(command.key)
        if self._steps.concerns(command):
            return await asyncio.to_thread(self.execute, command)
        return await self._loops.get().ask(command)

    def _execute_batch(
        self, connection: sqlite3.Connection, pending: Sequence[PendingCommand]
    ) -> None:
        execute_batch(connection, pending, self.apply, self._clock())

    def _lookup(self, key: bytes) -> Found | None:
        for _ in range(2):
            readers = self._readers or self._open()[1]
            try:
                return self.found(readers.fetch(LOOKUP, (key,)))
            except (sqlite3.Error, OSError) as error:
                if readers is self._readers:
                    raise translate(error) from error
        raise StoreUnavailable(f"{self._file.path} was closed while it was read")

    # --- atomic ----------------------------------------------------------------------------

    def begin(self) -> SQLiteTransaction:
        """Take a turn with the writer. Raises `StoreUnavailable` after `timeout` seconds."""
        event = threading.Event()
        errors: list[StoreError | None] = []

        def granted(error: StoreError | None) -> None:
            errors.append(error)
            event.set()

        turn = Turn(granted)
        writer, had = self._request(turn)
        if not had:
            try:
                if not event.wait(self._timeout) and writer.withdraw(turn):
                    raise StoreUnavailable(TOO_LONG.format(self._timeout))
                event.wait()
            except BaseException:
                if not writer.withdraw(turn):
                    writer.abandon_turn(turn)
                raise
            if errors[0] is not None:
                raise errors[0]
        return SQLiteTransaction(writer, turn, self.complete)

    async def abegin(self) -> SQLiteTransaction:
        """Take a turn with the writer without blocking the event loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[StoreError | None] = loop.create_future()
        turn = Turn(lambda error: resolve(loop, future, error))
        writer, had = self._request(turn)
        if not had:
            try:
                done, _ = await asyncio.wait([future], timeout=self._timeout)
                if not done and writer.withdraw(turn):
                    raise StoreUnavailable(TOO_LONG.format(self._timeout))
                error = await future
            except BaseException:  # cancelled, or thrown away with its loop
                if not writer.withdraw(turn):
                    writer.abandon_turn(turn)
                raise
            if error is not None:
                raise error
        return SQLiteTransaction(writer, turn, self.complete)

    def open(self, command: Open) -> NoReturn:
        """Refuse: the one writer cannot be held by an operation from its beginning to its end."""
        raise StoreSetupError("sqlite:// claims in a transaction of its own")

    async def aopen(self, command: Open) -> NoReturn:
        """Refuse, as `open` does."""
        self.open(command)

    def _request(self, turn: Turn) -> tuple[Writer, bool]:
        while True:
            writer = self._opened()
            with contextlib.suppress(WriterClosed):
                return writer, writer.request(turn)


def _explain(path: Path, error: Exception) -> str:
    """Say what stands in the way of opening the file, and what to do."""
    if isinstance(error, (StoreError, StoreSetupError)):
        return f"{path}: {error}"
    if isinstance(error, FileNotFoundError):
        return f"{path}: the folder {path.parent} does not exist; create it"
    if isinstance(error, PermissionError):
        return f"{path}: not allowed ({error}); the folder must be writable, for the WAL beside it"
    if isinstance(error, OSError):
        return f"{path}: {error}"
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    advice = {
        sqlite3.SQLITE_NOTADB: "; give a path of its own, or restore the file from a backup",
        sqlite3.SQLITE_CORRUPT: "; restore the file from a backup",
        sqlite3.SQLITE_READONLY: "; make the file and its folder writable for this user",
        sqlite3.SQLITE_CANTOPEN: "; the folder must exist and be writable, for the WAL beside it",
        sqlite3.SQLITE_FULL: "; free some space",
    }.get(code, "")
    return f"{path}: {translate(error)}{advice}"
