"""Effects of store commands on SQLite's tables, in whatever transaction is open."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from semel.core.commands import (
    Abandoned,
    Claim,
    Claimed,
    Complete,
    Found,
    Lookup,
    Park,
    Release,
    Remembered,
    Renew,
    Reply,
    Settle,
    StoreCommand,
    Sweep,
    Takeover,
)
from semel.core.record import Response, State, encode_response, read_row
from semel.failpoints import failpoint
from semel.stores import statements as sql

LOOKUP = sql.load("sqlite", "lookup")
_CLAIM = sql.load("sqlite", "claim")
_VACATE = sql.load("sqlite", "vacate")
_COMPLETE = sql.load("sqlite", "complete")
_RELEASE = sql.load("sqlite", "release")
_PARK = sql.load("sqlite", "park")
_RENEW = sql.load("sqlite", "renew")
_PURGE = sql.load("sqlite", "purge")
_EXPIRE = sql.load("sqlite", "expire")
_SETTLE = sql.load("sqlite", "settle")
_UNPARK = sql.load("sqlite", "unpark")
_ABANDONED = sql.load("sqlite", "abandoned")


class SQLiteCommands:
    """Carries commands out in an open transaction, by a clock."""

    _clock: Callable[[], float]

    def apply(self, connection: sqlite3.Connection, command: StoreCommand) -> Reply:
        """Carry out one command in the transaction open on `connection`."""
        match command:
            case Claim():
                return self._claim(connection, command, 1)
            case Complete():
                return self.complete(connection, command)
            case Release(key, token):
                return connection.execute(_RELEASE, (token, key)).rowcount == 1
            case Renew(claims, lease):
                until = self._clock() + lease
                return frozenset(
                    token
                    for key, token in claims
                    if connection.execute(_RENEW, (until, token, key)).rowcount != 1
                )
            case Takeover():
                return self._take_over(connection, command)
            case Park():
                parked = {**command._asdict(), "now": self._clock()}
                return connection.execute(_PARK, parked).rowcount == 1
            case Sweep(limit):
                named = {"now": self._clock(), "limit": limit}
                changed = connection.execute(_PURGE, named).rowcount
                failpoint("in_sweep")
                return changed + connection.execute(_EXPIRE, named).rowcount
            case Settle():
                return self._settle(connection, command)
            case Abandoned(limit, idle):
                rows = connection.execute(_ABANDONED, (self._clock() - idle, limit))
                return tuple(Remembered(*row) for row in rows)
            case Lookup(key):
                return self._found(connection, key)
        raise AssertionError(command)

    def _claim(
        self, connection: sqlite3.Connection, command: Claim | Takeover, attempt: int
    ) -> Reply:
        until = self._clock() + command.lease
        cursor = connection.execute(
            _CLAIM,
            (command.key, attempt, command.owner, command.fingerprint, until, command.request),
        )
        if cursor.rowcount == 1 and cursor.lastrowid is not None:
            return Claimed(cursor.lastrowid, attempt)
        return self._found(connection, command.key)

    def _take_over(self, connection: sqlite3.Connection, command: Takeover) -> Reply:
        named = {
            "key": command.key,
            "token": command.token,
            "expired": command.expired,
            "now": self._clock(),
        }
        vacated = connection.execute(_VACATE, named).fetchall()
        if not vacated:
            return self._found(connection, command.key)
        state, attempt = vacated[0]
        return self._claim(connection, command, attempt + 1 if state == State.IN_FLIGHT else 1)

    def complete(self, connection: sqlite3.Connection, command: Complete) -> bool:
        """Write the response, if the claim still holds."""
        return self._answer(connection, _COMPLETE, command, command.response)

    def _settle(self, connection: sqlite3.Connection, command: Settle) -> bool:
        if command.response is None:
            return connection.execute(_UNPARK, (command.token, command.key)).rowcount == 1
        return self._answer(connection, _SETTLE, command, command.response)

    def _answer(
        self,
        connection: sqlite3.Connection,
        statement: str,
        command: Complete | Settle,
        response: Response,
    ) -> bool:
        expires = self._clock() + command.expires
        answer = encode_response(response)
        row = (answer, expires, expires + command.tombstone, command.token, command.key)
        return connection.execute(statement, row).rowcount == 1

    def _found(self, connection: sqlite3.Connection, key: bytes) -> Found | None:
        return self.found(connection.execute(LOOKUP, (key,)).fetchone())

    def found(self, row: Sequence[Any] | None) -> Found | None:
        """Return the record of a row of `LOOKUP`. Raises `UnreadableRecord`."""
        return Found(read_row(row), self._clock()) if row is not None else None
