"""The store of recorded steps, in a file beside the database.

SQLite has one writer: a step recorded in the database itself would wait for the very transaction of
the handler that takes it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from semel.core.commands import (
    ForgetStep,
    Found,
    Recorded,
    RecordStep,
    Reply,
    Settle,
    Steps,
    StoreCommand,
    StoreUnavailable,
    StoreUnknown,
    Sweep,
    Takeover,
)
from semel.core.record import State
from semel.failpoints import failpoint
from semel.stores import statements as sql
from semel.stores.sqlite.file import translate

LookUp = Callable[[bytes], Found | None]
"""Reads a record of the database beside."""
SUFFIX = "-semel-steps"
_CREATE = sql.load("sqlite", "steps_create")
_READ = sql.load("sqlite", "steps_read")
_RECORD = sql.load("sqlite", "steps_record")
_FORGET = sql.load("sqlite", "steps_forget")
_DUE = sql.load("sqlite", "steps_due")
_PURGE = sql.load("sqlite", "steps_purge")
_UNSURE = sql.load("sqlite", "steps_unsure")


class SQLiteSteps:
    """The steps of the operations in one database; the file is made with the first step.

    Every call blocks for a commit at most, and raises `StoreError`.
    """

    def __init__(
        self, database: Path, synchronous: str, timeout: float, clock: Callable[[], float]
    ) -> None:
        self._database = database
        self._path = Path(f"{database}{SUFFIX}")
        self._synchronous = synchronous
        self._timeout = timeout
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self.lock = threading.Lock()

    def anew(self) -> SQLiteSteps:
        """Return the same, not yet open: for a child process."""
        return SQLiteSteps(self._database, self._synchronous, self._timeout, self._clock)

    @staticmethod
    def concerns(command: StoreCommand) -> bool:
        """Whether a command is about steps, or has something to do for them."""
        return isinstance(command, (Steps, RecordStep, ForgetStep, Settle, Sweep, Takeover))

    def carry_out(self, command: Steps | RecordStep | ForgetStep, look_up: LookUp) -> Reply:
        """Carry out a command that is about steps alone."""
        if isinstance(command, Steps):
            return self.read(command)
        found = look_up(command.key)
        if found is not None:  # the holder's own, or another's by now
            record = found.record
            if (record.state, record.token) != (State.IN_FLIGHT, command.token):
                return None if isinstance(command, RecordStep) else False
        if isinstance(command, RecordStep):
            return self.record(command)
        return self.forget(command)

    def before(self, command: StoreCommand, look_up: LookUp) -> int:
        """Delete steps that have to go before their record does; return how many were swept."""
        if isinstance(command, Takeover) and command.expired:
            self.forget_over(command.key)
        elif isinstance(command, Sweep):
            return self.sweep(command.limit, look_up)
        return 0

    def after(self, command: StoreCommand, reply: Reply) -> None:
        """Delete steps that a settlement says did not happen."""
        if not isinstance(command, Settle) or not reply or command.response is not None:
            return
        try:
            self.forget_unsure(command.key)
        except StoreUnavailable as error:  # the record has been settled: that much is done
            raise StoreUnknown(
                f"the operation is settled, but its steps still stand as begun: {error}"
            ) from error

    def read(self, command: Steps) -> dict[str, bytes | None]:
        """Return the steps under a key."""
        with self._open(create=False) as connection:
            if connection is None:
                return {}
            return dict(connection.execute(_READ, (command.key,)).fetchall())

    def record(self, command: RecordStep) -> Recorded:
        """Record a step's beginning, or its result unless there is one."""
        key, _, name, result, keep = command
        with self._open(create=True) as connection:
            assert connection is not None
            row = connection.execute(_RECORD, (key, name, result, self._clock() + keep)).fetchone()
            failpoint("in_step")
            return Recorded(row[0])

    def forget(self, command: ForgetStep) -> bool:
        """Take back that a step was begun."""
        with self._open(create=False) as connection:
            if connection is None:
                return False
            return connection.execute(_FORGET, (command.key, command.name)).rowcount == 1

    def forget_unsure(self, key: bytes) -> None:
        """Take back all steps of a key that were begun and never ended."""
        with self._open(create=False) as connection:
            if connection is not None:
                connection.execute(_UNSURE, (key,))

    def forget_over(self, key: bytes) -> None:
        """Delete the steps of a key whose time is over."""
        with self._open(create=False) as connection:
            if connection is not None:
                connection.execute(_PURGE, (key, self._clock()))

    def sweep(self, limit: int, look_up: LookUp) -> int:
        """Delete steps whose time is over, unless their operation still runs; return how many."""

        def runs(key: bytes) -> bool:
            found = look_up(key)
            return found is not None and found.record.state in (State.IN_FLIGHT, State.PARKED)

        with self._open(create=False) as connection:
            if connection is None:
                return 0
            now = self._clock()
            over = [key for (key,) in connection.execute(_DUE, (now, limit)) if not runs(key)]
            return sum(connection.execute(_PURGE, (key, now)).rowcount for key in over)

    def close(self) -> None:
        """Close the file."""
        with self.lock:
            self.close_held()

    def close_held(self) -> None:
        """Close the file; the caller holds the lock."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def _open(self, *, create: bool) -> Iterator[sqlite3.Connection | None]:
        """A transaction of its own; None where there is no file and none is to be made."""
        with self.lock:
            if self._connection is None and not create and not self._path.exists():
                yield None
                return
            try:
                connection = self._connection = self._connection or self._connect()
                connection.execute("begin immediate")
                try:
                    yield connection
                    connection.execute("commit")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("rollback")
                    raise
            except (sqlite3.Error, OSError) as error:
                raise translate(error) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False
        )
        connection.execute("pragma journal_mode=wal")
        connection.execute(f"pragma synchronous={self._synchronous}")
        connection.execute(_CREATE)
        return connection
