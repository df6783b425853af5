"""The store of records in an SQLite file."""

from semel.stores.sqlite.aio import AsyncCursor, AsyncSQLiteConnection
from semel.stores.sqlite.handed import Cursor, SQLiteConnection
from semel.stores.sqlite.store import SQLiteStore
from semel.stores.sqlite.transaction import SQLiteTransaction

__all__ = [
    "AsyncCursor",
    "AsyncSQLiteConnection",
    "Cursor",
    "SQLiteConnection",
    "SQLiteStore",
    "SQLiteTransaction",
]
