"""The one writer of a process: the queue for it, and how many writes come to share a commit.

SQLite has one writer at a time and pays one fsync for each commit. So the holder hands the writer
on within one open transaction: atomic operations in turn, each in a savepoint of its own, then
every command that has queued up meanwhile, then one COMMIT for all. Nobody is told a result before
that COMMIT has returned. A lone request commits straight on its own thread.

The writer is a baton. It is free, or held by one of: a *turn* (an atomic operation, on whatever
thread its handler runs), the writer's own thread, or a thread that came when it was free. Or it
*lingers*: held by nobody for one tick of an event loop, for the next to join its transaction.
Only the holder touches the transaction; `_lock` guards the queues and who holds.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from semel.core.commands import StoreError, StoreUnavailable, StoreUnknown
from semel.failpoints import failpoint
from semel.stores.sqlite.batches import PendingCommand
from semel.stores.sqlite.file import translate
from semel.stores.sqlite.group_commit import UNDONE, Done, GroupCommit, tell
from semel.stores.sqlite.permissions import Permissions

log = logging.getLogger("semel")


ExecuteBatch = Callable[[sqlite3.Connection, Sequence[PendingCommand]], None]
"""Carries commands out in the open transaction."""
TOO_LONG: Final = "another operation has held op.connection() for {} s; SQLite has one writer"
"""Why a write or a turn was refused after so many seconds."""


class WriterClosed(StoreUnavailable):
    """The writer was closed; the store opens another, unless it was stopped."""


class Job:
    """Commands to be carried out in the next transaction."""

    __slots__ = ("commands", "done")

    def __init__(self, commands: list[Any], done: Done) -> None:
        self.commands = commands  # a list of PendingCommand, or of a subclass
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
    """The one writer of a process: its transaction, who waits for it, and its thread."""

    def __init__(self, group: GroupCommit, execute: ExecuteBatch) -> None:
        self._group = group
        self._execute = execute
        self._lock = threading.Lock()
        self._held = False
        self._lingering = False
        self._jobs: deque[Job] = deque()
        self._turns: deque[Turn] = deque()
        self._stalled = False  # a turn could not begin at once: the thread is to begin for it
        self._baton = threading.Semaphore(0)
        self._closing = False
        self._closed = threading.Event()
        threading.Thread(target=self._work, name="semel-writer", daemon=True).start()

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection, for whoever has the turn."""
        return self._group.connection

    @property
    def permissions(self) -> Permissions:
        """What the statements of whoever has the turn may do."""
        return self._group.permissions

    def rewind(self) -> None:
        """Undo what was written in the turn, which goes on. Raises `sqlite3.Error`."""
        self._group.rewind_turn()

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

    def extend(self, job: Job, commands: Sequence[PendingCommand]) -> bool:
        """Have more carried out with the last job, if it still waits. False: it is not.

        Commands that came in between, the renewal of a lease say, must not be overtaken.
        """
        with self._lock:
            if not self._jobs or self._jobs[-1] is not job:
                return False
            job.commands.extend(commands)
            return True

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
        if not may_block and not self._group.commits_fast:
            return False
        with self._lock:
            self._refuse_closed()
            if self._held:
                return False
            self._held = True
        try:
            begun = self._group.begin(wait=may_block)
        except StoreError as error:
            tell(job.done, error)
        else:
            if begun:
                self._run([job])
                self._group.commit()
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
            if self._held and (not self._lingering or self._group.full):
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
        group = self._group
        try:
            if not group.open:
                raise StoreUnavailable(UNDONE)
            kept = bool(group.run(write))
            if kept:
                failpoint("in_commit")
                group.keep_turn()
        except BaseException as error:
            group.undo_turn()
            self._pass_on()
            if isinstance(error, sqlite3.Error):
                raise translate(error) from error
            raise
        if kept:
            group.join(done)
        else:
            group.undo_turn()
        self._pass_on(may_block=may_block, linger=kept and not may_block)
        return kept

    def abandon_turn(self, turn: Turn) -> None:
        """End a turn and undo all of it. Does nothing where it has ended already."""
        try:
            self._end(turn)
        except StoreUnavailable:
            return
        self._group.undo_turn()
        self._pass_on()

    def _end(self, turn: Turn) -> None:
        with self._lock:
            if turn._state != _HAD:
                raise StoreUnavailable("the operation's transaction has ended")
            turn._state = _OVER

    # --- the baton -------------------------------------------------------------------------

    def _pass_on(self, *, may_block: bool = False, linger: bool = False) -> None:
        """The holder is done: to the next turn, to the thread, or set free.

        `may_block`: a commit may be made here and now. `linger`: the caller will call `end_linger`
        a tick later, so that operations of the same tick can join the commit.
        """
        group = self._group
        while True:
            if group.awaited and not group.open:
                group.give_up(StoreUnavailable(UNDONE))
            turn = None
            with self._lock:
                idle = not self._jobs and not self._turns
                if self._turns and not group.full:
                    turn = self._turns.popleft()
                elif idle and not group.open:
                    self._held = closing = self._closing
                    break
                elif idle and linger and group.awaited and not group.full:
                    self._lingering = True
                    return
            if turn is not None:
                if self._grant(turn):
                    return
            elif idle and (may_block or not group.awaited):
                group.commit()
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
        if self._group.awaited == 1 and self._group.commits_fast:
            self._group.commit()
            self._pass_on()
        else:
            self._baton.release()

    def _grant(self, turn: Turn) -> bool:
        """Start a turn and say so. False: the writer is still to be passed on."""
        try:
            if not self._start(turn):
                return True
        except StoreError as error:
            tell(turn.granted, error)
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
            self._group.undo_turn()
            return False
        return True

    def _start(self, turn: Turn) -> bool:
        """Begin a turn, holding the writer. False: the thread will, for it has to wait.

        It may have been withdrawn meanwhile: then it is over, and nothing was begun.
        Raises `StoreError`.
        """
        if not self._group.open and not self._group.begin(wait=False):
            with self._lock:
                if turn._state == _WAITING:
                    self._turns.appendleft(turn)
                self._stalled = True
            self._baton.release()
            return False
        self._group.open_turn()
        with self._lock:
            if turn._state == _WAITING:
                turn._state = _HAD
                return True
        self._group.undo_turn()
        return True

    def _run(self, jobs: list[Job]) -> None:
        """Carry jobs out in the open transaction; a failure undoes all that is in it.

        What one caller alone can do wrong does not come this far: see `batches`.
        """
        for job in jobs:
            self._group.join(job.done)
        pending = [each for job in jobs for each in job.commands]
        try:
            self._group.run(lambda connection: self._execute(connection, pending))
        except Exception as error:  # noqa: BLE001  # whoever asked is told; the writer lives on
            self._group.give_up(translate(error))

    # --- the writer's own thread -----------------------------------------------------------

    def _work(self) -> None:
        while not self._closed.is_set():
            self._baton.acquire()
            if self._closed.is_set():
                return
            try:
                self._round()
            except BaseException:
                log.exception("the writer failed in a way it should not")
                self._group.give_up(StoreUnknown("the writer failed"))
                self._pass_on()

    def _round(self) -> None:
        """Take what has queued up, and commit once."""
        with self._lock:
            jobs = list(self._jobs)
            self._jobs.clear()
            stalled, self._stalled = self._stalled, False
        if not self._group.open:
            try:
                self._group.begin(wait=True)
            except StoreError as error:
                with self._lock:
                    turns = list(self._turns) if stalled else []
                    if stalled:
                        self._turns.clear()
                for asking in (*(job.done for job in jobs), *(turn.granted for turn in turns)):
                    tell(asking, error)
                self._pass_on()
                return
        self._run(jobs)
        # A turn that waited for this transaction to begin goes before its commit, or jobs that keep
        # coming would keep it waiting for ever.
        while stalled and self._group.open:
            with self._lock:
                turn = self._turns.popleft() if self._turns else None
            if turn is None:
                break
            if self._grant(turn):
                return
        self._group.commit()
        self._pass_on()

    # --- the end ---------------------------------------------------------------------------

    def close(self, timeout: float) -> bool:
        """Take no more requests, and close once those under way are done.

        Waits for that `timeout` seconds. False: somebody still holds the writer; it closes then.
        """
        with self._lock:
            self._closing = True
            free = not self._held
            self._held = True
        if free:
            self._shut()
        else:
            self.end_linger()
        return self._closed.wait(timeout)

    def close_if_free(self, timeout: float) -> bool:
        """Close, if nobody holds the writer within `timeout` seconds. False: nothing was done."""
        deadline = time.monotonic() + timeout
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
        """In a forked child: let go of what belongs to the parent, without touching the file."""
        self._lock = threading.Lock()
        self._closing = self._held = True
        self._lingering = False
        self._jobs.clear()
        self._turns.clear()
        self._group.disown()

    def _shut(self) -> None:
        self._closed.set()
        self._group.close()
        self._baton.release()
