"""Records in this process's memory: for tests, and for a service that lives in one process.

`MemoryTable` says in thirty lines what every store's statements have to do; the simulator drives
it with virtual time.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from semel.core.commands import (
    Claim,
    Claimed,
    Complete,
    Found,
    Lookup,
    Park,
    Release,
    Renew,
    Reply,
    StoreCommand,
    StoreUnavailable,
    Sweep,
    Takeover,
)
from semel.core.record import Record, State
from semel.stores import StoreSetupError


class MemoryTable:
    """The records of a store as a dictionary, and what each command does to it at a given time."""

    def __init__(self, max_records: int = 1_000_000) -> None:
        self.records: dict[bytes, Record] = {}
        self._last_token = 0
        self._due: list[tuple[float, bytes, int]] = []  # (when, key, token), a heap
        self._max_records = max_records

    def apply(self, command: StoreCommand, now: float) -> Reply:
        """Carry out one command at the time `now`."""
        if type(command) is Lookup:
            record = self.records.get(command.key)
            return Found(record, now) if record is not None else None
        match command:
            case Claim():
                return self._claim(command, now)
            case Takeover():
                return self._take_over(command, now)
            case Complete(key, token):
                return self._complete(command, now)
            case Release(key, token):
                if self._held(key, token) is None:
                    return False
                del self.records[key]
                return True
            case Park(key, token, reason, lapsed):
                record = self._held(key, token)
                if record is None or (lapsed and record.lease_until > now):
                    return False
                self.records[key] = record._replace(state=State.PARKED, reason=reason)
                return True
            case Renew(claims, lease):
                return self._renew(claims, now + lease)
            case Sweep(limit):
                return self._sweep(limit, now)
        raise AssertionError(command)

    def _held(self, key: bytes, token: int) -> Record | None:
        record = self.records.get(key)
        if record is None or record.token != token or record.state is not State.IN_FLIGHT:
            return None
        return record

    def _claim(self, command: Claim, now: float) -> Reply:
        record = self.records.get(command.key)
        if record is not None:
            return Found(record, now)
        if len(self.records) >= self._max_records:
            self._sweep(100, now)
            if len(self.records) >= self._max_records:
                raise StoreUnavailable(f"memory:// holds its {self._max_records} records already")
        return self._grant(command, 1, now)

    def _grant(self, command: Claim | Takeover, attempt: int, now: float) -> Claimed:
        self._last_token = token = self._last_token + 1
        until = now + command.lease
        self.records[command.key] = Record(
            command.key,
            State.IN_FLIGHT,
            token,
            command.owner,
            attempt,
            command.fingerprint,
            until,
            0.0,
            0.0,
            None,
            None,
        )
        return Claimed(token, attempt)

    def _take_over(self, command: Takeover, now: float) -> Reply:
        record = self.records.get(command.key)
        if record is None:
            return None
        over = {
            State.IN_FLIGHT: not command.expired and record.lease_until <= now,
            State.COMPLETED: command.expired and record.expires_at <= now,
            State.EXPIRED: command.expired,
            State.PARKED: False,
        }[record.state]
        if record.token != command.token or not over:
            return Found(record, now)
        again = record.state is State.IN_FLIGHT
        return self._grant(command, record.attempt + 1 if again else 1, now)

    def _complete(self, command: Complete, now: float) -> bool:
        record = self._held(command.key, command.token)
        if record is None:
            return False
        expires = now + command.expires
        self.records[command.key] = Record(
            command.key,
            State.COMPLETED,
            command.token,
            record.owner,
            record.attempt,
            record.fingerprint,
            record.lease_until,
            expires,
            expires + command.tombstone,
            command.response,
            None,
        )
        heapq.heappush(self._due, (expires, command.key, command.token))
        return True

    def _renew(self, claims: tuple[tuple[bytes, int], ...], until: float) -> frozenset[int]:
        lost = set()
        for key, token in claims:
            record = self._held(key, token)
            if record is None:
                lost.add(token)
            elif record.lease_until < until:
                self.records[key] = record._replace(lease_until=until)
        return frozenset(lost)

    def _sweep(self, limit: int, now: float) -> int:
        changed = 0
        while changed < limit and self._due and self._due[0][0] <= now:
            _, key, token = heapq.heappop(self._due)
            record = self.records.get(key)
            if record is None or record.token != token:
                continue
            changed += 1
            if record.purge_at <= now:
                del self.records[key]
            else:
                self.records[key] = record._replace(
                    state=State.EXPIRED, response=None, expires_at=record.purge_at
                )
                heapq.heappush(self._due, (record.purge_at, key, token))
        return changed


class MemoryStore:
    """`memory://`: records in a dictionary, safe for threads and event loops of one process.

    `max_records` bounds it: beyond that, new keys are refused (503) until old ones expire.
    `clock` gives seconds; tests inject their own.
    """

    name = "memory"
    atomic = False
    lookup_first = True

    def __init__(
        self, max_records: int = 1_000_000, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._table = MemoryTable(max_records)
        self._lock = threading.Lock()
        self._clock = clock

    def now(self) -> float:
        """Return this machine's time, the clock of every process that shares the store."""
        return self._clock()

    def start(self) -> None:
        """Nothing to open."""

    def stop(self) -> None:
        """Nothing to close; the records stay until the process ends."""

    def execute(self, command: StoreCommand) -> Reply:
        """Carry out one command."""
        if type(command) is Lookup:
            record = self._table.records.get(command.key)
            return Found(record, self._clock()) if record is not None else None
        with self._lock:
            return self._table.apply(command, self._clock())

    async def aexecute(self, command: StoreCommand) -> Reply:
        """Carry out one command; it never suspends."""
        with self._lock:
            return self._table.apply(command, self._clock())

    def begin(self) -> NoReturn:
        """Refuse: there is no database here for business writes to share."""
        raise StoreSetupError(
            "memory:// has no transaction for your writes to share; use sqlite:/// for"
            " op.connection(), or leave op.connection() out"
        )

    async def abegin(self) -> NoReturn:
        """Refuse, as `begin` does."""
        self.begin()
