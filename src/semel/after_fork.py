"""Threads and handles do not survive a fork: their owners are told in the child."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable


def call_after_fork(method: Callable[[], None]) -> None:
    """Call a bound method in every child process that is forked while its object lives."""
    own = weakref.WeakMethod(method)

    def in_child() -> None:
        live = own()
        if live is not None:
            live()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=in_child)
