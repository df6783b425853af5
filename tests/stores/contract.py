"""What the contract's tests share: a clock of their own, and the stores on their real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from semel.stores import Store
from semel.stores.memory import MemoryStore
from semel.stores.sqlite import SQLiteStore


class Clock:
    """Seconds since the epoch, as the test says."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def memory(folder: Path, clock: Clock) -> Iterator[Store]:
    yield MemoryStore(clock=clock)


@contextmanager
def sqlite(folder: Path, clock: Clock) -> Iterator[Store]:
    yield SQLiteStore(folder / "records.db", synchronous="normal", clock=clock)


STORES: dict[str, Callable[[Path, Clock], object]] = {"memory": memory, "sqlite": sqlite}
"""How each store is made, on a server and in tables of its own."""
