"""The business transaction: claim, work and record, in as few messages as the work alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from semel.core.commands import Complete, Open, StoreUnavailable, StoreUnknown
from semel.core.record import encode_response
from semel.failpoints import failpoint
from semel.stores.effects import SessionEffect
from semel.stores.postgres.connections import (
    AsyncPostgreSQLConnection,
    Borrowed,
    PostgreSQLConnection,
    fenced,
    translate,
)
from semel.stores.postgres.lent import OVER, REFUSED
from semel.stores.postgres.messages import (
    BEFORE_THE_RECORD,
    BEGIN,
    BOUND,
    COMMIT,
    COMPLETE,
    FINISH,
    OPEN,
    Message,
    failure,
    pack_bigint,
    pack_double,
)

GiveBack = Callable[[Any], "asyncio.Task[None] | None"]
"""Takes a connection back; returns the task that rolls it back meanwhile, if there is one."""


def begin_message(
    connection: PostgreSQLConnection | AsyncPostgreSQLConnection, idle: bytes
) -> Message:
    """Begin, beside a claim that is a record. `idle`: milliseconds."""
    if connection.prepared is not None:  # the session was given its bound when it was made
        return ((BEGIN, ()),)
    return (BEGIN, ()), (BOUND, (idle,))


def open_message(
    connection: PostgreSQLConnection | AsyncPostgreSQLConnection, command: Open, idle: bytes
) -> Message:
    """Begin, lock the key, look it up: one message. See `semel_open`."""
    bound = None if connection.prepared is not None else idle
    return (BEGIN, ()), (OPEN, (command.key[:8], command.key, bound))


class PostgreSQLTransaction:
    """One operation's transaction on one connection of the pool.

    `opened` is the command that it is the claim for; without one the claim is a record.
    """

    __slots__ = ("_connection", "_give_back", "_opened", "token")

    def __init__(
        self,
        connection: Any,
        give_back: GiveBack,
        opened: Open | None = None,
        token: int | None = None,
    ) -> None:
        connection.limit = None  # how long its statements may take is the handler's affair
        self._connection = connection
        self._give_back = give_back
        self._opened = opened
        self.token = token

    @property
    def connection(self) -> PostgreSQLConnection:
        """For plain code."""
        had = self._had()
        had.handed = True
        if isinstance(had, AsyncPostgreSQLConnection):
            had.unwatch_for_thread()
            had.borrowed = had.borrowed or Borrowed(had)
            return had.borrowed
        connection: PostgreSQLConnection = had
        return connection

    @property
    def async_connection(self) -> AsyncPostgreSQLConnection:
        """For async code."""
        connection: AsyncPostgreSQLConnection = self._had()
        connection.handed = True
        connection.watch()
        return connection

    def _had(self) -> Any:
        if self._connection is None:
            raise psycopg.ProgrammingError(OVER)
        return self._connection

    def _message(self, connection: Any, command: Complete) -> Message:
        """Write the record and commit: one message; what refuses the first part stops the other."""
        record = self._record(command)
        if not connection.effect:
            return *record, (COMMIT, ())
        return *BEFORE_THE_RECORD, *record, (COMMIT, ()), *connection.reset

    def _record(self, command: Complete) -> Message:
        key, token = command.key, pack_bigint(command.token)
        answer = encode_response(command.response)
        times = pack_double(command.expires), pack_double(command.tombstone)
        opened = self._opened
        if opened is not None and self.token == command.token:
            row = (key, token, opened.owner, opened.fingerprint, answer, *times)
            return ((FINISH, row),)
        return ((COMPLETE, (key, token, answer, *times)),)

    def _begun(self) -> Any:
        connection = self._had()
        left_open = connection.left_open
        if connection.effect is SessionEffect.TRANSACTION:
            left_open = REFUSED
        if left_open is not None:
            self.rollback()
            raise StoreUnavailable(f"{left_open}, so nothing was committed")
        status = connection.pgconn.transaction_status
        if status not in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            self.rollback()
            raise StoreUnknown(
                "the transaction had ended before its operation: the handler has said commit or"
                " rollback itself, or the server has ended the connection"
            )
        connection.over = connection.handed
        return connection

    def complete(self, command: Complete) -> bool:
        """Write the completion and commit."""
        connection = self._begun()
        connection.limit = COMMIT_LIMIT
        failpoint("before_commit")
        try:
            results = connection.send(self._message(connection, command))
        except BaseException as error:
            self._discard()
            if isinstance(error, Exception):
                raise translate(error) from error
            raise
        failpoint("after_commit")
        return self._judge(connection, results)

    async def acomplete(self, command: Complete) -> bool:
        """Write the completion and commit, without blocking the event loop."""
        connection = self._begun()
        if isinstance(
            connection, PostgreSQLConnection
        ):  # a plain handler's, on a thread beside this loop
            return await asyncio.to_thread(self.complete, command)
        connection.limit = COMMIT_LIMIT
        failpoint("before_commit")
        try:
            results = await connection.send(self._message(connection, command))
        except BaseException as error:
            self._discard()
            if isinstance(error, Exception):
                raise translate(error) from error
            raise
        failpoint("after_commit")
        return self._judge(connection, results)

    def _judge(self, connection: Any, results: list[Any]) -> bool:
        connection.is_reset(results)
        self.rollback()
        if any(result.command_status == b"COMMIT" for result in results):
            return True  # whatever became of the connection after it
        error = failure(connection, results) or psycopg.errors.InFailedSqlTransaction(
            "a statement of the handler had failed, so nothing could be committed"
        )
        if fenced(error):
            return False
        raise translate(error) from error

    def rollback(self) -> None:
        """Undo what is not committed, and give the connection back."""
        self._end()

    async def arollback(self) -> None:
        """As `rollback`, and wait until it is done."""
        ending = self._end()
        if ending is not None:
            await asyncio.shield(ending)

    def _end(self) -> asyncio.Task[None] | None:
        connection, self._connection = self._connection, None
        if connection is None:
            return None
        connection.limit = COMMIT_LIMIT
        connection.over = connection.handed
        return self._give_back(connection)

    def _discard(self) -> None:
        """Close the connection: it is not known what it is in the middle of."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.over = connection.handed
            connection.finish()
            self._give_back(connection)


COMMIT_LIMIT = 30.0
"""Seconds that the server has for a commit before its outcome is called unknown."""
