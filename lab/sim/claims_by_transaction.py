"""A store whose transactions are claims, as a model: what PostgreSQL's advisory lock does.

In the history such a claim looks as any: in flight while its transaction is open, given back when
that ends without a commit, whether its server crashed or the database ended it.
"""

from __future__ import annotations

from typing import NamedTuple

from semel.core.commands import Claimed, Complete, Found, Open, StoreUnknown
from semel.core.record import Record
from semel.stores.memory import MemoryTable


class Held(NamedTuple):
    """A key held by an open transaction."""

    attempt: str
    server: str
    token: int
    asked: Open


class OpeningTable(MemoryTable):
    """A `MemoryTable` with transactions that hold keys."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[bytes, Held] = {}

    def open(self, command: Open, attempt: str, server: str, now: float) -> Claimed | Found | None:
        """Begin a transaction that holds the key, unless another does or there is a record."""
        if command.key in self.held:
            return None
        record = self.records.get(command.key)
        if record is not None:
            return Found(record, now)
        self._last_token += 1
        self.held[command.key] = Held(attempt, server, self._last_token, command)
        return Claimed(self._last_token, 1, opened=True)

    def let_go(self, key: bytes, token: int) -> Held | None:
        """End the transaction that holds the key under this token; return it."""
        held = self.held.get(key)
        if held is None or held.token != token:
            return None
        return self.held.pop(key)

    def finish(self, command: Complete, now: float) -> bool:
        """Write the record and commit. False: a record is there. Raises `StoreUnknown` where the
        transaction had been ended, and with it its connection."""
        held = self.let_go(command.key, command.token)
        if held is None:
            raise StoreUnknown("its connection is gone")
        if command.key in self.records:
            return False
        asked = held.asked
        self.records[command.key] = Record.claimed(
            command.key, held.token, asked.owner, asked.fingerprint, now
        )
        return self._complete(command, now)
