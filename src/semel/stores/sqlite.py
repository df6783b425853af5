"""Records in an SQLite file, beside your own tables: one machine, any number of processes.

WAL, `synchronous=FULL`, BEGIN IMMEDIATE only. Reads go on the caller's thread; writes share commits
(`sqlite_writer`); checkpoints stay out of the way of writers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from semel.after_fork import call_after_fork
from semel.core.commands import (
    Claim,
    Claimed,
    Complete,
    Found,
    Lookup,
    Park,
    Release,
    Renew,
    Reply,
    StoreCommand,
    StoreError,
    StoreUnavailable,
    Sweep,
    Takeover,
)
from semel.core.record import Record, State, decode_response, encode_response
from semel.failpoints import failpoint
from semel.stores import StoreSetupError, sql
from semel.stores.sqlite_writer import UNDONE, Job, Turn, Writer, translate
from semel.stores.turnstile import Turnstile

log = logging.getLogger("semel")

OLDEST = (3, 35, 0)
CHECKPOINT_CHANGES = 1000
"""Rows changed between checkpoints: about 4 MB of WAL with small answers."""

_LOOKUP = sql.load("sqlite", "lookup")
_CLAIM = sql.load("sqlite", "claim")
_VACATE = sql.load("sqlite", "vacate")
_COMPLETE = sql.load("sqlite", "complete")
_RELEASE = sql.load("sqlite", "release")
_PARK = sql.load("sqlite", "park")
_RENEW = sql.load("sqlite", "renew")
_PURGE = sql.load("sqlite", "purge")
_EXPIRE = sql.load("sqlite", "expire")

_ABANDONED: list[Any] = []
"""Handles inherited through a fork: never used, never closed (which would touch the file)."""


def has_wal_reset_race(version: tuple[int, int, int]) -> bool:
    """Say whether this SQLite can corrupt a WAL that several connections write and checkpoint.

    Fixed in 3.51.3, and in 3.50.7 and 3.44.6 (sqlite.org/wal.html, "the WAL-reset bug").
    """
    if version >= (3, 51, 3) or version < (3, 7, 0):
        return False
    return not ((3, 50, 7) <= version < (3, 51, 0) or (3, 44, 6) <= version < (3, 45, 0))


class SQLiteStore:
    """`sqlite:///path.db`.

    `synchronous`: `"full"` (default) survives power loss as far as the disk keeps its word;
    `"normal"` may lose the last commits then, but never half of one. `timeout`: seconds that a
    write waits for other writers before `StoreUnavailable`. `clock` gives seconds since the epoch.
    """

    name = "sqlite"
    atomic = True
    lookup_first = True

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
        self._path = Path(path).absolute()
        self._synchronous = synchronous.lower()
        self._timeout = timeout
        self._clock = clock
        self._writer: Writer | None = None
        self._readers = threading.local()
        self._generation = 0
        self._lock = threading.Lock()
        self._pending: dict[asyncio.AbstractEventLoop, list[_Asked]] = {}
        self._racy = has_wal_reset_race(sqlite3.sqlite_version_info)
        self._warned = False
        self._changes = 0
        self._checkpointing = threading.Event()
        call_after_fork(self._forked)

    # --- opening and closing ---------------------------------------------------------------

    def now(self) -> float:
        """Return this machine's time, the clock of every process that shares the store."""
        return self._clock()

    def start(self) -> None:
        """Open the file, create or migrate its tables. Raises `StoreSetupError`."""
        if sqlite3.sqlite_version_info < OLDEST:
            raise StoreSetupError(
                f"SQLite {sqlite3.sqlite_version} is too old; 3.35 or newer is needed"
            )
        try:
            self._opened()
        except StoreError as error:
            raise StoreSetupError(f"{self._path}: {error}") from error

    def stop(self) -> None:
        """Close the file, after the writes under way."""
        with self._lock:
            writer, self._writer = self._writer, None
            self._generation += 1
        if writer is not None:
            writer.close()

    def _opened(self) -> Writer:
        writer = self._writer
        if writer is not None:
            return writer
        with self._lock:
            if self._writer is None:
                try:
                    turnstile = Turnstile(self._path)
                    self._migrate(turnstile)
                    self._writer = Writer(
                        self._connect,
                        turnstile,
                        timeout=self._timeout,
                        checkpoint=self._checkpoint_if_due,
                    )
                except (sqlite3.Error, OSError) as error:
                    raise translate(error) from error
                self._turnstile = turnstile
            return self._writer

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path,
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        connection.execute("pragma wal_autocheckpoint = 0")
        connection.execute(f"pragma synchronous = {self._synchronous}")
        connection.execute("pragma foreign_keys = on")
        return connection

    def _migrate(self, turnstile: Turnstile) -> None:
        deadline = time.monotonic() + self._timeout
        if not turnstile.enter(deadline):
            raise StoreUnavailable(f"another process has held the file for {self._timeout} s")
        try:
            connection = sqlite3.connect(
                self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False
            )
            try:
                connection.execute("pragma journal_mode = wal")
                connection.execute("begin immediate")
                self._apply_migrations(connection)
                connection.execute("commit")
            finally:
                connection.close()
        finally:
            turnstile.leave()

    def _apply_migrations(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            "create table if not exists semel_migration"
            " (number integer primary key, applied_at real)"
        )
        (newest,) = connection.execute("select max(number) from semel_migration").fetchone()
        known = sql.migrations("sqlite")
        if newest is not None and newest > known[-1][0]:
            log.warning(
                "%s has migration %d, this version of Semel knows %d: a newer one has been here",
                self._path,
                newest,
                known[-1][0],
            )
        for number, script in known:
            if newest is None or number > newest:
                for statement in _statements(script):
                    connection.execute(statement)
                    failpoint("in_migration")
                connection.execute(
                    "insert into semel_migration values (?, ?)", (number, self._clock())
                )

    def _forked(self) -> None:
        """In a child process: forget every handle, and open anew when asked."""
        _ABANDONED.append((self._writer, self._readers, getattr(self, "_turnstile", None)))
        self._writer = None
        self._readers = threading.local()
        self._lock = threading.Lock()
        self._pending = {}

    # --- commands --------------------------------------------------------------------------

    def execute(self, command: StoreCommand) -> Reply:
        """Carry out one command; a write commits straight where nobody else is writing."""
        if type(command) is Lookup:
            return self._lookup(command.key)
        asked = _Asked(self, command)
        writer = self._opened()
        job = Job(asked.run, asked.done)
        if not writer.try_alone(job, may_block=True):
            asked.event = event = threading.Event()
            writer.submit(job)
            event.wait()
        return asked.result()

    async def aexecute(self, command: StoreCommand) -> Reply:
        """Carry out one command; the writes of one tick of the event loop go together."""
        if type(command) is Lookup:
            return self._lookup(command.key)
        loop = asyncio.get_running_loop()
        asked = _Asked(self, command)
        asked.loop = loop
        asked.future = loop.create_future()
        waiting = self._pending.get(loop)
        if waiting is None:
            self._pending[loop] = [asked]
            loop.call_soon(self._flush, loop)
        else:
            waiting.append(asked)
        await asked.future
        return asked.result()

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        batch = _Batch(loop, self._pending.pop(loop))
        try:
            writer = self._opened()
            if len(batch.asked) > 1 or not writer.try_alone(batch, may_block=False):
                writer.submit(batch)
        except StoreError as error:
            batch.done(error)

    def _lookup(self, key: bytes) -> Found | None:
        try:
            row = self._reader().execute(_LOOKUP, (key,)).fetchone()
        except (sqlite3.Error, OSError) as error:
            raise translate(error) from error
        return Found(_record(row), self._clock()) if row is not None else None

    def _reader(self) -> sqlite3.Connection:
        readers = self._readers
        if getattr(readers, "generation", None) != self._generation:
            self._opened()
            readers.connection = self._connect()
            readers.connection.execute("pragma query_only = on")
            readers.generation = self._generation
        connection: sqlite3.Connection = readers.connection
        return connection

    def apply(self, connection: sqlite3.Connection, command: StoreCommand) -> Reply:
        """Carry out one command in the transaction open on `connection`."""
        match command:
            case Claim():
                return self._claim(connection, command, 1)
            case Complete():
                return self.complete(connection, command)
            case Release(_, token):
                return connection.execute(_RELEASE, (token,)).rowcount == 1
            case Renew(claims, lease):
                until = self._clock() + lease
                return frozenset(
                    token
                    for _, token in claims
                    if connection.execute(_RENEW, (until, token)).rowcount != 1
                )
            case Takeover():
                return self._take_over(connection, command)
            case Park(_, token, reason, lapsed):
                named = {"token": token, "reason": reason, "lapsed": lapsed, "now": self._clock()}
                return connection.execute(_PARK, named).rowcount == 1
            case Sweep(limit):
                named = {"now": self._clock(), "limit": limit}
                changed = connection.execute(_PURGE, named).rowcount
                failpoint("in_sweep")
                return changed + connection.execute(_EXPIRE, named).rowcount
            case Lookup(key):
                return self._found(connection, key)

    def _claim(
        self, connection: sqlite3.Connection, command: Claim | Takeover, attempt: int
    ) -> Reply:
        until = self._clock() + command.lease
        cursor = connection.execute(
            _CLAIM, (command.key, attempt, command.owner, command.fingerprint, until)
        )
        if cursor.rowcount == 1 and cursor.lastrowid is not None:
            return Claimed(cursor.lastrowid, attempt)
        return self._found(connection, command.key)

    def _take_over(self, connection: sqlite3.Connection, command: Takeover) -> Reply:
        named = {"key": command.key, "token": command.token, "now": self._clock()}
        vacated = connection.execute(_VACATE, named).fetchall()
        if not vacated:
            return self._found(connection, command.key)
        state, attempt = vacated[0]
        return self._claim(connection, command, attempt + 1 if state == State.IN_FLIGHT else 1)

    def complete(self, connection: sqlite3.Connection, command: Complete) -> bool:
        """Write the answer, if the claim still holds."""
        expires = self._clock() + command.expires
        answer = encode_response(command.response)
        row = (answer, expires, expires + command.tombstone, command.token)
        return connection.execute(_COMPLETE, row).rowcount == 1

    def _found(self, connection: sqlite3.Connection, key: bytes) -> Found | None:
        row = connection.execute(_LOOKUP, (key,)).fetchone()
        return Found(_record(row), self._clock()) if row is not None else None

    # --- checkpoints -----------------------------------------------------------------------

    def _checkpoint_if_due(self, connection: sqlite3.Connection) -> None:
        """After a commit: keep the WAL short. Called by whoever holds the writer.

        An SQLite with the WAL-reset race must not write and checkpoint at the same instant, so
        there it happens here, where all of Semel's writers are excluded; else on a thread.
        """
        changes = connection.total_changes
        if self._turnstile.contended and self._racy and not self._warned:
            self._warned = True
            log.warning(
                "several processes write %s with SQLite %s, which has the WAL-reset race (fixed in"
                " 3.51.3, 3.50.7, 3.44.6). Semel's own writes and checkpoints exclude each other;"
                " your other connections to this file do not: set wal_autocheckpoint to 0 on them,"
                " or upgrade SQLite",
                self._path,
                sqlite3.sqlite_version,
            )
        if changes - self._changes < CHECKPOINT_CHANGES:
            return
        self._changes = changes
        failpoint("before_checkpoint")
        if self._racy:
            _checkpoint(connection)
        elif not self._checkpointing.is_set():
            self._checkpointing.set()
            threading.Thread(target=self._checkpoint_apart, name="semel-checkpoint").start()

    def _checkpoint_apart(self) -> None:
        try:
            connection = self._connect()
            try:
                _checkpoint(connection)
            finally:
                connection.close()
        except sqlite3.Error:
            log.warning("checkpoint of %s failed", self._path, exc_info=True)
        finally:
            self._checkpointing.clear()

    # --- atomic ----------------------------------------------------------------------------

    def begin(self) -> SQLiteTransaction:
        """Take a turn with the writer. Raises `StoreUnavailable` after `timeout` seconds."""
        writer = self._opened()
        event = threading.Event()
        errors: list[StoreError | None] = []

        def granted(error: StoreError | None) -> None:
            errors.append(error)
            event.set()

        turn = Turn(granted)
        if not writer.request(turn):
            if not event.wait(self._timeout) and writer.withdraw(turn):
                raise StoreUnavailable(_TOO_LONG.format(self._timeout))
            event.wait()
            if errors[0] is not None:
                raise errors[0]
        return SQLiteTransaction(self, writer)

    async def abegin(self) -> SQLiteTransaction:
        """Take a turn with the writer without blocking the event loop."""
        writer = self._opened()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[StoreError | None] = loop.create_future()
        turn = Turn(lambda error: _resolve(loop, future, error))
        if not writer.request(turn):
            try:
                done, _ = await asyncio.wait([future], timeout=self._timeout)
                if not done and writer.withdraw(turn):
                    raise StoreUnavailable(_TOO_LONG.format(self._timeout))
                error = await future
            except asyncio.CancelledError:
                if not writer.withdraw(turn):
                    future.add_done_callback(lambda f: _give_back(f, writer))
                raise
            if error is not None:
                raise error
        return SQLiteTransaction(self, writer)


