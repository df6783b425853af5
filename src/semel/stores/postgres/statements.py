"""Statements of one session: which are prepared, and what they may have changed."""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg._preparing import Prepare, PrepareManager

from semel.stores.effects import SessionEffect, effect_of

REFUSED: Final = (
    "the transaction belongs to the operation and commits with its response: leave BEGIN, COMMIT"
    " and ROLLBACK out; connection.rollback() undoes what was written,"
    " `with connection.transaction():` is a savepoint"
)


class SessionStatements(PrepareManager):
    """psycopg's notes of what is prepared, to which each statement comes before it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.effect = SessionEffect.NONE
        """The gravest of what has been said."""

    def note(self, text: bytes) -> None:
        """Note a statement. Raises `psycopg.ProgrammingError` where it would end the transaction.

        One that was carried out all the same is noted, and its operation is not to commit.
        """
        found = effect_of(text)
        if found > self.effect:
            if found is SessionEffect.TRANSACTION:
                raise psycopg.ProgrammingError(REFUSED)
            self.effect = found

    def get(self, query: Any, prepare: bool | None = None) -> tuple[Prepare, bytes]:
        """Return how psycopg is to send a query, which has been looked at before it is sent."""
        self.note(query.query)
        return super().get(query, prepare)

    def maybe_add_to_cache(self, query: Any, prep: Prepare, name: bytes) -> Any:
        """As psycopg's. It comes after a query, and is the first to see those of `ClientCursor`."""
        try:
            self.note(query.query)
        except psycopg.ProgrammingError:
            self.effect = SessionEffect.TRANSACTION
            raise
        return super().maybe_add_to_cache(query, prep, name)

    def for_the_next(self, threshold: int | None) -> None:
        """Forget what the last operation has set."""
        self.effect = SessionEffect.NONE
        self.prepare_threshold = threshold
        self.prepared_max = PrepareManager.prepared_max
