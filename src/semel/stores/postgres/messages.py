"""Pipelined messages: several statements in one round trip, values binary, plans kept.

The extended protocol, pipelined: half of what the same statements cost the server as text, in
which it has to read each response's bytes as hexadecimal digits.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import psycopg
from psycopg import generators, pq

R = TypeVar("R")
Talk = Generator[Any, Any, R]
"""A conversation with the server, as psycopg carries it out: yields what it waits for."""

_UNPREPARED: Final = b"26000"
_BYTEA: Final = 17
_BIGINT: Final = 20
_TEXT: Final = 25
_DOUBLE: Final = 701

pack_bigint = struct.Struct("!q").pack
pack_double = struct.Struct("!d").pack


class Statement(NamedTuple):
    """A statement of Semel's own."""

    name: bytes
    """Its name where it is prepared."""
    text: bytes
    types: tuple[int, ...]


BEGIN: Final = Statement(b"semel_begin", b"begin", ())
BOUND: Final = Statement(
    b"semel_bound",
    b"select set_config('idle_in_transaction_session_timeout', $1, true)",
    (_TEXT,),
)
COMMIT: Final = Statement(b"semel_commit", b"commit", ())
OPEN: Final = Statement(b"semel_open", b"select semel_open($1, $2, $3)", (_BIGINT, _BYTEA, _TEXT))
FINISH: Final = Statement(
    b"semel_finish",
    # What the function of that name does, for a third less of the server's time.
    b"insert into semel_record (key, token, state, attempt, owner, fingerprint, lease_until,"
    b" due_at, purge_at, answer) values ($1, $2, 2, 1, $3, $4,"
    b" semel_now(), semel_now() + $6, semel_now() + $6 + $7, $5)",
    (_BYTEA, _BIGINT, _BYTEA, _BYTEA, _BYTEA, _DOUBLE, _DOUBLE),
)
COMPLETE: Final = Statement(
    b"semel_complete",
    b"select semel_complete_or_fail($1, $2, $3, $4, $5)",
    (_BYTEA, _BIGINT, _BYTEA, _DOUBLE, _DOUBLE),
)

Message = Sequence[tuple[Statement, Sequence[bytes | None]]]
"""Statements with their values, in binary; the first that fails stops those after it."""

_AS_LOGGED_IN: Final[Message] = (
    (Statement(b"semel_own_user", b"reset session authorization", ()), ()),
    (Statement(b"semel_own_role", b"reset role", ()), ()),
)
BEFORE_THE_RECORD: Final[Message] = (
    # What the handler has put off is checked as its role and with its settings.
    (Statement(b"semel_checks", b"set constraints all immediate", ()), ()),
    *_AS_LOGGED_IN,
    (Statement(b"semel_own_path", b"reset search_path", ()), ()),
)
"""Where a handler has changed its session: whoever it made itself, the record is Semel's."""
_UNLOCK: Final = Statement(b"semel_unlock", b"select pg_advisory_unlock_all()", ())
_UNLOCK_AND_BOUND: Final = Statement(
    b"semel_as_it_came",
    b"select pg_advisory_unlock_all(),"
    b" set_config('idle_in_transaction_session_timeout', $1, false)",
    (_TEXT,),
)
_RESET: Final[Message] = (
    *_AS_LOGGED_IN,
    (Statement(b"semel_settings", b"reset all", ()), ()),
    (Statement(b"semel_cursors", b"close all", ()), ()),
    (Statement(b"semel_channels", b"unlisten *", ()), ()),
    (Statement(b"semel_temporary", b"discard temp", ()), ()),
    (Statement(b"semel_sequences", b"discard sequences", ()), ()),
)


def reset_message(bound: bytes | None) -> Message:
    """What DISCARD ALL does, but for the statements that are prepared, as one message.

    `bound`: the session's own for a transaction that stands still, milliseconds; None: none.
    """
    return *_RESET, ((_UNLOCK, ()) if bound is None else (_UNLOCK_AND_BOUND, (bound,)))


def converse(
    pgconn: pq.abc.PGconn, message: Message, prepared: set[bytes] | None
) -> Talk[list[pq.abc.PGresult]]:
    """Send a message; return its results, one for each statement and each preparation.

    `prepared`: what the session has prepared, which grows; None: nothing can be, a pooler stands
    between. Where a handler has said DEALLOCATE ALL, a message that begins is sent again. Where it
    does not come to its end, the connection is of no more use.
    """
    results = yield from _exchange(pgconn, message, prepared)
    if prepared and any(
        result.error_field(pq.DiagnosticField.SQLSTATE) == _UNPREPARED for result in results
    ):
        prepared.clear()
        if pgconn.transaction_status == pq.TransactionStatus.IDLE:  # nothing has been done
            results = yield from _exchange(pgconn, message, prepared)
    return results


def _exchange(
    pgconn: pq.abc.PGconn, message: Message, prepared: set[bytes] | None
) -> Talk[list[pq.abc.PGresult]]:
    pgconn.enter_pipeline_mode()
    preparing: list[bytes | None] = []  # what each result is the preparation of, if it is one
    for statement, values in message:
        binary = [pq.Format.BINARY] * len(values)
        if prepared is None:
            pgconn.send_query_params(
                statement.text, values, statement.types, binary, pq.Format.BINARY
            )
            continue
        if statement.name not in prepared:
            preparing.append(statement.name)
            pgconn.send_prepare(statement.name, statement.text, statement.types)
        preparing.append(None)
        pgconn.send_query_prepared(statement.name, values, binary, pq.Format.BINARY)
    pgconn.pipeline_sync()
    results: list[pq.abc.PGresult] = []
    told = yield from generators.execute(pgconn)
    while told and told[-1].status != pq.ExecStatus.PIPELINE_SYNC:
        results += told
        if told[-1].status == pq.ExecStatus.FATAL_ERROR and pgconn.status != pq.ConnStatus.OK:
            return results
        told = yield from generators.fetch_many(pgconn)
    if not told:
        raise psycopg.OperationalError("the connection was lost")
    pgconn.exit_pipeline_mode()
    if prepared is not None:  # what came after a failure was skipped, preparations too
        for name, result in zip(preparing, results, strict=True):
            if name is not None and result.status == pq.ExecStatus.COMMAND_OK:
                prepared.add(name)
    return results


def failure(
    connection: psycopg.BaseConnection[Any],
    results: Sequence[pq.abc.PGresult],
) -> psycopg.Error | None:
    """Return the error that a message ended with, or None."""
    for result in results:
        if result.status == pq.ExecStatus.FATAL_ERROR:
            return psycopg.errors.error_from_result(result, connection.info.encoding)
    return None


def require(
    connection: psycopg.BaseConnection[Any],
    results: Sequence[pq.abc.PGresult],
) -> None:
    """Raise the error that a message ended with, if it did."""
    error = failure(connection, results)
    if error is not None:
        raise error