_TOO_LONG = "another operation has held op.connection() for {} s; SQLite has one writer"


def _give_back(future: asyncio.Future[StoreError | None], writer: Writer) -> None:
    if not future.cancelled() and future.result() is None:
        writer.abandon_turn()


def _resolve(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], value: object) -> None:
    def settle() -> None:
        if not future.done():
            future.set_result(value)

    loop.call_soon_threadsafe(settle)


class _Asked:
    """A command on its way to the writer, and its result."""

    __slots__ = ("_command", "_error", "_reply", "_store", "event", "future", "loop")

    def __init__(self, store: SQLiteStore, command: StoreCommand) -> None:
        self._store = store
        self._command = command
        self._reply: Reply = None
        self._error: StoreError | None = None
        self.event: threading.Event | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.future: asyncio.Future[None] | None = None

    def run(self, connection: sqlite3.Connection) -> None:
        self._reply = self._store.apply(connection, self._command)

    def done(self, error: StoreError | None) -> None:
        self._error = error
        if self.event is not None:
            self.event.set()

    def result(self) -> Reply:
        if self._error is not None:
            raise self._error
        return self._reply


class _Batch(Job):
    """What one tick of an event loop asked for."""

    __slots__ = ("asked", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, asked: list[_Asked]) -> None:
        super().__init__(self._run_all, self._all_done)
        self.loop = loop
        self.asked = asked

    def _run_all(self, connection: sqlite3.Connection) -> None:
        for asked in self.asked:
            asked.run(connection)

    def _all_done(self, error: StoreError | None) -> None:
        for asked in self.asked:
            asked.done(error)
        self.loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        for asked in self.asked:
            if asked.future is not None and not asked.future.done():
                asked.future.set_result(None)


