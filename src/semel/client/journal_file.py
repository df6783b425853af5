"""The journal's file: locking, appending, syncing and compaction."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from semel.after_fork import call_after_fork
from semel.client import records
from semel.client.errors import JournalDamaged, JournalError, JournalFull, JournalInUse
from semel.client.records import BEGUN, DONE, HEADER, MAGIC, JournalRecord
from semel.failpoints import failpoint

if TYPE_CHECKING:
    from semel.client.cipher import Cipher

ROOM = 64 * 1024
"""Bytes of settled entries that are left in the file before it is compacted, at the least."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ID: Final = 16


class JournalFile:
    """Entries by number. `append` and `strike` take effect with `sync`, which threads share.

    The lock is a file beside it (`.lock`), which is never removed: compaction replaces the journal
    itself, and a lock would stay behind on the old one.
    """

    _descriptor = _locked = -1

    def __init__(self, path: Path, encryption_key: bytes | None, max_bytes: int) -> None:
        self.path = path.resolve()
        self._cipher = _cipher(encryption_key)
        self._max_bytes = max_bytes
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._syncing = threading.Lock()
        self._broken: str | None = None
        self._entries: dict[int, tuple[int, int]] = {}
        """Of each unfinished entry: where its record starts, and its length."""
        self._live = 0
        self._next = 1
        self._size = self._durable = 0
        self._generation = 0
        """How often the file was replaced: what was written before is durable in the new one."""
        self._locked = self._take_lock()
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        call_after_fork(self._forked)

    # --- entries ----------------------------------------------------------------------------

    def numbers(self) -> list[int]:
        """Return the numbers of the unfinished entries, the oldest first."""
        return list(self._entries)

    def append(self, payload: bytes) -> int:
        """Write an entry; return its number. Raises `JournalError`: it is not in the file."""
        self._compact_if_worth_it()
        with self._lock:
            self.require_usable()
            number = self._next
            record = self._frame(BEGUN, number, payload)
            if self._live + len(record) > self._max_bytes:
                raise JournalFull(
                    f"{self.path}: unfinished requests fill {self._live} bytes of"
                    f" {self._max_bytes}: resume them, or raise max_bytes; nothing was sent"
                )
            start = self._write(record)
            failpoint("client_in_journal")
            self._next += 1
            self._entries[number] = (start, len(record))
            self._live += len(record)
            return number

    def strike(self, number: int) -> None:
        """Write that an entry is settled. Raises `JournalError`: it stays in the file."""
        with self._lock:
            self.require_usable()
            self._write(self._frame(DONE, number, b""))
            failpoint("client_in_done")
            _, length = self._entries.pop(number)
            self._live -= length

    def read(self, number: int) -> bytes:
        """Return an entry's payload. Raises `JournalDamaged`, or `ValueError`: not as sealed."""
        with self._lock:
            payload = self._record(number).payload
            if self._cipher is None:
                return payload
            return self._cipher.open(payload, self._about(BEGUN, number))

    def sync(self) -> None:
        """Make durable what was written before the call. Threads that come together share one.

        After an error nothing more is written: what the disk holds is not known any more.
        """
        with self._lock:
            wanted, written = self._size, self._generation
        with self._syncing:
            with self._lock:
                self.require_usable()
                if written != self._generation or self._durable >= wanted:
                    return
                size, descriptor = self._size, self._descriptor
            try:
                os.fsync(descriptor)
            except OSError as error:
                self._broken = f"{self.path}: fsync failed ({error}); open it anew"
                raise JournalError(
                    f"{self._broken}; nothing was sent, and `resume` may find it there"
                ) from error
            with self._lock:
                self._durable = max(self._durable, size)

    def close(self) -> None:
        """Close the file and give the lock back."""
        with self._lock:
            self._broken = f"{self.path} is closed"
            self._close_descriptors()

    def __del__(self) -> None:
        self._close_descriptors()

    # --- opening ----------------------------------------------------------------------------

    def _take_lock(self) -> int:
        lock = self.path.with_name(self.path.name + ".lock")
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalError(
                f"{lock}: cannot be written ({error.strerror}); give a path in a folder that is"
                " there and that this process may write to"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno != errno.EWOULDBLOCK:
                raise JournalError(f"{lock}: cannot be locked ({error.strerror})") from error
            raise JournalInUse(
                f"{self.path} is in use by another process, or another Journal of this one; give"
                " each a journal of its own"
            ) from error
        return descriptor

    def _open(self) -> None:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise JournalError(f"{self.path}: cannot be read ({error.strerror})") from error
        if not data:
            self._id = os.urandom(_ID)
            self._rewrite([])
            return
        found = records.scan(data)
        if not data.startswith(MAGIC) or not found.records or found.records[0].kind != HEADER:
            raise JournalDamaged(f"{self.path}: this is no journal of Semel's, or its head is lost")
        if found.damaged_at is not None:
            raise JournalDamaged(
                f"{self.path}: the record at byte {found.damaged_at} was durable and cannot be read"
                " any more, so requests may be lost: keep a copy, find out what happened to the"
                " disk, and start a new journal"
            )
        self._unlock(found.records[0].payload)
        for record in found.records[1:]:
            self._next = max(self._next, record.number + 1)
            if record.kind == BEGUN:
                self._entries[record.number] = (record.start, record.end - record.start)
            elif record.kind == DONE:
                self._entries.pop(record.number, None)
        self._live = sum(length for _, length in self._entries.values())
        self._adopt(os.O_RDWR, found.end)

    def _unlock(self, header: bytes) -> None:
        """Check that the file and the key belong together."""
        self._id, seal = header[:_ID], header[_ID:]
        if bool(seal) != (self._cipher is not None):
            state = "is encrypted: give" if seal else "is not encrypted: leave out"
            raise JournalError(f"{self.path} {state} encryption_key")
        if self._cipher is not None:
            try:
                self._cipher.open(seal, self._about(HEADER, 0))
            except ValueError as error:
                raise JournalError(f"{self.path}: encryption_key is another one") from error

    def _adopt(self, flags: int, end: int) -> None:
        """Go on with the file that is there, without what a crash left behind its end."""
        try:
            self._descriptor = os.open(self.path, flags | os.O_CLOEXEC)
            os.ftruncate(self._descriptor, end)
            os.fsync(self._descriptor)
        except OSError as error:
            raise JournalError(f"{self.path}: cannot be written ({error.strerror})") from error
        self._size = self._durable = end

    # --- writing ----------------------------------------------------------------------------

    def _write(self, record: bytes) -> int:
        """Append a record, whole or not at all; return where it starts."""
        start, written = self._size, 0
        try:
            while written < len(record):
                written += os.pwrite(self._descriptor, record[written:], start + written)
        except OSError as error:
            try:
                os.ftruncate(self._descriptor, start)
            except OSError:
                self._broken = f"{self.path}: a record was cut short ({error.strerror})"
            kind = JournalFull if error.errno in _FULL else JournalError
            raise kind(f"{self.path}: {error.strerror}; nothing was sent") from error
        self._size += len(record)
        return start

    def _compact_if_worth_it(self) -> None:
        if not self._worth_it():
            return
        with self._syncing, self._lock:  # in the order of `sync`
            self.require_usable()
            if not self._worth_it():
                return
            try:
                self._rewrite([(number, self._record(number).payload) for number in self._entries])
            except JournalFull:
                return  # it goes on in the file it has
            failpoint("client_compacted")

    def _worth_it(self) -> bool:
        return self._size - self._live >= ROOM + self._live

    def _record(self, number: int) -> JournalRecord:
        start, length = self._entries[number]
        record = records.one(os.pread(self._descriptor, length, start), start)
        if record is None:
            raise JournalDamaged(f"{self.path}: entry {number} was altered since it was written")
        return record

    def _rewrite(self, entries: Iterable[tuple[int, bytes]]) -> None:
        """Replace the file by one with these entries only: a crash leaves the old or the new."""
        seal = self._cipher.seal(b"", self._about(HEADER, 0)) if self._cipher else b""
        data = bytearray(MAGIC + records.frame(HEADER, 0, 0, self._id + seal))
        places: dict[int, tuple[int, int]] = {}
        for number, payload in entries:
            start = len(data)
            data += records.frame(BEGUN, number, start, payload)
            places[number] = (start, len(data) - start)
        new = self.path.with_name(self.path.name + ".new")
        descriptor = -1
        try:
            with contextlib.suppress(FileNotFoundError):
                new.unlink()  # of a crash; its mode may be another one
            descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
            failpoint("client_in_compaction")
            os.replace(new, self.path)
        except OSError as error:
            if descriptor != -1:
                os.close(descriptor)
                new.unlink(missing_ok=True)
            kind = JournalFull if error.errno in _FULL else JournalError
            raise kind(f"{self.path}: {error.strerror}; nothing was sent") from error
        if self._descriptor != -1:
            os.close(self._descriptor)
        self._descriptor = descriptor
        self._entries = places
        self._size = self._durable = len(data)
        self._generation += 1
        self._sync_folder()

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        except OSError as error:
            self._broken = f"{self.path}: the folder cannot be made durable ({error.strerror})"
            raise JournalError(f"{self._broken}; nothing was sent") from error
        finally:
            os.close(folder)

    def _frame(self, kind: int, number: int, payload: bytes) -> bytes:
        if self._cipher is not None and kind == BEGUN:
            payload = self._cipher.seal(payload, self._about(kind, number))
        return records.frame(kind, number, self._durable, payload)

    def _about(self, kind: int, number: int) -> bytes:
        return self._id + bytes([kind]) + number.to_bytes(8, "big")

    # --- who may write ----------------------------------------------------------------------

    def require_usable(self) -> None:
        """Raise `JournalError` in a forked child, after an error of the disk, and once closed."""
        if os.getpid() != self._owner:
            raise JournalInUse(
                f"{self.path} was opened by process {self._owner}, before the fork; open a journal"
                " of its own in each process; nothing was sent"
            )
        if self._broken is not None:
            raise JournalError(f"{self._broken}; nothing was sent")

    def _forked(self) -> None:
        # The child's copies would hold the lock after the parent's death.
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        for descriptor in (self._descriptor, self._locked):
            if descriptor != -1:
                os.close(descriptor)
        self._descriptor = self._locked = -1


def _cipher(key: bytes | None) -> Cipher | None:
    if key is None:
        return None
    from semel.client.cipher import Cipher

    return Cipher(key)
