"""Durable writes: a file or folder is on disk when the call returns."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

UNFINISHED = ".tmp"
"""Ends the name of a file that is being written; a crash leaves it, a sweep removes it."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a crash, of the power too, leaves the old content or the new.

    Raises `OSError`, a full disk among them: the old content stands.
    """
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            left = memoryview(content)
            while left:  # a disk that is nearly full takes a part, and refuses the rest
                left = left[os.write(file, left) :]
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder, and those above it, durably.

    The name of one that is there is made durable too: whoever made it may have died before that.
    Raises `OSError`.
    """
    if not folder.is_dir():
        if not folder.parent.is_dir():
            make_folder(folder.parent)
        folder.mkdir(mode, exist_ok=True)
    with contextlib.suppress(PermissionError):  # no folder of a user who may not even read it
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have a file or folder to oneself, among the threads and processes of this machine."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        unlock(file)


def try_lock(file: int) -> bool:
    """Lock an open file if nobody else has; say whether."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(file: int) -> None:
    """Unlock and close. A child that was forked meanwhile holds the file, but not the lock."""
    fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)
