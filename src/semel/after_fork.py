"""Callbacks after a fork, for the owners of threads and handles, which do not survive one."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable


def call_after_fork(method: Callable[[], None]) -> None:
    """Call a bound method in every child process that is forked while its object lives."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_weakly(method))


def call_around_fork(
    before: Callable[[], None], in_parent: Callable[[], None], in_child: Callable[[], None]
) -> None:
    """Call an object's bound methods before every fork, and after it on each side."""
    calls = [_weakly(method) for method in (before, in_parent, in_child)]
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=calls[0], after_in_parent=calls[1], after_in_child=calls[2])


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    own = weakref.WeakMethod(method)

    def call() -> None:
        live = own()
        if live is not None:
            live()

    return call
