"""SQLAlchemy's connections as a handler is handed them: the operation's, and no longer than it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

from sqlalchemy import event, exc
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import greenlet_spawn

from semel.stores.effects import SessionEffect, effect_of
from semel.stores.sqlalchemy.connection import place_of
from semel.stores.sqlalchemy.savepoints import Savepoints, reads

OVER: Final = "the operation is over: its transaction has ended"
BELONGS: Final = (
    "the transaction belongs to the operation and commits with its response: use"
    " op.session(), whose commit() and rollback() are savepoints, or"
    " connection.begin_nested(); raise an error to roll all of it back"
)
BUSY: Final = "a statement of the handler's was still under way, so nothing was committed"
_LOOKS: Final = 1000
"""How often, a millisecond apart, tasks are looked at until they have seen that it is gone."""
ENDED: Final = "the transaction has ended before its operation, which can only be tried again"


class OperationConnection(Connection):
    """The connection of a plain handler (`op.connection()`): SQLAlchemy's own, in the transaction.

    `commit()` is refused, for the commit comes with the response; `rollback()` undoes what was
    written since the operation began, which goes on; `close()`, and the end of a `with` block, do
    nothing. After the end of the operation all raises `sqlalchemy.exc.ResourceClosedError`.
    """

    begin_anew: Callable[[], None]
    """Undoes what was written, and begins again."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.own = True
        """Whether the statements are Semel's own."""
        self.over = False
        """Whether the operation has ended."""
        self.effect = SessionEffect.NONE
        """The gravest of what the handler has said."""
        self.running = 0
        """How many statements are under way, on whichever task or thread."""
        self.place: tuple[str, ...] = ()
        """As whom and where the record is to be written, if the handler may have changed it."""
        self.savepoints = Savepoints()
        """Those of the sessions that have joined."""
        self.committed: list[Callable[[], None]] = []
        """To be called once all is committed: listeners for a session's `after_commit`."""
        self.broken: str | None = None
        """Why the transaction may not commit, whatever the handler makes of the error."""
        for ending in ("commit", "rollback"):
            event.listen(self, ending, self._refuse_ending)
        event.listen(self, "before_cursor_execute", self._note)

    def _refuse_ending(self, _: Connection) -> None:
        if not self.own:
            raise exc.InvalidRequestError(BELONGS)

    def _note(self, _: Connection, cursor: object, statement: str, *__: object) -> None:
        if self.own:
            return
        self.note(statement)
        if not reads(statement):
            self.savepoints.wrote(None)

    def note(self, statement: str) -> None:
        """Note a statement before it is carried out, here or by a session that has joined."""
        if self.over:
            raise exc.ResourceClosedError(OVER)
        if self.effect is SessionEffect.TRANSACTION:
            raise exc.InvalidRequestError(ENDED)
        effect = effect_of(statement)
        if effect is SessionEffect.TRANSACTION and not statement.lower().strip().startswith(
            "rollback"
        ):
            raise exc.InvalidRequestError(BELONGS)
        if effect >= SessionEffect.PLACE and not self.place:
            with self.as_semel():
                self.place = place_of(self)
        self.effect = max(effect, self.effect)  # after a ROLLBACK nothing more, and no commit

    @contextlib.contextmanager
    def as_semel(self) -> Iterator[None]:
        """What is said meanwhile is Semel's own."""
        self.own = True
        try:
            yield
        finally:
            self.own = False

    @contextlib.contextmanager
    def statement(self) -> Iterator[None]:
        """A statement is under way meanwhile."""
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def _execute_context(self, *arguments: Any, **options: Any) -> Any:
        with self.statement():
            return super()._execute_context(*arguments, **options)

    def _revalidate_connection(self) -> Any:
        if self.over:
            raise exc.ResourceClosedError(OVER)
        return super()._revalidate_connection()

    def begin(self) -> Any:
        """As SQLAlchemy's, which says here that the transaction has begun."""
        if self.over:
            raise exc.ResourceClosedError(OVER)
        return super().begin()

    def rollback(self) -> None:
        """Undo what was written since the operation began; it goes on, and may complete."""
        if self.over:
            raise exc.ResourceClosedError(OVER)
        self.begin_anew()

    def close(self) -> None:
        """Do nothing: the connection is the operation's, and goes back with its end."""

    def end(self) -> None:
        """Give it back to the pool, or end it where something was set on it that would stay."""
        self.over = self.own = True
        try:
            if self.effect >= SessionEffect.SESSION:
                self.discard()
        finally:
            super().close()

    def discard(self) -> None:
        """End it: nobody knows what it is in the middle of, or what was set on it."""
        if not self.closed and not self.invalidated:
            self.invalidate()


class OperationAsyncConnection(AsyncConnection):
    """The connection of an async handler: as `OperationConnection`, awaitable."""

    __slots__ = ()

    @classmethod
    async def of(cls, engine: AsyncEngine) -> Self:
        """Connect."""
        return cls(engine, await greenlet_spawn(OperationConnection, engine.sync_engine))

    async def start(self, is_ctxmanager: bool = False) -> Self:
        """Return itself: it has been started. For `async with await op.connection() as db:`."""
        return self

    async def close(self) -> None:
        """Do nothing: the connection is the operation's, and goes back with its end."""

    async def stop(self) -> None:
        """Have the statements that are under way fail, and wait until they have, to roll back.

        psycopg's tasks wait for the socket's number: if it were closed under them, the connection
        that has the number next, another operation's, would fail with them.
        """
        operation: Any = self.sync_connection
        operation.over = True
        if not operation.running or operation.invalidated:
            return
        wire = getattr(operation.connection.driver_connection, "pgconn", None)
        if wire is None:
            return
        with contextlib.suppress(Exception), socket.socket(fileno=os.dup(wire.socket)) as ours:
            ours.shutdown(socket.SHUT_RDWR)
        for _ in range(_LOOKS):
            if not operation.running:
                break
            await asyncio.sleep(0.001)

    async def end(self) -> None:
        """Give it back to the pool; see `OperationConnection.end`."""
        await self.run_sync(_end)


def _end(connection: Any) -> None:
    connection.end()
