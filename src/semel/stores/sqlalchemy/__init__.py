"""Records in any database that SQLAlchemy speaks to, beside the tables of the application."""

from semel.stores.sqlalchemy.store import SQLAlchemyStore
from semel.stores.sqlalchemy.tables import metadata

__all__ = ["SQLAlchemyStore", "metadata"]
