"""Connections lent to one operation: refused after its end, and passed on as they came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Self

import psycopg
from psycopg import pq

from semel.stores.effects import SessionEffect
from semel.stores.postgres.messages import (
    OPEN,
    Message,
    Talk,
    converse,
    require,
    reset_message,
)
from semel.stores.postgres.statements import REFUSED, SessionStatements

OVER: Final = "the operation is over: its transaction has ended"
_NOBODYS: Final = pq.PGconn()
"""In the place of a session that has been passed on: it is closed, whatever is asked of it."""
_NOTED: Final = frozenset(
    {
        "_execute_gen",
        "_executemany_gen_pipeline",
        "_executemany_gen_no_pipeline",
        "_enter_gen",
        "_exit_gen",
        "_sync_gen",
        "_fetch_gen",
        "_scroll_gen",
        "_close_gen",
        "_begin_anew",
    }
)
"""psycopg's conversations that change nothing but what their statements say, which are noted."""


class Lent(psycopg.BaseConnection[Any]):
    """What both kinds of connection have in common."""

    limit: float | None = None
    """Seconds that the server has for a reply; None leaves it to the handler."""
    born = 0.0
    """When it was made, by the monotonic clock."""
    prepared: set[bytes] | None = None
    """Names of statements prepared on it; None: a pooler may be between it and the server."""
    bound: bytes | None = None
    """Milliseconds that its transactions may stand still; None: nothing was set on the session."""
    threshold: int | None = None
    """`prepare_threshold` as each operation finds it."""
    beginning: Message = ()
    """How the present transaction was begun."""
    handed = False
    """Whether a handler has it, or had it."""
    over = False
    """Whether the operation that it was lent to has ended: it refuses to work."""
    _prepared: SessionStatements
    lock: Any
    finish: Callable[[], None]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._prepared = SessionStatements()

    @property
    def effect(self) -> SessionEffect:
        """What its handler may have done to the session."""
        return self._prepared.effect if self.handed else SessionEffect.NONE

    @property
    def busy(self) -> bool:
        """Whether a statement is under way, or waits to be."""
        return bool(self.lock.locked())

    @property
    def left_open(self) -> str | None:
        """What the handler has left open, for which nothing can be committed."""
        if self.busy:
            return "a statement of the handler's was still under way"
        if self._pipeline is not None:
            return "a pipeline() of the handler's was still open"
        if self._num_transactions:
            return "a transaction() of the handler's was still open"
        return None

    def require_operation(self, talk: Talk[Any]) -> None:
        """Raise where the operation is over. Else note what psycopg is about to say."""
        if self.over:
            raise psycopg.ProgrammingError(OVER)
        statements = self._prepared
        name = getattr(talk, "__name__", "")
        if self.handed and not statements.effect and name not in _NOTED:
            statements.effect = SessionEffect.PERHAPS

    def _check_connection_ok(self) -> None:
        if self.over and self.closed:
            raise psycopg.ProgrammingError(OVER)
        super()._check_connection_ok()

    def _undo(self) -> Talk[None]:
        """Roll back as psycopg does, which then forgets what it has prepared: a table may have been
        altered, and what was prepared before would fail for ever. Then reset the session."""
        self._num_transactions = 0  # blocks that nobody has left
        yield from self._rollback_gen()
        if self.effect > SessionEffect.SESSION:
            self.finish()
        elif self.effect:
            require(self, (yield from converse(self.pgconn, self.reset, self.prepared)))
            self._prepared.effect = SessionEffect.NONE

    def _begin_anew(self) -> Talk[None]:
        """Undo what was written, for `rollback()`."""
        yield from self._rollback_gen()
        results = yield from converse(self.pgconn, self.beginning, self.prepared)
        require(self, results)
        if self.beginning[-1][0] is OPEN and not token_of(results):
            self.finish()
            raise psycopg.OperationalError(
                "rolled back, and another request has begun under the key: this one cannot go on"
            )

    @property
    def reset(self) -> Message:
        """What makes the session what it was before it was lent, once the transaction has ended."""
        return reset_message(self.bound)

    def is_reset(self, results: list[Any]) -> None:
        """Note that `reset` was sent, if its last part has had its effect."""
        if (
            SessionEffect.NONE < self.effect <= SessionEffect.SESSION
            and results[-1].status == pq.ExecStatus.TUPLES_OK
        ):
            self._prepared.effect = SessionEffect.NONE

    def _deallocate(self, name: bytes | None) -> Talk[None]:
        if name is None and self.prepared:  # psycopg says DEALLOCATE ALL: ours is gone with its own
            self.prepared.clear()
        return super()._deallocate(name)

    def for_the_next(self) -> Self:
        """Return the connection for the next operation, without what the last has set on it.

        What the last one has goes on refusing to work: it may still be in the hands of its tasks.
        """
        if not self.handed:
            return self
        self.over = True
        if self.busy:  # whoever uses it has it to the end
            return self
        fresh = type(self)(self.pgconn)
        fresh._autocommit = True
        fresh.born, fresh.limit, fresh.threshold = self.born, self.limit, self.threshold
        fresh.prepared, fresh.bound = self.prepared, self.bound
        fresh._prepared = self._prepared
        fresh._prepared.for_the_next(self.threshold)
        self.pgconn = _NOBODYS
        return fresh


def token_of(results: list[Any]) -> int | None:
    """Read what `semel_open` said: a token, 0 for a record, None while another has the key."""
    value: bytes | None = results[-1].get_value(0, 0)
    return int.from_bytes(value, "big", signed=True) if value is not None else None


__all__ = ["OVER", "REFUSED", "Lent", "token_of"]
