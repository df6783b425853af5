"""A fair lock between processes that write one file.

SQLite's own wait (`busy_timeout`) lets whoever writes most starve the others for seconds. Here a
process takes its place in a queue of one before it waits: the last writer, wanting the lock again,
finds that place taken and waits its turn. The kernel frees both locks of a killed process.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows: SQLite's own locks still exclude, unfairly
    fcntl = None  # type: ignore[assignment]

_PAUSE = 0.0002
"""Seconds between looks at a lock that is taken; about one fsync of a good disk."""


class Turnstile:
    """Two `flock`s beside the file: the place next in the queue, and the right to write."""

    def __init__(self, path: Path) -> None:
        self.contended = False
        """Whether another process has been seen here."""
        self._files: tuple[int, int] | None = None
        if fcntl is not None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            names = (f"{path}-semel-next", f"{path}-semel-write")
            self._files = (os.open(names[0], flags, 0o644), os.open(names[1], flags, 0o644))

    def enter(self, deadline: float | None) -> bool:
        """Win the right to write. False where it cannot be had by `deadline` (monotonic seconds).

        None does not wait at all.
        """
        if self._files is None:
            return True
        following, writing = self._files
        if not self._take(following, deadline):
            return False
        try:
            return self._take(writing, deadline)
        finally:
            fcntl.flock(following, fcntl.LOCK_UN)

    def leave(self) -> None:
        """Give the right to write to the next in the queue."""
        if self._files is not None:
            fcntl.flock(self._files[1], fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the files."""
        files, self._files = self._files, None
        for file in files or ():
            os.close(file)

    def _take(self, file: int, deadline: float | None) -> bool:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.contended = True
                if deadline is None or time.monotonic() >= deadline:
                    return False
                time.sleep(_PAUSE)
            else:
                return True
