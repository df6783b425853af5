"""The protocol of a store of records, and of the transactions that it may offer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from semel.core.commands import Complete, Found, Open, Reply, StoreCommand

__all__ = ["Store", "StoreSetupError", "Transaction"]


class StoreSetupError(ValueError):
    """The store cannot be used as asked; the message says why and what to do."""


class Transaction(Protocol):
    """A business transaction in the database that holds the records.

    A store whose transactions carry sessions of an ORM gives them a `session` and `async_session`.
    """

    token: int | None
    """The fencing token under which the transaction itself is the claim (`Store.open`)."""

    @property
    def connection(self) -> Any:
        """The native connection for plain code (`Any`: each store has its own kind)."""

    @property
    def async_connection(self) -> Any:
        """The same for async code: its methods are awaited."""

    def complete(self, command: Complete) -> bool:
        """Write the completion and commit, both or neither. False: fenced, rolled back."""

    async def acomplete(self, command: Complete) -> bool:
        """As `complete`, without blocking the event loop."""

    def rollback(self) -> None:
        """Undo everything. Does not block for long and never raises.

        It may only be asked for when this returns, and be carried out meanwhile.
        """

    async def arollback(self) -> None:
        """As `rollback`, and return once it has been carried out."""


@runtime_checkable
class Store(Protocol):
    """Keeps records. Every command is all or nothing, and durable when it returns.

    Commands raise `StoreUnavailable` where they were definitely not carried out, `StoreUnknown`
    where that cannot be told.
    """

    name: str
    """Its kind, for logs and errors."""
    atomic: bool
    """Whether it offers transactions that hold business writes."""
    lookup_first: bool
    """Whether a read costs so little that it comes before each claim."""
    expires_itself: bool
    """Whether what is due has its effect at once, without a `Sweep`."""
    opens: bool
    """Whether a transaction can be the claim itself, so that an operation commits only once."""

    @property
    def file(self) -> Path | None:
        """The file that has one writer at a time (SQLite), or None: several may write at once."""

    def now(self) -> float:
        """Return the store's clock, in seconds. Asked only of stores that are `lookup_first`."""

    def start(self) -> None:
        """Open it and bring its tables up to date. Raises `StoreSetupError`."""

    def stop(self) -> None:
        """Close it. Commands may still be given after another `start`."""

    def execute(self, command: StoreCommand) -> Reply:
        """Carry out one command on the calling thread."""

    async def aexecute(self, command: StoreCommand) -> Reply:
        """Carry out one command without blocking the event loop."""

    def begin(self) -> Transaction:
        """Begin a transaction. Raises `StoreSetupError` where the store is not `atomic`."""

    async def abegin(self) -> Transaction:
        """As `begin`, without blocking the event loop."""

    def open(self, command: Open) -> Transaction | Found | None:
        """Begin a transaction that holds the key; see `Open`. Only where the store `opens`."""

    async def aopen(self, command: Open) -> Transaction | Found | None:
        """As `open`, without blocking the event loop."""


def store_for_a_thread(store: Store) -> Store | None:
    """Return a second store of the same place, with connections that no other thread uses.

    None where this kind of store has none to give: its `for_a_thread` is not there.
    """
    make = getattr(store, "for_a_thread", None)
    made: Store | None = None if make is None else make()
    return made
