"""The spool folder of unfinished uploads: their bytes, their states, locks and quotas.

`partial/` has a sparse file for each unfinished upload, as long as the whole will be, so that a
listing shows what is reserved. One that a storage has linked is an object too, and never changed.
`state/` has what is known of each, finished or not. A name begins with the owner's hash: another
caller cannot even look an upload up. Whoever has the lock of a partial file may change it and its
state; the kernel takes the lock from a process that dies.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from semel.failpoints import failpoint
from semel.uploads import problems
from semel.uploads.durable import (
    UNFINISHED,
    locked,
    make_folder,
    sync_folder,
    try_lock,
    unlock,
    write_whole,
)
from semel.uploads.problems import UploadRefused, over_quota
from semel.uploads.state import Upload
from semel.uploads.storage import StorageError

log = logging.getLogger("semel")

GIBIBYTE = 1024**3
READ = 1024 * 1024
_MOST_AT_ONCE = 512
"""Buffers in one `pwritev`; Linux takes 1024."""
_NAME = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}")
_DRAFTS_LIVE = 3600.0
"""Seconds after which a draft is surely nobody's."""


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """How much may be uploaded; what is unfinished counts with its whole length from the start.

    Raises `ValueError` for a limit that lets nothing through.
    """

    max_size: int = GIBIBYTE
    """Bytes of the largest file; 413 beyond."""
    caller_bytes: int = 4 * GIBIBYTE
    """Bytes that one caller may have under way; 429 beyond."""
    caller_uploads: int = 100
    """Uploads that one caller may have under way; 429 beyond. Abandoned ones count until they
    expire or are deleted."""
    total_bytes: int = 64 * GIBIBYTE
    """Bytes that all callers may have under way; 507 beyond. Choose it below the folder's disk."""

    def __post_init__(self) -> None:
        """Check."""
        for name in ("max_size", "caller_bytes", "caller_uploads", "total_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} has to be at least 1")


class Part:
    """The bytes of an unfinished upload, locked."""

    __slots__ = ("_file", "_shared", "path")

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self._file = file
        self._shared = os.fstat(file).st_nlink > 1

    def write(self, chunks: Sequence[bytes], offset: int) -> None:
        """Write at an offset. Raises `OSError`."""
        self._unshare(keep=True)
        for start in range(0, len(chunks), _MOST_AT_ONCE):
            views = [memoryview(chunk) for chunk in chunks[start : start + _MOST_AT_ONCE] if chunk]
            while views:
                written = os.pwritev(self._file, views, offset)
                offset += written
                while views and written >= len(views[0]):
                    written -= len(views.pop(0))
                if views:
                    views[0] = views[0][written:]

    def read(self) -> Iterator[bytes]:
        """Give all bytes, from the start."""
        offset = 0
        while chunk := os.pread(self._file, READ, offset):
            yield chunk
            offset += len(chunk)

    def resize(self, length: int) -> None:
        """Set room aside for a new upload. Raises `OSError`."""
        self._unshare(keep=False)
        os.ftruncate(self._file, length)

    def _unshare(self, *, keep: bool) -> None:
        """Go on in a file of its own where this one is a stored object as well.

        It is where an upload failed, or was killed, between being stored and being complete.
        """
        if self._shared:
            own = _replaced(self.path, keep)
            unlock(self._file)
            self._file, self._shared = own, False

    def sync(self) -> None:
        """Make what was written durable."""
        os.fsync(self._file)

    def close(self) -> None:
        """Let go of it. A second call does nothing."""
        if self._file >= 0:
            file, self._file = self._file, -1
            unlock(file)

    def __del__(self) -> None:
        """Let go of one that nobody can close any more: its event loop ended before its request.

        Not with `unlock`: in a forked child that would be the parent's lock.
        """
        if self._file >= 0:
            os.close(self._file)

    def remove(self) -> None:
        """Remove it, and let go."""
        self.path.unlink(missing_ok=True)
        self.close()


