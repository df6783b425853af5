"""The store of records in PostgreSQL, through psycopg."""

from semel.stores.postgres.connections import AsyncPostgreSQLConnection, PostgreSQLConnection
from semel.stores.postgres.store import PostgreSQLStore
from semel.stores.postgres.transaction import PostgreSQLTransaction

__all__ = [
    "AsyncPostgreSQLConnection",
    "PostgreSQLConnection",
    "PostgreSQLStore",
    "PostgreSQLTransaction",
]
