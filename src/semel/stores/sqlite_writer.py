"""The one connection that writes, and how a crowd shares its commits.

SQLite has one writer at a time and pays one fsync for each commit. So whoever has the writer hands
it on within one open transaction: atomic operations in turn, each in a savepoint of its own, then
every command that has queued up meanwhile, then one COMMIT for all. Nobody is told a result before
that COMMIT has returned. A lone request commits straight on its own thread.

The writer is a baton. It is free, or held by one of: a *turn* (an atomic operation, on whatever
thread its handler runs), the writer's own thread, or a thread that came when it was free. Or it
*lingers*: held by nobody for one tick of an event loop, for the next to join its transaction.
Only the holder touches the connection; `_lock` guards the queues and who holds.
"""

from __future__ import annotations

import ctypes
import logging
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from semel.core.commands import StoreError, StoreUnavailable, StoreUnknown
from semel.failpoints import failpoint
from semel.stores.sqlite_file import File, translate
from semel.stores.turnstile import Turnstile

log = logging.getLogger("semel")

TURNS_PER_COMMIT = 64
"""How many atomic operations may share a transaction before it is committed."""
PATIENCE = 0.010
"""Seconds after which a transaction that others have finished in takes no further turn."""
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


class WriterClosed(StoreUnavailable):
    """The writer was closed; the store opens another, unless it was stopped."""


class Job:
    """Commands to be carried out in the next transaction."""

    __slots__ = ("done", "run")

    def __init__(self, run: Callable[[sqlite3.Connection], None], done: Done) -> None:
        self.run = run
        self.done = done


_WAITING: Final = 0
_HAD: Final = 1
_OVER: Final = 2


class Turn:
    """The exclusive use of the writer by one atomic operation: waited for, had, over."""

    __slots__ = ("_state", "granted")

    def __init__(self, granted: Done) -> None:
        self.granted = granted
        self._state = _WAITING

    @property
    def had(self) -> bool:
        """Whether the operation has the writer now."""
        return self._state == _HAD


