"""Group commit: one transaction that many operations and commands share.

Not guarded by any lock: only the holder of the writer (`semel.stores.sqlite.writer`) may call it.
"""

from __future__ import annotations

import ctypes
import logging
import random
import sqlite3
import time
from collections.abc import Callable
from typing import Any

from semel.core.commands import StoreError, StoreUnavailable, StoreUnknown
from semel.failpoints import failpoint
from semel.stores.sqlite.file import File, translate
from semel.stores.sqlite.permissions import Permissions, drop_temporary
from semel.stores.sqlite.turnstile import Turnstile

log = logging.getLogger("semel")

TURNS_PER_COMMIT = 64
"""How many atomic operations may share a transaction before it is committed."""
JOIN_TIMEOUT = 0.010
"""Seconds after which a transaction that others wait for takes no further turn."""
FAST_COMMIT = 0.001
"""Seconds; where commits take longer, an event loop never commits on its own thread."""

# Marked, so that a handler's own "commit" is another statement to SQLite's cache and is refused.
_BEGIN = "begin immediate /* semel */"
_COMMIT = "commit /* semel */"
_ROLLBACK = "rollback /* semel */"
_SAVEPOINT = "savepoint semel_turn /* semel */"
_UNDO = "rollback to semel_turn /* semel */"
_MERGE = "release semel_turn /* semel */"

UNDONE = "the database rolled the whole transaction back (disk full, I/O error or OR ROLLBACK)"

Done = Callable[[StoreError | None], None]


