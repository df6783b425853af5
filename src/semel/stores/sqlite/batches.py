"""Executes many claims or completions in one SQL statement.

Each statement releases the interpreter lock, and beside a busy event loop waits long to have it
back. Where not all commands of a statement can be done together, each is executed alone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final, Protocol

from semel.core.commands import Claim, Claimed, Complete, Renew, Reply, StoreCommand
from semel.core.record import UnreadableRecord, encode_response
from semel.stores import statements as sql

MOST: Final = 16
"""Most commands in one statement: one is prepared for each number, and a connection keeps 256."""
_CLAIM = sql.load("sqlite", "claim_many")
_COMPLETE = sql.load("sqlite", "complete_many")


class PendingCommand:
    """A command on its way to the writer, and its result."""

    __slots__ = ("command", "error", "reply")

    def __init__(self, command: StoreCommand) -> None:
        self.command = command
        self.reply: Reply = None
        self.error: Exception | None = None

    def result(self) -> Reply:
        """Return the command's reply, once it is known. Raises its error."""
        if self.error is not None:
            raise self.error
        return self.reply


class Alone(Protocol):
    """Carries out one command in the open transaction."""

    def __call__(self, connection: sqlite3.Connection, command: StoreCommand, /) -> Reply:
        """Return its reply."""


def execute_batch(
    connection: sqlite3.Connection, pending: Sequence[PendingCommand], alone: Alone, now: float
) -> None:
    """Execute all of them in the transaction open on `connection`.

    Nobody has had a reply yet, so any order is one in which they may have come. Renewals
    go first, lest one finds its operation completed and takes its claim for lost; completions
    before others, lest a takeover undoes what is done; claims last, for what others free meanwhile.
    """
    for each in pending:
        if isinstance(each.command, Renew):
            _execute_alone(connection, each, alone)
    claims = [each for each in pending if isinstance(each.command, Claim)]
    completions = [each for each in pending if isinstance(each.command, Complete)]
    for part in _parts(completions):
        if len(part) == 1 or not _complete(connection, part, now):
            for each in part:
                _execute_alone(connection, each, alone)
    for each in pending:
        if not isinstance(each.command, (Claim, Complete, Renew)):
            _execute_alone(connection, each, alone)
    for part in _parts(claims):
        if len(part) == 1 or not _claim(connection, part, now):
            for each in part:
                _execute_alone(connection, each, alone)


def _execute_alone(connection: sqlite3.Connection, pending: PendingCommand, alone: Alone) -> None:
    try:
        pending.reply = alone(connection, pending.command)
    except UnreadableRecord as error:  # met by a read, after no write: nobody else's trouble
        pending.error = error


def _parts(pending: Sequence[PendingCommand]) -> Iterator[Sequence[PendingCommand]]:
    return (pending[start : start + MOST] for start in range(0, len(pending), MOST))


def _claim(connection: sqlite3.Connection, part: Sequence[PendingCommand], now: float) -> bool:
    """Win all of these claims. False: not all can be, and nothing was written."""
    row: list[object] = []
    for number, each in enumerate(part, 1):
        c = each.command
        assert isinstance(c, Claim)
        row += (number, c.key, c.owner, c.fingerprint, now + c.lease, c.request)
    try:
        last = connection.execute(_claim_many(len(part)), row).lastrowid
    except sqlite3.IntegrityError:
        return False
    assert last is not None
    for number, each in enumerate(part, 1):
        each.reply = Claimed(last - len(part) + number, 1)
    return True


def _complete(connection: sqlite3.Connection, part: Sequence[PendingCommand], now: float) -> bool:
    """Write all of these answers. False: not all can be, and nothing was written."""
    row: list[object] = []
    tokens = set()
    for each in part:
        c = each.command
        assert isinstance(c, Complete)
        tokens.add(c.token)
        expires = now + c.expires
        row += (c.token, c.key, encode_response(c.response), expires, expires + c.tombstone)
    if len(tokens) < len(part):
        return False
    before = connection.total_changes  # sqlite3 knows no rowcount of what begins with "with"
    connection.execute(_complete_many(len(part)), row)
    if connection.total_changes == before:
        return False
    for each in part:
        each.reply = True
    return True


@lru_cache
def _claim_many(count: int) -> str:
    return _CLAIM.format(rows=", ".join(["(?, ?, ?, ?, ?, ?)"] * count))


@lru_cache
def _complete_many(count: int) -> str:
    return _COMPLETE.format(rows=", ".join(["(?, ?, ?, ?, ?)"] * count), count=count)
