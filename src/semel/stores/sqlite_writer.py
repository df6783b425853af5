"""The one connection that writes, and how a crowd shares its commits.

SQLite has one writer at a time and pays one fsync for each commit. So whoever has the writer hands
it on within one open transaction: atomic operations in turn, each in a savepoint of its own, then
every command that has queued up meanwhile, then one COMMIT for all. Nobody is told a result before
that COMMIT has returned. A lone request commits straight on its own thread.

The writer is a baton. It is free, or held by one of: a *turn* (an atomic operation, on whatever
thread its handler runs), the writer's own thread, or a thread that came when it was free.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from semel.core.commands import StoreError, StoreUnavailable, StoreUnknown
from semel.failpoints import failpoint
from semel.stores.turnstile import Turnstile

TURNS_PER_COMMIT = 64
"""How many atomic operations may share a transaction before it is committed."""
PATIENCE = 0.010
"""Seconds that a finished operation waits for others to share its commit, at most."""
FAST_COMMIT = 0.001
"""Seconds; where commits take longer, an event loop never commits on its own thread."""

# Marked, so that a handler's own "commit" is another statement to SQLite's cache and is refused.
_BEGIN = "begin immediate /* semel */"
_COMMIT = "commit /* semel */"
_ROLLBACK = "rollback /* semel */"
_SAVEPOINT = "savepoint semel_turn /* semel */"
_UNDO = "rollback to semel_turn /* semel */"
_MERGE = "release semel_turn /* semel */"
_REFUSED_TO_HANDLERS = frozenset({sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT})

UNDONE = "the database rolled the whole transaction back (disk full or I/O error)"

Done = Callable[[StoreError | None], None]


class Job:
    """Commands to be carried out in the next transaction."""

    __slots__ = ("done", "run")

    def __init__(self, run: Callable[[sqlite3.Connection], None], done: Done) -> None:
        self.run = run
        self.done = done


class Turn:
    """The exclusive use of the writer by one atomic operation."""

    __slots__ = ("granted",)

    def __init__(self, granted: Callable[[StoreError | None], None]) -> None:
        self.granted = granted


class Writer:
    """Owns the writing connection of one process and its thread."""

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        turnstile: Turnstile,
        *,
        timeout: float,
        checkpoint: Callable[[sqlite3.Connection], None],
    ) -> None:
        self.connection = connect()
        self.connection.set_authorizer(self._authorize)
        self._turnstile = turnstile
        self._timeout = timeout
        self._checkpoint = checkpoint
        self._lock = threading.Lock()
        self._held = False
        self._jobs: deque[Job] = deque()
        self._turns: deque[Turn] = deque()
        self._unsettled: list[Done] = []
        self._first_unsettled = 0.0
        self._turns_taken = 0
        self._stalled = False  # a turn could not begin at once: the thread is to begin for it
        self._lingering = False  # held by nobody, its transaction open for one tick of the loop
        self._internal = False
        self._commit_cost = 0.0  # seconds, a moving mean of what commits take here
        self._baton = threading.Semaphore(0)
        self._closing = False
        self._thread: threading.Thread | None = None

    # --- asking for the writer -------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Queue a job for the next transaction; `job.done` is called on whatever thread ends it."""
        with self._lock:
            self._jobs.append(job)
            if self._held and not self._lingering:
                return
            self._held, self._lingering = True, False
        self._pass_baton()

    def try_alone(self, job: Job, *, may_block: bool) -> bool:
        """Carry a job out on this thread, if the writer is free. False: nothing was done.

        `may_block` false: not where it would have to wait, or where commits are slow here.
        """
        if not may_block and self._commit_cost > FAST_COMMIT:
            return False
        with self._lock:
            if self._held or self._jobs or self._turns:
                return False
            self._held = True
        try:
            begun = self._begin(time.monotonic() + self._timeout if may_block else None)
        except StoreError as error:
            job.done(error)
            self._pass_on()
            return True
        if not begun and not may_block:
            with self._lock:
                self._jobs.append(job)
            self._pass_baton()
            return True
        if not begun:
            job.done(StoreUnavailable(self._locked()))
            self._pass_on()
            return True
        self._run([job])
        self._commit()
        self._pass_on()
        return True

    def request(self, turn: Turn) -> bool:
        """Ask for a turn. True: it is had now; else `turn.granted` is called when it is."""
        with self._lock:
            if self._lingering and not self._full():
                self._lingering = False
            elif self._held:
                self._turns.append(turn)
                return False
            self._held = True
        return self._start_turn(turn)

    def withdraw(self, turn: Turn) -> bool:
        """Take back a request. False: too late, the turn has been granted."""
        with self._lock:
            try:
                self._turns.remove(turn)
            except ValueError:
                return False
            return True

    # --- during and after a turn -----------------------------------------------------------

    def finish_turn(
        self, write: Callable[[sqlite3.Connection], bool], done: Done, *, may_block: bool
    ) -> bool:
        """End a turn with its last write. False: the write says no, and all of it is undone.

        True: it is part of the transaction, and `done` is called after the COMMIT.
        Raises `StoreError` where the database failed; all of the turn is undone then.
        """
        try:
            if not self.connection.in_transaction:
                raise StoreUnavailable(UNDONE)
            kept = bool(self._own(write))
            if kept:
                failpoint("in_commit")
                self._execute(_MERGE)
        except (sqlite3.Error, StoreError) as error:
            self._undo_turn()
            self._pass_on()
            raise translate(error) from error
        if not kept:
            self._undo_turn()
        else:
            if not self._unsettled:
                self._first_unsettled = time.monotonic()
            self._unsettled.append(done)
        self._pass_on(may_block=may_block, linger=not may_block)
        return kept

    def abandon_turn(self) -> None:
        """End a turn and undo all of it."""
        self._undo_turn()
        self._pass_on()

    def _undo_turn(self) -> None:
        try:
            self._execute(_UNDO)
            self._execute(_MERGE)
        except sqlite3.Error as error:
            # SQLite has rolled the whole transaction back by itself (disk full, I/O error).
            self._rollback(translate(error))

    # --- the baton -------------------------------------------------------------------------

    def _pass_on(self, *, may_block: bool = False, linger: bool = False) -> None:
        """The holder is done: to the next turn, to the thread, or set free.

        `may_block`: a commit may be made here and now. `linger`: the caller will call `end_linger`
        a tick later, so that operations of the same tick can join the commit.
        """
        if self._unsettled and not self.connection.in_transaction:
            self._rollback(StoreUnavailable(UNDONE))
        turn = None
        with self._lock:
            if self._turns and not self._full():
                turn = self._turns.popleft()
            elif not self._jobs and not self._turns and not self.connection.in_transaction:
                self._held = False
                return
        if turn is not None:
            if self._start_turn(turn):
                turn.granted(None)
            return
        if self._idle() and not self._unsettled:
            self._rollback(None)  # a turn that was undone left nothing to commit
            self._pass_on()
        elif self._idle() and may_block:
            self._commit()
            self._pass_on()
        elif linger and not self._full():
            self._lingering = True
        else:
            self._pass_baton()

    def end_linger(self) -> None:
        """Commit what lingers: called a tick of the event loop after the turn that left it so."""
        with self._lock:
            if not self._lingering:
                return
            self._lingering = False
        if self._idle() and len(self._unsettled) == 1 and self._commit_cost <= FAST_COMMIT:
            self._commit()
            self._pass_on()
        else:
            self._pass_baton()

    def _idle(self) -> bool:
        return not self._jobs and not self._turns

    def _full(self) -> bool:
        """Whether the transaction is to be committed before another turn joins it."""
        return bool(self._unsettled) and (
            self._turns_taken >= TURNS_PER_COMMIT
            or time.monotonic() - self._first_unsettled > PATIENCE
        )

    def _start_turn(self, turn: Turn) -> bool:
        """Begin a turn, holding the writer. False: the thread will, for it has to wait."""
        try:
            if not self.connection.in_transaction and not self._begin(None):
                with self._lock:
                    self._turns.appendleft(turn)
                    self._stalled = True
                self._pass_baton()
                return False
            self._execute(_SAVEPOINT)
        except StoreError as error:
            self._refuse(turn, error)
            return False
        except sqlite3.Error as error:
            self._refuse(turn, translate(error))
            return False
        self._turns_taken += 1
        return True

    def _refuse(self, turn: Turn, error: StoreError) -> None:
        turn.granted(error)
        self._pass_on()

    def _pass_baton(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="semel-writer", daemon=True)
            self._thread.start()
        self._baton.release()

    def _work(self) -> None:
        while True:
            self._baton.acquire()
            if self._closing:
                return
            self._round()

    def _round(self) -> None:
        """One round of the writer's thread: what has queued up, and one commit."""
        with self._lock:
            jobs = list(self._jobs)
            self._jobs.clear()
            stalled, self._stalled = self._stalled, False
        try:
            if not self.connection.in_transaction and not self._begin(
                time.monotonic() + self._timeout
            ):
                raise StoreUnavailable(self._locked())
        except StoreError as error:
            for job in jobs:
                job.done(error)
            with self._lock:
                turns = list(self._turns) if stalled else []
                if stalled:
                    self._turns.clear()
            for turn in turns:
                turn.granted(error)
            self._pass_on()
            return
        self._run(jobs)
        with self._lock:
            begun = stalled and self._turns and self.connection.in_transaction
            waiting = self._turns.popleft() if begun else None
        if waiting is not None:
            if self._start_turn(waiting):
                waiting.granted(None)
            return
        self._commit()
        self._pass_on()

    # --- the transaction -------------------------------------------------------------------

    def _begin(self, deadline: float | None) -> bool:
        """Begin a transaction. False: another process writes, and still does at `deadline`.

        Raises `StoreUnavailable` where the file cannot be written.
        """
        if not self._turnstile.enter(deadline):
            return False
        while True:
            try:
                self._execute(_BEGIN)
            except sqlite3.Error as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if busy and deadline is not None and time.monotonic() < deadline:
                    time.sleep(random.uniform(0.00002, 0.001))  # writers that do not queue here
                    continue
                self._turnstile.leave()
                if busy:
                    return False
                raise translate(error) from error
            self._turns_taken = 0
            failpoint("after_begin")
            return True

    def _run(self, jobs: list[Job]) -> None:
        """Carry jobs out in the open transaction; a failure undoes all, and they go one by one."""
        try:
            for job in jobs:
                self._own(job.run)
        except Exception as error:  # noqa: BLE001  # the thread must live on, and say what happened
            self._rollback(translate(error))
            if len(jobs) == 1:
                jobs[0].done(translate(error))
                return
            for job in jobs:
                self._run_singly(job)
            return
        self._unsettled.extend(job.done for job in jobs)

    def _run_singly(self, job: Job) -> None:
        try:
            begun = self._begin(time.monotonic() + self._timeout)
        except StoreError as error:
            job.done(error)
            return
        if not begun:
            job.done(StoreUnavailable(self._locked()))
            return
        self._run([job])
        self._commit()

    def _commit(self) -> None:
        """Commit, and tell everybody who took part."""
        if not self.connection.in_transaction:
            self._settle(None)
            return
        failpoint("before_commit")
        started = time.monotonic()
        outcome: StoreError | None = None
        try:
            self._execute(_COMMIT)
        except sqlite3.Error as error:
            # Busy and full leave the transaction open or undone; only an I/O error leaves doubt.
            outcome = translate(error, at_commit=True)
            self._rollback_quietly()
        else:
            spent = time.monotonic() - started
            self._commit_cost += (spent - self._commit_cost) * (0.5 if spent > FAST_COMMIT else 0.2)
        failpoint("after_commit")
        self._settle(outcome)
        if outcome is None:
            self._checkpoint(self.connection)
        self._turnstile.leave()

    def _settle(self, outcome: StoreError | None) -> None:
        unsettled, self._unsettled = self._unsettled, []
        for done in unsettled:
            done(outcome)

    def _rollback(self, error: StoreError | None) -> None:
        self._rollback_quietly()
        self._turnstile.leave()
        self._settle(error)

    def _rollback_quietly(self) -> None:
        if self.connection.in_transaction:
            try:
                self._execute(_ROLLBACK)
            except sqlite3.Error:
                self.connection.interrupt()

    def _execute(self, statement: str) -> None:
        self._internal = True
        try:
            self.connection.execute(statement)
        finally:
            self._internal = False

    def _own(self, write: Callable[[sqlite3.Connection], Any]) -> Any:
        self._internal = True
        try:
            return write(self.connection)
        finally:
            self._internal = False

    def _authorize(self, action: int, first: str | None, second: str | None, *_: object) -> int:
        if action not in _REFUSED_TO_HANDLERS or self._internal:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_SAVEPOINT and second != "semel_turn":
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY

    def _locked(self) -> str:
        return f"the database was locked by another writer for {self._timeout} s"

    def close(self) -> None:
        """End the thread and close the connection, once nobody holds the writer."""
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            with self._lock:
                if not self._held:
                    self._held = True
                    break
            time.sleep(0.002)
        self._closing = True
        self._baton.release()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5)
        self.connection.close()


def translate(error: Exception, *, at_commit: bool = False) -> StoreError:
    """Say what an error of SQLite means for what was asked: not done, or not known."""
    if isinstance(error, StoreError):
        return error
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if at_commit and code is not None and code & 0xFF == sqlite3.SQLITE_IOERR:
        return StoreUnknown(f"SQLite: {name} at commit: {error}")
    return StoreUnavailable(f"SQLite: {name}: {error}")