class GroupCommit:
    """The writing connection, its open transaction, and those who wait for its commit."""

    def __init__(
        self,
        file: File,
        turnstile: Turnstile,
        *,
        timeout: float,
        checkpoint: Callable[[sqlite3.Connection], None],
    ) -> None:
        self._file = file
        self._turnstile = turnstile
        self._timeout = timeout
        self._checkpoint = checkpoint
        self._unsettled: list[Done] = []
        self._first_unsettled = 0.0
        self._turns = 0
        self._commit_cost = 0.0  # seconds, a moving mean of what commits take here
        self.permissions = Permissions()
        self._broken = False  # the connection was given up; another is made for the next
        self.connection = self._connect()

    def _connect(self) -> sqlite3.Connection:
        connection = self._file.connect()
        connection.set_authorizer(self.permissions.authorize)
        return connection

    # --- how it stands ---------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether it has begun, and has not ended."""
        return self.connection.in_transaction

    @property
    def awaited(self) -> int:
        """How many wait for its commit."""
        return len(self._unsettled)

    @property
    def full(self) -> bool:
        """Whether it is to be committed before another turn joins it."""
        return bool(self._unsettled) and (
            self._turns >= TURNS_PER_COMMIT
            or time.monotonic() - self._first_unsettled > JOIN_TIMEOUT
        )

    @property
    def commits_fast(self) -> bool:
        """Whether a commit is quick enough for an event loop's own thread."""
        return self._commit_cost <= FAST_COMMIT

    # --- from its beginning to its end -----------------------------------------------------

    def begin(self, *, wait: bool) -> bool:
        """Begin. False: it would have to wait for another process.

        Raises `StoreUnavailable` where the file cannot be written, or `timeout` seconds of waiting
        were not enough.
        """
        deadline = time.monotonic() + self._timeout if wait else None
        entered = False
        try:
            if self._broken:
                self.connection = self._connect()
                self._broken = False
            self._file.require_unchanged()
            entered = self._turnstile.enter(deadline)
            while entered:
                try:
                    self._execute(_BEGIN)
                except sqlite3.Error as error:
                    if not _is_busy(error):
                        raise
                    if deadline is None or time.monotonic() >= deadline:
                        break
                    time.sleep(random.uniform(0.00002, 0.001))  # for those who do not queue here
                else:
                    self._turns = 0
                    failpoint("after_begin")
                    return True
        except Exception as error:
            self.give_up(StoreUnavailable(UNDONE))
            raise translate(error) from error
        if entered:
            self._turnstile.leave()
        if wait:
            raise StoreUnavailable(
                f"the database was locked by another writer for {self._timeout} s"
            )
        return False

    def run(self, write: Callable[[sqlite3.Connection], Any]) -> Any:
        """Run statements of Semel's own."""
        self.permissions.internal = True
        try:
            return write(self.connection)
        finally:
            self.permissions.internal = False

    def _execute(self, statement: str) -> None:
        self.run(lambda connection: connection.execute(statement))

    def open_turn(self) -> None:
        """Set a mark to which `undo_turn` can return. Raises `StoreError`."""
        try:
            self._execute(_SAVEPOINT)
        except sqlite3.Error as error:
            raise translate(error) from error
        self.permissions.lent = True
        self._turns += 1

    def keep_turn(self) -> None:
        """Make what was written since the mark part of the transaction. Raises `sqlite3.Error`."""
        if self.permissions.temporary:
            self.run(drop_temporary)
        self.permissions.taken_back()
        self._execute(_MERGE)

    def rewind_turn(self) -> None:
        """Undo what was written since the mark, and keep the mark. Raises `sqlite3.Error`."""
        self._execute(_UNDO)

    def undo_turn(self) -> None:
        """Undo what was written since the mark."""
        self.permissions.taken_back()  # what was made is undone too
        try:
            self._execute(_UNDO)
            self._execute(_MERGE)
        except sqlite3.Error:  # SQLite has rolled the whole transaction back by itself
            self.give_up(StoreUnavailable(UNDONE))

    def join(self, done: Done) -> None:
        """Have `done` called once it is known whether the transaction was committed."""
        if not self._unsettled:
            self._first_unsettled = time.monotonic()
        self._unsettled.append(done)

    def commit(self) -> None:
        """Commit, and tell everybody who took part; without anybody, roll back."""
        if not self._unsettled or not self.open:
            self.give_up(StoreUnavailable(UNDONE))  # nothing to commit, or nothing left of it
            return
        started = time.monotonic()
        outcome: StoreError | None = None
        try:
            failpoint("before_commit")
            self._execute(_COMMIT)
            failpoint("after_commit")
        except Exception as error:  # noqa: BLE001  # everybody who took part is told
            if isinstance(error, sqlite3.Error) or self.open:
                outcome = translate(error, at_commit=True)
            else:
                outcome = StoreUnknown(f"{type(error).__name__} after the commit")
            self._rollback()
        else:
            spent = time.monotonic() - started
            self._commit_cost += (spent - self._commit_cost) * (0.5 if spent > FAST_COMMIT else 0.2)
        self._settle(outcome)
        try:
            if outcome is None:
                self.run(self._checkpoint)
        except Exception:
            log.exception("a checkpoint failed; the WAL grows until the next")
        self._turnstile.leave()

    def give_up(self, outcome: StoreError) -> None:
        """Undo the transaction, if any is left, and tell those who took part in it."""
        self._rollback()
        self._turnstile.leave()
        self._settle(outcome)

    def _rollback(self) -> None:
        if not self.open:
            return
        try:
            self._execute(_ROLLBACK)
        except sqlite3.Error:
            # It must not be open when the next transaction comes: a closed connection never is.
            log.exception("a rollback failed; the connection is replaced")
            self.connection.close()
            self.connection = sqlite3.connect(":memory:", check_same_thread=False)
            self._broken = True

    def _settle(self, outcome: StoreError | None) -> None:
        unsettled, self._unsettled = self._unsettled, []
        for done in unsettled:
            tell(done, outcome)

    # --- the end of the connection ---------------------------------------------------------

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()
        self._turnstile.close()

    def disown(self) -> None:
        """In a forked child: let go of what belongs to the parent, without touching the file.

        Closing the connection would; so it is leaked, and whoever still uses it finds it undone.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.connection))
        self.connection = sqlite3.connect(":memory:", check_same_thread=False)
        self._unsettled.clear()
        self._turnstile.close()


def tell(done: Done, outcome: StoreError | None) -> None:
    """Hand a result over, to whoever is still there."""
    try:
        done(outcome)
    except Exception:  # its event loop is closed
        log.warning("the result of an operation could not be handed over", exc_info=True)


def _is_busy(error: sqlite3.Error) -> bool:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_BUSY
