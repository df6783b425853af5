"""Operations inside a test's own transaction, which the test rolls back."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from semel.core.commands import Complete, Open, Reply, StoreCommand
from semel.idempotency import Idempotency
from semel.stores.base import StoreSetupError, Transaction
from semel.stores.memory import MemoryStore
from semel.testing.stand_in import standing_in

__all__ = ["JoinedStore", "joined"]


@contextlib.contextmanager
def joined(idempotency: Idempotency, connection: Any) -> Iterator[None]:
    """Have operations take place inside a test's own transaction, until the block ends.

        with engine.connect() as connection, connection.begin() as transaction:
            with joined(idempotency, connection):
                ...  # client.post(…); what op.session() writes is seen on `connection`
            transaction.rollback()

    `connection`: for `SQLAlchemyStore` SQLAlchemy's `Connection`, `AsyncConnection` or `Session`;
    for `postgresql://` psycopg's `Connection` or `AsyncConnection`. Its transaction has begun. Each
    operation is a savepoint of it: released where it commits, rolled back where its handler raises.
    The keys' records live and end with the block, so the next test finds neither. A plain `with`
    does for async tests too, on the test's own event loop.

    One operation at a time: the connection has one transaction. Raises `StoreSetupError` for a
    connection that is in none, or that this service's handlers could not work with.
    """
    store = _store_on(idempotency, connection)
    with standing_in(idempotency, store):
        yield


def _store_on(idempotency: Idempotency, connection: Any) -> JoinedStore:
    own = idempotency.store
    if own.name == "django":
        raise StoreSetupError("joined: not needed under Django: TestCase's transaction is used")
    if own.name == "sqlalchemy" and "sqlalchemy" in sys.modules:
        from semel.testing.joined_sqlalchemy import SQLAlchemyJoinedStore, connection_of

        known = connection_of(connection)
        if known is not None:
            return SQLAlchemyJoinedStore(known, own)
    if own.name == "postgresql" and "psycopg" in sys.modules:
        import psycopg

        from semel.testing.joined_psycopg import PsycopgJoinedStore

        if isinstance(connection, (psycopg.Connection, psycopg.AsyncConnection)):
            return PsycopgJoinedStore(connection)
    raise StoreSetupError(
        f"joined: a {type(connection).__name__} does not go with {type(own).__name__}: give"
        " SQLAlchemy's Connection, AsyncConnection or Session for SQLAlchemyStore, psycopg's"
        " Connection or AsyncConnection for postgresql://; for other stores there is"
        " semel.testing.in_memory"
    )


class JoinedStore:
    """Records of this process's own, and transactions that are savepoints of the test's."""

    name = "joined"
    atomic = True
    lookup_first = False
    opens = False
    expires_itself = False

    def __init__(self) -> None:
        self._records = MemoryStore()
        self._busy = False

    def now(self) -> float:
        """Return this machine's time."""
        return self._records.now()

    def start(self) -> None:
        """Nothing to open."""

    def stop(self) -> None:
        """Nothing to close: a service that stops in the middle of a test has its records still."""

    def execute(self, command: StoreCommand) -> Reply:
        """Carry out one command."""
        return self._records.execute(command)

    async def aexecute(self, command: StoreCommand) -> Reply:
        """Carry out one command."""
        return self._records.execute(command)

    def begin(self) -> Transaction:
        """Begin a savepoint for a plain handler."""
        raise NotImplementedError

    async def abegin(self) -> Transaction:
        """Begin a savepoint for an async handler."""
        raise NotImplementedError

    def take(self) -> None:
        """Note that an operation has the connection. Raises `StoreSetupError` where one has it."""
        if self._busy:
            raise StoreSetupError(
                "joined: another operation of this test has the connection: send requests one after"
                " another, or give each operation a database connection of its own"
            )
        self._busy = True

    def give_back(self) -> None:
        """Note that the operation has ended."""
        self._busy = False

    def complete(self, command: Complete) -> bool:
        """Complete the record. False: fenced."""
        return self._records.execute(command) is True

    def open(self, command: Open) -> NoReturn:
        """Refuse (`opens`)."""
        raise StoreSetupError(_BY_RECORD)

    async def aopen(self, command: Open) -> NoReturn:
        """Refuse, as `open` does."""
        raise StoreSetupError(_BY_RECORD)


_BY_RECORD: Final = "a claim is a record here"