class SQLiteTransaction:
    """One atomic operation's turn with the writer."""

    __slots__ = ("_over", "_store", "_writer")

    def __init__(self, store: SQLiteStore, writer: Writer) -> None:
        self._store = store
        self._writer = writer
        self._over = False

    @property
    def connection(self) -> Connection:
        """For plain code."""
        return Connection(self)

    @property
    def async_connection(self) -> AsyncConnection:
        """For async code."""
        return AsyncConnection(self)

    def statement(self) -> sqlite3.Connection:
        """Return the raw connection, for one statement. Raises outside the turn."""
        if self._over:
            raise sqlite3.ProgrammingError("the operation is over: its transaction has ended")
        connection = self._writer.connection
        if not connection.in_transaction:
            raise StoreUnavailable(UNDONE)
        return connection

    def _finish(
        self, command: Complete, done: Callable[[StoreError | None], None], *, may_block: bool
    ) -> bool:
        if self._over:
            raise StoreUnavailable("the operation's transaction has ended")
        self._over = True
        return self._writer.finish_turn(
            lambda connection: self._store.complete(connection, command), done, may_block=may_block
        )

    def complete(self, command: Complete) -> bool:
        """Write the completion and wait for the commit."""
        event = threading.Event()
        errors: list[StoreError | None] = []

        def done(error: StoreError | None) -> None:
            errors.append(error)
            event.set()

        if not self._finish(command, done, may_block=True):
            return False
        event.wait()
        if errors[0] is not None:
            raise errors[0]
        return True

    async def acomplete(self, command: Complete) -> bool:
        """Write the completion and await the commit."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[StoreError | None] = loop.create_future()
        if not self._finish(command, lambda error: _resolve(loop, future, error), may_block=False):
            return False
        loop.call_soon(self._writer.end_linger)
        error = await future
        if error is not None:
            raise error
        return True

    def rollback(self) -> None:
        """Undo what was written in this turn."""
        if not self._over:
            self._over = True
            self._writer.abandon_turn()


Parameters = Sequence[Any] | dict[str, Any]


class Connection:
    """What `op.connection()` gives a plain handler: the file that holds the key.

    What is written here commits with the key's record, or not at all.
    """

    def __init__(self, transaction: SQLiteTransaction) -> None:
        self._transaction = transaction

    def execute(self, statement: str, parameters: Parameters = ()) -> sqlite3.Cursor:
        """Run one statement. Raises `sqlite3.Error` as the standard library does."""
        return self._transaction.statement().execute(statement, parameters)

    def executemany(self, statement: str, parameters: Iterable[Parameters]) -> sqlite3.Cursor:
        """Run one statement for each set of parameters."""
        return self._transaction.statement().executemany(statement, parameters)

    def commit(self) -> None:
        """Do nothing: the commit comes with the answer, together with the key's record."""


