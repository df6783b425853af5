"""The server that this process works for, as far as that can be seen from inside.

WSGI tells an application next to nothing about the server's threads, and nothing of a shutdown.
"""

from __future__ import annotations

import math
import re
import signal
import sys
import threading
import time
from typing import Any

STREAMS_END = 1.0
"""Seconds that a shutdown leaves to streams whose clients have left: they may be endless."""

_DIGITS = re.compile(r"\d+")


def count_threads() -> float:
    """Return how many threads the server has for requests, the calling one among them.

    gunicorn's settings say it. Elsewhere those count that bear the calling thread's name with
    another number (`waitress-2`, `ThreadPoolExecutor-0_1`): a pool that grows as it is needed is
    taken to be as large as it has been so far. Infinite where requests are served by greenlets,
    which are not scarce.
    """
    if greenlets() is not None:
        return math.inf
    worker = _gunicorn_worker()
    if worker is not None and getattr(worker, "tpool", None) is not None:
        return int(worker.cfg.threads)
    own = _family(threading.current_thread())
    return sum(_family(thread) == own for thread in threading.enumerate())


def _family(thread: threading.Thread) -> str:
    return _DIGITS.sub("", thread.name)


def is_stopping() -> bool:
    """Say whether the server is known to be shutting down: gunicorn's workers can be asked."""
    worker = _gunicorn_worker()
    return worker is not None and not worker.alive


class Shutdown:
    """A look-out for the server's shutdown, by one who goes on with a stream that nobody reads."""

    def __init__(self) -> None:
        self._seen: float | None = None

    def is_due(self) -> bool:
        """Say whether the time that a shutdown leaves to such a stream is over."""
        if self._seen is None:
            if is_stopping():
                self._seen = time.monotonic()
            return False
        return time.monotonic() - self._seen >= STREAMS_END


def _gunicorn_worker() -> Any:
    """The gunicorn worker of this process, whose method handles SIGTERM; or None."""
    worker = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return worker if hasattr(worker, "cfg") and hasattr(worker, "alive") else None


def greenlets() -> str | None:
    """Return the library whose greenlets stand in for this process's threads, or None."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("threading"):
        return "gevent"
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return "eventlet"
    return None
