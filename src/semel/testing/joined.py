"""Operations inside a test's own transaction, which the test rolls back."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from semel.idempotency import Idempotency
from semel.stores.base import Store, StoreSetupError
from semel.testing.stand_in import standing_in

__all__ = ["joined"]


@contextlib.contextmanager
def joined(idempotency: Idempotency, connection: Any) -> Iterator[None]:
    """Have operations take place inside a test's own transaction, until the block ends.

        with engine.connect() as connection, connection.begin() as transaction:
            with joined(idempotency, connection):
                ...  # client.post(…); what op.session() writes is seen on `connection`
            transaction.rollback()

    `connection`: for `SQLAlchemyStore` SQLAlchemy's, plain or async, or a `Session`;
    for `postgresql://` one of psycopg's, plain or async. Its transaction has begun. Each
    operation is a savepoint of it: released where it commits, rolled back where its handler raises.
    The keys' records live and end with the block, so the next test finds neither. A plain `with`
    does for async tests too, on the test's own event loop.

    One operation at a time: the connection has one transaction. Raises `StoreSetupError` for a
    connection that is in none, or that this service's handlers could not work with.
    """
    store = _store_on(idempotency, connection)
    with standing_in(idempotency, store):
        yield


def _store_on(idempotency: Idempotency, connection: Any) -> Store:
    own: Any = idempotency.store
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
