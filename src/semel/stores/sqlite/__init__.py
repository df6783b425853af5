"""Records in an SQLite file."""

from semel.stores.sqlite.store import AsyncConnection, Connection, SQLiteStore, SQLiteTransaction

__all__ = ["AsyncConnection", "Connection", "SQLiteStore", "SQLiteTransaction"]
