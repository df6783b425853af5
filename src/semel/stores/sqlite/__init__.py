"""The store of records in an SQLite file."""

from semel.stores.sqlite.store import SQLiteStore
from semel.stores.sqlite.transaction import (
    AsyncSQLiteConnection,
    SQLiteConnection,
    SQLiteTransaction,
)

__all__ = ["AsyncSQLiteConnection", "SQLiteConnection", "SQLiteStore", "SQLiteTransaction"]
