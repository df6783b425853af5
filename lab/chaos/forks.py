"""Processes for the chaos rigs, forked from a warm parent."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable


def fork(work: Callable[[], None]) -> int:
    """Start a process that does `work` and ends; return its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:  # noqa: BLE001  # said, and shown by the exit status
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(child: int) -> bool | None:
    """Say how a process ended. True: killed; False: by itself; None: it runs.

    Raises `RuntimeError` where it failed by itself.
    """
    found, status = os.waitpid(child, os.WNOHANG)
    if found == 0:
        return None
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status:
        raise RuntimeError(f"process {child} failed by itself, with status {status}")
    return False
