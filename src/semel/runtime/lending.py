"""Threads of a pool that wait for a transaction, and threads that stand in for them meanwhile.

A plain `def` under an event loop runs on a thread of a pool. Where all of them wait there for a
connection, the operation that has it finds no thread to go on with, and nobody gets anywhere. So
once more than half of a pool waits, it has a thread more for each further one that does, as Java's
`ForkJoinPool.ManagedBlocker` has it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from asyncio import AbstractEventLoop
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

_lock = threading.Lock()


class ThreadPool(Protocol):
    """A pool whose number of threads can be changed."""

    waiting: int
    """Its threads that wait for a transaction."""

    def size(self) -> float:
        """Return how many threads it has, those that stand in left out. Called under the lock."""

    def lend(self, more: int) -> None:
        """Let so many more threads stand in, or less."""


@contextlib.contextmanager
def standing_in() -> Iterator[None]:
    """Have the calling thread's pool keep room for others while this thread waits inside."""
    pool = _pool_of(threading.current_thread())
    if pool is None:
        yield
        return
    with _lock:
        pool.waiting += 1
        lends = pool.waiting > pool.size() // 2
    if lends:
        pool.lend(1)
    try:
        yield
    finally:
        with _lock:
            pool.waiting -= 1
        if lends:
            pool.lend(-1)


class _AnyIOThreads:
    """The threads that FastAPI and Starlette have from anyio: its limiter's tokens."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        anyio = sys.modules["anyio"]  # loaded, since this is a thread of its; else never needed
        self.waiting = self._lent = 0
        self._loop = weakref.ref(loop)
        limiter = anyio.to_thread.current_default_thread_limiter
        self._limiter: Any = anyio.from_thread.run_sync(limiter)

    def size(self) -> float:
        tokens: float = self._limiter.total_tokens
        return tokens - self._lent

    def lend(self, more: int) -> None:
        loop = self._loop()
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(self._lend, more)

    def _lend(self, more: int) -> None:
        with _lock:
            self._lent += more
            self._limiter.total_tokens += more


class _ExecutorThreads:
    """The threads of an executor: asyncio's own (Litestar, Quart), or one of the application's."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self.waiting = self._lent = 0
        self._executor = weakref.ref(executor)

    def size(self) -> float:
        executor = self._executor()
        return 0 if executor is None else executor._max_workers - self._lent

    def lend(self, more: int) -> None:
        executor = self._executor()
        if executor is None:
            return
        with _lock:
            self._lent += more
            executor._max_workers += more
        if more < 0:
            return
        with contextlib.suppress(RuntimeError):  # it is shut down
            for _ in range(_NUDGES):
                if len(executor._threads) >= executor._max_workers:
                    return
                executor.submit(int)  # which begins a thread, unless it believes one to be idle


_NUDGES = 256
"""How often an executor is asked for a thread: Python 3.11's counts threads as idle that are not,
one for each call that came while others were queued, and takes one off with each that it is given.
"""

_pools: weakref.WeakKeyDictionary[Any, ThreadPool] = weakref.WeakKeyDictionary()
"""By what they belong to: an event loop or an executor."""


def _pool_of(thread: threading.Thread) -> ThreadPool | None:
    """The pool that a thread belongs to, or None where it is of no kind that is known."""
    if thread.name == "AnyIO worker thread":
        owner: Any = getattr(thread, "loop", None)
        make: Any = _AnyIOThreads
    else:
        given = getattr(thread, "_args", ())[:1]
        owner = _executor_in(given[0]) if given else None
        make = _ExecutorThreads
    if owner is None:
        return None
    pool = _pools.get(owner)
    if pool is None:
        made = make(owner)
        with _lock:
            pool = _pools.setdefault(owner, made)
    return pool


def _executor_in(argument: object) -> ThreadPoolExecutor | None:
    """The executor that an executor's thread was given a weak reference to.

    None for one of a single thread: that is there so that nothing runs beside it.
    """
    executor = argument() if isinstance(argument, weakref.ref) else None
    several = isinstance(executor, ThreadPoolExecutor) and executor._max_workers > 1
    return executor if several else None