class Spool:
    """The folder. Every method blocks; many threads and processes of one machine may share it."""

    def __init__(
        self, folder: Path, limits: UploadLimits, now: Callable[[], float] = time.time
    ) -> None:
        self.now = now
        self._limits = limits
        self._partial = folder / "partial"
        self._state = folder / "state"
        make_folder(folder)
        for made in (self._partial, self._state):
            make_folder(made, mode=0o700)

    def reserve(self, owner: str, name: str, length: int) -> Part | Upload:
        """Set room aside for a new upload; or return the one of this name, where there is one.

        Raises `UploadRefused` over a quota, and while somebody else is just making it.
        """
        path = self._partial / f"{owner}-{name}"
        with locked(self._partial):
            self._check_quotas(owner, length)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode=0o600)
            part = _own(path, file)
            try:
                found = self.read(owner, name)
            except BaseException:
                part.close()
                raise
            try:
                if found is None:
                    part.resize(length)
            except OSError:
                part.remove()
                raise
        if found is not None:
            if found.complete:
                part.remove()
            part.close()
            return found
        failpoint("upload_reserved")
        return part

    def _check_quotas(self, owner: str, length: int) -> None:
        total = length
        mine, mine_bytes = 1, length
        with os.scandir(self._partial) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    size = entry.stat(follow_symlinks=False).st_size
                    total += size
                    if entry.name.startswith(owner):
                        mine += 1
                        mine_bytes += size
        if mine > self._limits.caller_uploads:
            raise over_quota(self._limits.caller_uploads, "uploads")
        if mine_bytes > self._limits.caller_bytes:
            raise over_quota(self._limits.caller_bytes, "bytes")
        if total > self._limits.total_bytes:
            raise UploadRefused(problems.STORAGE_FULL)

    def lock(self, owner: str, name: str) -> Part | None:
        """Have an unfinished upload to oneself; None where it has no bytes here.

        Raises `UploadRefused` while somebody else has it.
        """
        path = self._partial / f"{owner}-{name}"
        try:
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        return _own(path, file)

    def read(self, owner: str, name: str) -> Upload | None:
        """Return what is known of an upload, unless it has expired. Raises `StorageError`."""
        found = self._read(self._state / f"{owner}-{name}")
        return found if found is not None and found.expires_at > self.now() else None

    def _read(self, path: Path) -> Upload | None:
        try:
            return Upload.from_bytes(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StorageError(f"{path} cannot be read: {error}") from error

    def begin(self, owner: str, upload: Upload) -> None:
        """Make a new upload durable, its partial file first. The caller has its lock."""
        sync_folder(self._partial)
        self.write(owner, upload)

    def write(self, owner: str, upload: Upload) -> None:
        """Make the state of an upload durable. The caller has its lock."""
        write_whole(self._state / f"{owner}-{upload.id}", upload.to_bytes())

    def write_complete(self, owner: str, upload: Upload) -> None:
        """Make the state of a stored upload durable; a sweep cannot remove it meanwhile."""
        with locked(self._partial):
            self.write(owner, upload)

    def forget(self, owner: str, name: str) -> None:
        """Remove the state of an upload, durably."""
        (self._state / f"{owner}-{name}").unlink(missing_ok=True)
        sync_folder(self._state)

    def sweep(self) -> int:
        """Clear away what has expired or was left by a crash; return how many uploads.

        One that somebody is sending to is left alone, expired or not.
        """
        removed = 0
        for state in list(self._state.iterdir()):
            if state.name.endswith(UNFINISHED):
                _clear_draft(state)
            elif self._is_due(state.name):
                removed += self._sweep(state.name)
        for path in list(self._partial.iterdir()):
            if path.name.endswith(UNFINISHED):
                _clear_draft(path)
            elif self._is_left_over(path.name):
                removed += self._sweep(path.name)
        return removed

    def _sweep(self, name: str) -> bool:
        with locked(self._partial):  # nobody begins it, or completes it, just now
            try:
                part = self.lock(*name.split("-"))
            except UploadRefused:
                return False
            try:
                due = self._is_due(name)
                if due:
                    (self._state / name).unlink(missing_ok=True)
                    failpoint("upload_in_sweep")
                if not due and not self._is_left_over(name):
                    return False
                (self._partial / name).unlink(missing_ok=True)
                return True
            finally:
                if part is not None:
                    part.close()

    def _is_due(self, name: str) -> bool:
        """Whether an upload has expired."""
        found = self._known(name)
        return isinstance(found, Upload) and found.expires_at <= self.now()

    def _is_left_over(self, name: str) -> bool:
        """Whether a crash came between a partial file and its state, at its begin or its end."""
        found = self._known(name)
        return found is None or (isinstance(found, Upload) and found.complete)

    def _known(self, name: str) -> Upload | Literal["unreadable"] | None:
        if _NAME.fullmatch(name) is None:
            return "unreadable"  # not ours
        try:
            return self._read(self._state / name)
        except StorageError as error:
            log.warning("%s", error)
            return "unreadable"


def _clear_draft(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_mtime < time.time() - _DRAFTS_LIVE:
            path.unlink()


def _replaced(path: Path, keep: bool) -> int:
    """Put a copy, or an empty file, in the place of a file whose lock one has; return it, locked.

    Whoever opened the file before sees from its name that it is another one. Raises `OSError`.
    """
    draft = path.with_name(path.name + UNFINISHED)
    file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode=0o600)
    try:
        try_lock(file)  # nobody else asks for it before it has its name
        os.ftruncate(file, 0)  # a kill may have left it
        if keep:
            shutil.copyfile(path, draft)
        os.fsync(file)
        failpoint("upload_copied")
        os.replace(draft, path)
        sync_folder(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        unlock(file)
        raise
    return file


def _own(path: Path, file: int) -> Part:
    """Lock a partial file that was opened.

    Raises `UploadRefused` where somebody else has it, or had it when it was opened and has removed
    it since.
    """
    if try_lock(file):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file).st_ino:
                return Part(path, file)
    os.close(file)  # what is held is the file's lock, and goes with it
    raise UploadRefused(problems.UPLOAD_LOCKED)
