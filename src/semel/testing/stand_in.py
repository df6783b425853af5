"""A store that stands in for a service's own, for the length of a test or of a suite."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from semel.idempotency import Idempotency
from semel.stores import open_store
from semel.stores.base import Store, StoreSetupError

__all__ = ["in_memory", "standing_in"]

_IN_MEMORY: Final = Path("/dev/shm")
_ATTRIBUTES: Final = (
    *("store", "runtime", "operations", "init", "started"),
    *("_sweep_every", "_sweeper", "_stopping"),
)


@contextlib.contextmanager
def in_memory(
    idempotency: Idempotency, store: str | Store | None = None, *, setup: str = ""
) -> Iterator[Store]:
    """Have a service work in memory instead of on its database, until the block ends.

        @pytest.fixture(autouse=True)
        def keys():
            with in_memory(app.idempotency, setup="create table charges (amount int)"):
                yield

    - `store`: a URL or a store to work on instead. Without it, where the service's own is on a
      database, an empty SQLite database that is thrown away, so that `op.connection()` is there (it
      is SQLite's then); else `memory://`.
    - `setup`: SQL that makes the tables your handlers write to, where it is an SQLite database.

    Nothing is asked of the service's own store meanwhile, so it need not be there, nor be known: an
    `init(store)` in the block, as of an application factory, changes nothing. Returns the store
    that stands in. Raises `StoreSetupError` for a service on `SQLAlchemyStore` or
    `DjangoStore` without `store=`: their handlers need an engine of theirs.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(store, str):
            store = open_store(store)
        elif store is None:
            store = _made(vars(idempotency).get("store"), setup, stack)
            setup = ""
        if setup:
            raise StoreSetupError("setup: the store that you give has its tables from you")
        stack.enter_context(standing_in(idempotency, store))
        stack.callback(store.stop)
        yield store


def _made(own: Store | None, setup: str, stack: contextlib.ExitStack) -> Store:
    if own is not None and own.name in ("sqlalchemy", "django"):
        raise StoreSetupError(
            f"in_memory: {type(own).__name__} works through an engine or a connection of your own:"
            " give in_memory(idempotency, SQLAlchemyStore(test_engine)), use"
            " semel.testing.joined(idempotency, connection), or Django's TestCase, which needs"
            " nothing"
        )
    if own is not None and not own.atomic and not setup:
        return open_store("memory://")
    shared = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="semel-", dir=shared))
    path = Path(folder) / "memory.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(setup)
    return open_store(f"sqlite:///{path}?synchronous=normal")


@contextlib.contextmanager
def standing_in(idempotency: Idempotency, store: Store) -> Iterator[None]:
    """Have a service's operations go to another store until the block ends.

    The service starts anew on it when it is first asked; an `init` meanwhile changes nothing.
    """
    own: dict[str, Any] = vars(idempotency)
    before: dict[str, Any] = {name: own[name] for name in _ATTRIBUTES if name in own}
    # Middleware remembers responses only of stores that are read first: this one's are forgotten.
    store.lookup_first = False
    instead: dict[str, Any] = {
        "store": store,
        "started": False,
        "init": lambda store: None,
        "_sweep_every": None,
        "_sweeper": None,
        "_stopping": threading.Event(),
    }
    own.update(instead)
    idempotency._make_runtime()
    try:
        yield
    finally:
        idempotency.runtime.leases.stop()
        for name in _ATTRIBUTES:
            own.pop(name, None)
        own.update(before)
