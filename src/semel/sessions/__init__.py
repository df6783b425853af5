"""Sessions of SQLAlchemy, as applications have them, in an operation's transaction."""

from __future__ import annotations

from semel.sessions.joining import join_sessionmaker

__all__ = ["join_sessionmaker"]
