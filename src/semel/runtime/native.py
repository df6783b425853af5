"""Threads of the operating system, where gevent has put greenlets in the place of threads.

A greenlet runs only when the others wait, so one cannot renew leases while a handler computes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def _original(name: str) -> Any:
    """What gevent has replaced in `_thread`."""
    return sys.modules["gevent.monkey"].get_original("_thread", name)


class NativeEvent:
    """As `threading.Event`, between a native thread and those that set it."""

    def __init__(self) -> None:
        self._unset = _original("allocate_lock")()
        self._unset.acquire()

    def set(self) -> None:
        """Wake who waits, or the next one who does."""
        try:
            self._unset.release()
        except RuntimeError:  # set already
            return

    def wait(self, timeout: float) -> bool:
        """Wait, and clear it. False: `timeout` seconds have passed."""
        return bool(self._unset.acquire(timeout=timeout))

    def clear(self) -> None:
        """Do nothing: `wait` has cleared it."""


class NativeThread:
    """As a `threading.Thread` that is a daemon and has been started."""

    def __init__(self, target: Callable[[], None]) -> None:
        self._target = target
        self._ended = NativeEvent()
        _original("start_new_thread")(self._run, ())

    def _run(self) -> None:
        try:
            self._target()
        finally:
            self._ended.set()

    def join(self, timeout: float) -> None:
        """Wait for its end, `timeout` seconds at most."""
        self._ended.wait(timeout)