class Writer:
    """Owns the writing connection of one process and its thread."""

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
        self._lock = threading.Lock()
        self._held = False
        self._lingering = False
        self._jobs: deque[Job] = deque()
        self._turns: deque[Turn] = deque()
        self._unsettled: list[Done] = []
        self._first_unsettled = 0.0
        self._turns_taken = 0
        self._stalled = False  # a turn could not begin at once: the thread is to begin for it
        self._internal = False
        self._broken = False  # the connection was given up; another is made for the next
        self._commit_cost = 0.0  # seconds, a moving mean of what commits take here
        self._baton = threading.Semaphore(0)
        self._closing = False
        self._closed = threading.Event()
        self.connection = self._connect()
        threading.Thread(target=self._work, name="semel-writer", daemon=True).start()

    def _connect(self) -> sqlite3.Connection:
        connection = self._file.connect()
        connection.set_authorizer(self._authorize)
        return connection

    # --- asking for the writer -------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Queue a job for the next transaction; `job.done` is called on whatever thread ends it.

        Raises `WriterClosed`.
        """
        with self._lock:
            self._refuse_closed()
            self._jobs.append(job)
            if self._held and not self._lingering:
                return
            self._held, self._lingering = True, False
        self._baton.release()

    def recall(self, job: Job) -> bool:
        """Take a job back. False: too late, it is being carried out."""
        with self._lock:
            try:
                self._jobs.remove(job)
            except ValueError:
                return False
            return True

    def try_alone(self, job: Job, *, may_block: bool) -> bool:
        """Carry a job out on this thread, if the writer is free. False: nothing was done.

        `may_block` false: not where it would have to wait, or where commits are slow here.
        Raises `WriterClosed`.
        """
        if not may_block and self._commit_cost > FAST_COMMIT:
            return False
        with self._lock:
            self._refuse_closed()
            if self._held:
                return False
            self._held = True
        try:
            begun = self._begin(time.monotonic() + self._timeout if may_block else None)
        except StoreError as error:
            self._tell(job.done, error)
        else:
            if begun:
                self._run([job])
                self._commit()
            elif may_block:
                self._tell(job.done, self._locked())
            else:
                with self._lock:
                    self._jobs.append(job)
        self._pass_on()
        return True

    def request(self, turn: Turn) -> bool:
        """Ask for a turn. True: it is had now; else `turn.granted` is called when it is.

        Raises `StoreError` where it cannot be had at all.
        """
        with self._lock:
            self._refuse_closed()
            if self._held and (not self._lingering or self._full()):
                self._turns.append(turn)
                return False
            self._held, self._lingering = True, False
        try:
            return self._start(turn)
        except StoreError:
            self._pass_on()
            raise

    def withdraw(self, turn: Turn) -> bool:
        """Take back a request. False: too late, the turn is had, and has to be ended."""
        with self._lock:
            if turn._state == _HAD:
                return False
            turn._state = _OVER
            try:
                self._turns.remove(turn)
            except ValueError:
                pass  # it is being granted at this instant: `_start` will see that it is over
            return True

    def _refuse_closed(self) -> None:
        if self._closing:
            raise WriterClosed("the store has been stopped")

    # --- during and after a turn -----------------------------------------------------------

    def finish_turn(
        self,
        turn: Turn,
        write: Callable[[sqlite3.Connection], bool],
        done: Done,
        *,
        may_block: bool,
    ) -> bool:
        """End a turn with its last write. False: the write says no, and all of it is undone.

        True: it is part of the transaction, and `done` is called after the COMMIT. Where
        `may_block` is false, the caller sees to it that `end_linger` is called a tick later.
        Raises `StoreError` where the database failed, and whatever `write` raises; all of the turn
        is undone then.
        """
        self._end(turn)
        try:
            if not self.connection.in_transaction:
                raise StoreUnavailable(UNDONE)
            kept = bool(self._own(write))
            if kept:
                failpoint("in_commit")
                self._execute(_MERGE)
        except BaseException as error:
            self._undo_turn()
            self._pass_on()
            if isinstance(error, sqlite3.Error):
                raise translate(error) from error
            raise
        if kept:
            self._join(done)
        else:
            self._undo_turn()
        self._pass_on(may_block=may_block, linger=kept and not may_block)
        return kept

    def abandon_turn(self, turn: Turn) -> None:
        """End a turn and undo all of it. Does nothing where it has ended already."""
        try:
            self._end(turn)
        except StoreUnavailable:
            return
        self._undo_turn()
        self._pass_on()

    def _end(self, turn: Turn) -> None:
        with self._lock:
            if turn._state != _HAD:
                raise StoreUnavailable("the operation's transaction has ended")
            turn._state = _OVER

    def _undo_turn(self) -> None:
        try:
            self._execute(_UNDO)
            self._execute(_MERGE)
        except sqlite3.Error:  # SQLite has rolled the whole transaction back by itself
            self._give_up(StoreUnavailable(UNDONE))

    # --- the baton -------------------------------------------------------------------------

    def _pass_on(self, *, may_block: bool = False, linger: bool = False) -> None:
        """The holder is done: to the next turn, to the thread, or set free.

        `may_block`: a commit may be made here and now. `linger`: the caller will call `end_linger`
        a tick later, so that operations of the same tick can join the commit.
        """
        while True:
            if self._unsettled and not self.connection.in_transaction:
                self._give_up(StoreUnavailable(UNDONE))
            turn = None
            with self._lock:
                idle = not self._jobs and not self._turns
                if self._turns and not self._full():
                    turn = self._turns.popleft()
                elif idle and not self.connection.in_transaction:
                    self._held = closing = self._closing
                    break
                elif idle and linger and self._unsettled and not self._full():
                    self._lingering = True
                    return
            if turn is not None:
                if self._grant(turn):
                    return
            elif idle and (may_block or not self._unsettled):
                self._commit()
            else:
                self._baton.release()
                return
        if closing:
            self._shut()

    def end_linger(self) -> None:
        """Commit what lingers: called a tick of the event loop after the turn that left it so."""
        with self._lock:
            if not self._lingering:
                return
            self._lingering = False
        if len(self._unsettled) == 1 and self._commit_cost <= FAST_COMMIT:
            self._commit()
            self._pass_on()
        else:
            self._baton.release()

    def _full(self) -> bool:
        """Whether the transaction is to be committed before another turn joins it."""
        return bool(self._unsettled) and (
            self._turns_taken >= TURNS_PER_COMMIT
            or time.monotonic() - self._first_unsettled > PATIENCE
        )

    def _grant(self, turn: Turn) -> bool:
        """Start a turn and say so. False: the writer is still to be passed on."""
        try:
            if not self._start(turn):
                return True
        except StoreError as error:
            self._tell(turn.granted, error)
            return False
        if not turn.had:
            return False
        try:
            turn.granted(None)
        except Exception:
            log.exception("an operation went away as its turn came")
            with self._lock:
                if turn._state != _HAD:
                    return True  # somebody has ended it, and passed the writer on
                turn._state = _OVER
            self._undo_turn()
            return False
        return True

    def _start(self, turn: Turn) -> bool:
        """Begin a turn, holding the writer. False: the thread will, for it has to wait.

        It may have been withdrawn meanwhile: then it is over, and nothing was begun.
        Raises `StoreError`.
        """
        if not self.connection.in_transaction and not self._begin(None):
            with self._lock:
                if turn._state == _WAITING:
                    self._turns.appendleft(turn)
                self._stalled = True
            self._baton.release()
            return False
        try:
            self._execute(_SAVEPOINT)
        except sqlite3.Error as error:
            raise translate(error) from error
        self._turns_taken += 1
        with self._lock:
            if turn._state == _WAITING:
                turn._state = _HAD
                return True
        self._undo_turn()
        return True

    def _work(self) -> None:
        while not self._closed.is_set():
            self._baton.acquire()
            if self._closed.is_set():
                return
            try:
                self._round()
            except BaseException:
                log.exception("the writer failed in a way it should not")
                self._give_up(StoreUnknown("the writer failed"))
                self._pass_on()

    def _round(self) -> None:
        """One round of the writer's thread: what has queued up, and one commit."""
        with self._lock:
            jobs = list(self._jobs)
            self._jobs.clear()
            stalled, self._stalled = self._stalled, False
        if not self.connection.in_transaction:
            refused = self._begin_or_say_why()
            if refused is not None:
                with self._lock:
                    turns = list(self._turns) if stalled else []
                    if stalled:
                        self._turns.clear()
                for asking in (*(job.done for job in jobs), *(turn.granted for turn in turns)):
                    self._tell(asking, refused)
                self._pass_on()
                return
        self._run(jobs)
        # A turn that waited for this transaction to begin goes before its commit, or jobs that keep
        # coming would keep it waiting for ever.
        while stalled and self.connection.in_transaction:
            with self._lock:
                turn = self._turns.popleft() if self._turns else None
            if turn is None:
                break
            if self._grant(turn):
                return
        self._commit()
        self._pass_on()

    # --- the transaction -------------------------------------------------------------------

    def _begin(self, deadline: float | None) -> bool:
        """Begin a transaction. False: another process writes, and still does at `deadline`.

        None does not wait. Raises `StoreUnavailable` where the file cannot be written.
        """
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
                    self._turns_taken = 0
                    failpoint("after_begin")
                    return True
        except Exception as error:
            self._give_up(StoreUnavailable(UNDONE))
            raise translate(error) from error
        if entered:
            self._turnstile.leave()
        return False

    def _begin_or_say_why(self) -> StoreError | None:
        try:
            return None if self._begin(time.monotonic() + self._timeout) else self._locked()
        except StoreError as error:
            return error

    def _run(self, jobs: list[Job]) -> None:
        """Carry jobs out in the open transaction; a failure undoes all that is in it.

        What one caller alone can do wrong does not come this far: see `sqlite._Asked.run`.
        """
        try:
            for job in jobs:
                self._own(job.run)
        except Exception as error:  # noqa: BLE001  # whoever asked is told; the writer lives on
            for job in jobs:
                self._join(job.done)
            self._give_up(translate(error))
        else:
            for job in jobs:
                self._join(job.done)

    def _join(self, done: Done) -> None:
        if not self._unsettled:
            self._first_unsettled = time.monotonic()
        self._unsettled.append(done)

    def _commit(self) -> None:
        """Commit, and tell everybody who took part."""
        if not self._unsettled or not self.connection.in_transaction:
            self._give_up(StoreUnavailable(UNDONE))  # nothing to commit, or nothing left of it
            return
        started = time.monotonic()
        outcome: StoreError | None = None
        try:
            failpoint("before_commit")
            self._execute(_COMMIT)
            failpoint("after_commit")
        except Exception as error:  # noqa: BLE001  # everybody who took part is told
            if isinstance(error, sqlite3.Error) or self.connection.in_transaction:
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
                self._checkpoint(self.connection)
        except Exception:
            log.exception("a checkpoint failed; the WAL grows until the next")
        self._turnstile.leave()

    def _give_up(self, outcome: StoreError) -> None:
        """Undo the transaction, if any is left, and tell those who took part in it."""
        self._rollback()
        self._turnstile.leave()
        self._settle(outcome)

    def _rollback(self) -> None:
        if not self.connection.in_transaction:
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
            self._tell(done, outcome)

    @staticmethod
    def _tell(done: Done, outcome: StoreError | None) -> None:
        try:
            done(outcome)
        except Exception:  # its event loop is closed: nobody is left to be told
            log.warning("the result of an operation could not be handed over", exc_info=True)

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
        """Refuse handlers' statements that would end the transaction, or a turn, under us."""
        if self._internal:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_TRANSACTION:
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_SAVEPOINT and (second or "").lower() == "semel_turn":
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    def _locked(self) -> StoreUnavailable:
        return StoreUnavailable(f"the database was locked by another writer for {self._timeout} s")

    # --- the end ---------------------------------------------------------------------------

    def close(self, patience: float) -> bool:
        """Take no more requests, and close once those under way are done.

        Waits for that `patience` seconds. False: somebody still holds the writer; it closes then.
        """
        with self._lock:
            self._closing = True
            free = not self._held
            self._held = True
        if free:
            self._shut()
        else:
            self.end_linger()
        return self._closed.wait(patience)

    def close_if_free(self, patience: float) -> bool:
        """Close, if nobody holds the writer within `patience` seconds. False: nothing was done."""
        deadline = time.monotonic() + patience
        while True:
            with self._lock:
                if not self._held:
                    self._held = self._closing = True
                    break
            if time.monotonic() > deadline:
                return False
            self.end_linger()
            time.sleep(0.001)
        self._shut()
        return True

    def disown(self) -> None:
        """In a forked child: let go of what belongs to the parent, without touching the file.

        Closing the connection would; so it is leaked, and whoever still uses it finds it undone.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.connection))
        self.connection = sqlite3.connect(":memory:", check_same_thread=False)
        self._lock = threading.Lock()
        self._closing = self._held = True
        self._lingering = False
        self._jobs.clear()
        self._turns.clear()
        self._unsettled.clear()
        self._turnstile.close()

    def _shut(self) -> None:
        self._closed.set()
        self.connection.close()
        self._turnstile.close()
        self._baton.release()


def _is_busy(error: sqlite3.Error) -> bool:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_BUSY
