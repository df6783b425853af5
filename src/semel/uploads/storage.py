"""The storage of finished files, each kept once under its SHA-256."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from pathlib import Path
from typing import BinaryIO, Protocol

from semel.failpoints import failpoint
from semel.uploads.durable import UNFINISHED, locked, make_folder, sync_file, sync_folder

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)


class StorageError(Exception):
    """The storage failed: nothing was stored, or it is not known whether something was.

    Trying again is safe, since an object has one name and one content.
    """


def checked_digest(digest: str) -> str:
    """Return a digest that may become part of a name: 64 hexadecimal digits.

    Raises `ValueError` for anything else, `../` included.
    """
    if _DIGEST.fullmatch(digest) is None:
        raise ValueError(f"an object is named by 64 hexadecimal digits, not {digest!r}")
    return digest


class Storage(Protocol):
    """The interface of a storage. Blocking: it is called on threads, by several at a time."""

    def put(self, digest: str, file: Path) -> bool:
        """Store a copy of a file, durably; False: it was there already. Raises `StorageError`."""

    def open(self, digest: str) -> BinaryIO:
        """Return an object's bytes. Raises `FileNotFoundError`, `StorageError`."""

    def size(self, digest: str) -> int | None:
        """Return an object's size, None where there is none. Raises `StorageError`."""

    def remove(self, digest: str) -> None:
        """Remove an object, where there is one.

        Who still refers to it is for the service to know. Raises `StorageError`.
        """

    def sweep(self, older: float) -> int:
        """Clear away what crashes left more than `older` seconds ago; return how many."""


class DiskStorage:
    """Objects as files: `folder/ab/abcd….`, whole or not there, safe from a loss of power.

    The folder may be shared by any number of processes, of several machines too if its file system
    keeps `flock` and `rename` (NFSv4 does).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._durable: set[Path] = set()
        """Shelves whose names this process has made durable."""

    def put(self, digest: str, file: Path) -> bool:
        """Store a copy of a file: a hard link where that can be, so that nothing is copied."""
        final = self._path(digest)
        shelf = final.parent
        try:
            if shelf not in self._durable or not shelf.is_dir():
                make_folder(self.folder)
                make_folder(shelf)
                self._durable.add(shelf)
            with locked(shelf):  # so that one of many copies is written, and the others need not be
                new = not final.exists() or final.stat().st_size != file.stat().st_size
                if new:
                    self._place(file, final)
                sync_folder(shelf)  # even if not new: whoever placed it may have died before this
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StorageError(f"cannot store {digest}: {error}") from error
        return new

    def _place(self, file: Path, final: Path) -> None:
        draft = final.with_name(f"{final.name}.{secrets.token_hex(4)}{UNFINISHED}")
        try:
            try:
                os.link(file, draft)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                shutil.copyfile(file, draft)
            sync_file(draft)
            failpoint("upload_placing")
            os.replace(draft, final)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def open(self, digest: str) -> BinaryIO:
        """Open an object."""
        return self._path(digest).open("rb")

    def size(self, digest: str) -> int | None:
        """Return an object's size."""
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def remove(self, digest: str) -> None:
        """Remove an object."""
        self._path(digest).unlink(missing_ok=True)

    def sweep(self, older: float) -> int:
        """Remove the drafts that crashes left."""
        before, removed = time.time() - older, 0
        for draft in self.folder.glob(f"??/*{UNFINISHED}"):
            with contextlib.suppress(FileNotFoundError):  # placed meanwhile
                if draft.stat().st_ctime < before:  # linking sets the ctime, and not the mtime
                    draft.unlink()
                    removed += 1
        return removed

    def _path(self, digest: str) -> Path:
        checked_digest(digest)
        return self.folder / digest[:2] / digest
