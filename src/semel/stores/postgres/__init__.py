"""Records in PostgreSQL, through psycopg."""

from semel.stores.postgres.store import (
    AsyncConnection,
    Connection,
    PostgreSQLStore,
    PostgreSQLTransaction,
)

__all__ = ["AsyncConnection", "Connection", "PostgreSQLStore", "PostgreSQLTransaction"]
