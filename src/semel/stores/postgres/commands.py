"""Translation between store commands and calls of PostgreSQL functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from semel.core.commands import (
    Abandoned,
    Claim,
    Claimed,
    Complete,
    ForgetStep,
    Found,
    Lookup,
    Park,
    Recorded,
    RecordStep,
    Release,
    Remembered,
    Renew,
    Reply,
    Settle,
    Steps,
    StoreCommand,
    Sweep,
    Takeover,
)
from semel.core.record import COLUMNS, encode_response, read_row

Statement = tuple[str, Sequence[Any]]
Rows = list[tuple[Any, ...]]

# By name: a newer version's migration may have given `semel_found` more.
_FOUND: Final = f"select {', '.join(COLUMNS)}, now, won from"
_KEY, _STATE, _TOKEN, _OWNER, _ATTEMPT = map(
    COLUMNS.index, ("key", "state", "token", "owner", "attempt")
)
CLAIM: Final = f"{_FOUND} semel_claim(%b, %b, %b, %b, %b)"
TAKE_OVER: Final = f"{_FOUND} semel_take_over(%b, %b, %b, %b, %b, %b, %b)"
LOOKUP: Final = f"{_FOUND} semel_lookup(%b)"
COMPLETE: Final = "select * from semel_complete(%b, %b, %b, %b, %b)"


def statement(command: StoreCommand) -> Statement:
    """Return the statement of one command."""
    match command:
        case Release(key, token):
            return "select semel_release(%b, %b)", (key, token)
        case Park(key, token, reason, lapsed):
            return "select semel_park(%b, %b, %b::text, %b)", (key, token, reason, lapsed)
        case Takeover():
            return (
                TAKE_OVER,
                (
                    command.key,
                    command.token,
                    command.fingerprint,
                    command.lease,
                    command.owner,
                    command.expired,
                    command.request,
                ),
            )
        case Renew(claims, lease):
            keys, tokens = [key for key, _ in claims], [token for _, token in claims]
            return "select * from semel_renew(%b, %b::bigint[], %b)", (keys, tokens, lease)
        case Settle(key, token, response, expires, tombstone):
            answer = encode_response(response) if response is not None else None
            return (
                "select semel_settle(%b, %b, %b, %b, %b)",
                (key, token, answer, expires, tombstone),
            )
        case Sweep(limit):
            return "select semel_sweep(%b::int)", (limit,)
        case Abandoned(limit, idle):
            return "select * from semel_abandoned(%b::int, %b)", (limit, idle)
        case Steps(key):
            return "select name, result from semel_step where key = %b", (key,)
        case RecordStep(key, token, name, result, keep):
            return (
                "select * from semel_record_step(%b, %b, %b::text, %b, %b)",
                (key, token, name, result, keep),
            )
        case ForgetStep(key, token, name):
            return "select semel_forget_step(%b, %b, %b::text)", (key, token, name)
        case Claim() | Complete() | Lookup():
            return batch([command])
    raise AssertionError(command)


def batch(commands: Sequence[Any]) -> Statement:
    """Return the one statement of many claims, completions or lookups."""
    first = commands[0]
    if isinstance(first, Claim):
        return CLAIM, (
            [c.key for c in commands],
            [c.fingerprint for c in commands],
            [c.lease for c in commands],
            [c.owner for c in commands],
            [c.request for c in commands],
        )
    if isinstance(first, Complete):
        return COMPLETE, (
            [c.key for c in commands],
            [c.token for c in commands],
            [encode_response(c.response) for c in commands],
            [c.expires for c in commands],
            [c.tombstone for c in commands],
        )
    return LOOKUP, ([c.key for c in commands],)


def replies(commands: Sequence[Any], rows: Rows) -> list[Reply | Exception]:
    """Return the reply of each of many commands; of an unreadable record, its error."""
    first = commands[0]
    if isinstance(first, Complete):
        applied = {token for (token,) in rows}
        return [command.token in applied for command in commands]
    if isinstance(first, Claim):
        won: set[int] = set()
        return [
            _reply_or_error(_claimed, row, c.owner, won)
            for c, row in zip(commands, rows, strict=True)
        ]
    by_key = {row[_KEY]: row for row in rows}
    return [_reply_or_error(found, by_key[c.key]) if c.key in by_key else None for c in commands]


def _reply_or_error(read: Any, *arguments: Any) -> Any:
    try:
        return read(*arguments)
    except Exception as error:  # noqa: BLE001  # this command's own, not its neighbours'
        return error


def reply(command: StoreCommand, rows: Rows) -> Reply:
    """Return the reply of one command. Raises `UnreadableRecord`."""
    match command:
        case Claim() | Complete() | Lookup():
            first = replies([command], rows)[0]
            if isinstance(first, Exception):
                raise first
            return first
        case Takeover():
            return _claimed(rows[0], command.owner, set()) if rows else None
        case Renew():
            return frozenset(token for (token,) in rows)
        case Abandoned():
            return tuple(Remembered(*row) for row in rows)
        case Steps():
            return dict(rows)
        case RecordStep():
            return Recorded(rows[0][0]) if rows else None
    value: bool | int = rows[0][0]
    return value


def _claimed(row: tuple[Any, ...], owner: bytes, won: set[int]) -> Claimed | Found | None:
    """A claim's row: ours, somebody else's, or (all null) gone again meanwhile.

    `won` collects the tokens handed out: of two claims of one statement only one has won.
    """
    if row[_STATE] is None:
        return None
    token: int = row[_TOKEN]
    if row[-1] and row[_OWNER] == owner and token not in won:
        won.add(token)
        return Claimed(token, row[_ATTEMPT])
    return found(row)


def found(row: tuple[Any, ...]) -> Found:
    """Return the record and the time of a row of `_FOUND`. Raises `UnreadableRecord`."""
    return Found(read_row(row[:-2]), row[-2])