class AsyncConnection:
    """What `op.connection()` gives an async handler: as `Connection`, with awaitable methods.

    Statements run on the event loop's thread (microseconds for indexed rows of a local file); the
    commit, with its fsync, does not.
    """

    def __init__(self, transaction: SQLiteTransaction) -> None:
        self._transaction = transaction

    async def execute(self, statement: str, parameters: Parameters = ()) -> sqlite3.Cursor:
        """Run one statement; fetch from the cursor without awaiting."""
        return self._transaction.statement().execute(statement, parameters)

    async def executemany(self, statement: str, parameters: Iterable[Parameters]) -> sqlite3.Cursor:
        """Run one statement for each set of parameters."""
        return self._transaction.statement().executemany(statement, parameters)

    async def commit(self) -> None:
        """Do nothing: the commit comes with the answer, together with the key's record."""


def _checkpoint(connection: sqlite3.Connection) -> None:
    try:
        connection.execute("pragma wal_checkpoint(passive)").fetchone()
    except sqlite3.Error as error:
        log.warning("checkpoint failed, the WAL grows until the next: %s", error)


def _statements(script: str) -> list[str]:
    lines = [line.split("--")[0].rstrip() for line in script.splitlines()]
    return [part.strip() for part in "\n".join(lines).split(";") if part.strip()]


def _record(row: Sequence[Any]) -> Record:
    key, state, token, owner, attempt, fingerprint, lease, due, purge, answer, reason = row
    return Record(
        key,
        State(state),
        token,
        owner,
        attempt,
        fingerprint,
        lease,
        due or 0.0,
        purge or 0.0,
        decode_response(answer) if answer is not None else None,
        reason,
    )
