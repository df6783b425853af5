"""The little that the portable commands ask of a connection."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol


class SQLConnection(Protocol):
    """A connection to a database, whichever library it is of. Raises that library's errors."""

    def rows(self, sql: str, values: tuple[Any, ...]) -> Sequence[Any]:
        """Carry a query out and return its rows."""

    def run(self, sql: str, values: tuple[Any, ...]) -> int:
        """Carry a statement out and return how many rows it has changed."""

    def insert(self, sql: str, values: tuple[Any, ...]) -> int | None:
        """Insert a row and return its number, or None where nothing was inserted."""

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing; the statements in it write."""

    def bounded(self) -> AbstractContextManager[None]:
        """One statement that writes, and does not wait for a lock for ever."""
