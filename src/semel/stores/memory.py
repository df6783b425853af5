"""Records in this process's memory: for tests, and for a service that runs in one process.

`MemoryTable` is also the definition of what every store's commands do: a method each, as short as
it can be said. The contract tests compare every other store with it, and the simulator drives it
with virtual time.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

from semel.core.commands import (
    Abandoned,
    Claim,
    Claimed,
    Complete,
    ForgetStep,
    Found,
    Lookup,
    Open,
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
    StoreUnavailable,
    Sweep,
    Takeover,
)
from semel.core.record import Record, Response, State
from semel.stores.base import StoreSetupError

__all__ = ["MemoryStore", "MemoryTable"]


class MemoryTable:
    """The records of a store as a dictionary, and the effect of each command at a given time."""

    def __init__(self, max_records: int = 1_000_000) -> None:
        self.records: dict[bytes, Record] = {}
        self.steps: dict[bytes, dict[str, tuple[bytes | None, float]]] = {}
        """Under each key the steps: their result, None where only begun, and when they go."""
        self._requests: dict[bytes, bytes] = {}
        self._last_token = 0
        self._due: list[tuple[float, bytes, int]] = []  # (when, key, token), a heap
        self._max_records = max_records

    def apply(self, command: StoreCommand, now: float) -> Reply:
        """Carry out one command at the time `now`; return its reply."""
        return _EFFECTS[type(command)](self, command, now)

    # --- an operation from its claim to its end ----------------------------------------------

    def _lookup(self, command: Lookup, now: float) -> Found | None:
        record = self.records.get(command.key)
        return Found(record, now) if record is not None else None

    def _claim(self, command: Claim, now: float) -> Claimed | Found:
        record = self.records.get(command.key)
        if record is not None:
            return Found(record, now)
        if len(self.records) >= self._max_records:
            self._sweep(Sweep(100), now)
            if len(self.records) >= self._max_records:
                raise StoreUnavailable(f"memory:// holds its {self._max_records} records already")
        return self._grant(command, 1, now)

    def _take_over(self, command: Takeover, now: float) -> Claimed | Found | None:
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
        if not again:
            self.steps.pop(command.key, None)
        return self._grant(command, record.attempt + 1 if again else 1, now)

    def _grant(self, command: Claim | Takeover, attempt: int, now: float) -> Claimed:
        self._last_token = token = self._last_token + 1
        if command.request is not None:
            self._requests[command.key] = command.request
        self.records[command.key] = Record.claimed(
            command.key, token, command.owner, command.fingerprint, now + command.lease, attempt
        )
        return Claimed(token, attempt)

    def _held(self, key: bytes, token: int) -> Record | None:
        """Return the record of a claim that is still this token's: what every write requires."""
        record = self.records.get(key)
        if record is None or record.token != token or record.state is not State.IN_FLIGHT:
            return None
        return record

    def _renew(self, command: Renew, now: float) -> frozenset[int]:
        until = now + command.lease
        lost = set()
        for key, token in command.claims:
            record = self._held(key, token)
            if record is None:
                lost.add(token)
            elif record.lease_until < until:
                self.records[key] = record._replace(lease_until=until)
        return frozenset(lost)

    def _complete(self, command: Complete, now: float) -> bool:
        record = self._held(command.key, command.token)
        if record is None:
            return False
        self._write_response(record, command.response, command, now)
        return True

    def _write_response(
        self, record: Record, response: Response, command: Complete | Settle, now: float
    ) -> None:
        expires = now + command.expires
        self._requests.pop(command.key, None)
        self.records[command.key] = record.completed(response, expires, expires + command.tombstone)
        heapq.heappush(self._due, (expires, command.key, command.token))

    def _release(self, command: Release, now: float) -> bool:
        if self._held(command.key, command.token) is None:
            return False
        self._forget(command.key)
        return True

    def _forget(self, key: bytes) -> None:
        del self.records[key]
        self._requests.pop(key, None)

    # --- outcomes that nobody knows ----------------------------------------------------------

    def _park(self, command: Park, now: float) -> bool:
        record = self._held(command.key, command.token)
        if record is None or (command.lapsed and record.lease_until > now):
            return False
        self.records[command.key] = record._replace(state=State.PARKED, reason=command.reason)
        return True

    def _settle(self, command: Settle, now: float) -> bool:
        record = self.records.get(command.key)
        if record is None or (record.state, record.token) != (State.PARKED, command.token):
            return False
        if command.response is not None:
            self._write_response(record, command.response, command, now)
            return True
        self._forget(command.key)
        steps = self.steps.get(command.key, {})
        self.steps[command.key] = {n: kept for n, kept in steps.items() if kept[0] is not None}
        return True

    def _abandoned(self, command: Abandoned, now: float) -> tuple[Remembered, ...]:
        before = now - command.idle
        found = (self.records[key] for key in self._requests)
        over = [r for r in found if r.state is State.IN_FLIGHT and r.lease_until <= before]
        over.sort(key=lambda record: record.lease_until)
        return tuple(
            Remembered(r.key, r.token, r.attempt, self._requests[r.key])
            for r in over[: command.limit]
        )

    # --- steps -------------------------------------------------------------------------------

    def _read_steps(self, command: Steps, now: float) -> dict[str, bytes | None]:
        return {name: result for name, (result, _) in self.steps.get(command.key, {}).items()}

    def _record_step(self, command: RecordStep, now: float) -> Recorded | None:
        key, token, name, result, keep = command
        if key in self.records and self._held(key, token) is None:
            return None
        steps = self.steps.setdefault(key, {})
        before = steps.get(name, (None, now + keep))
        steps[name] = (before[0] if before[0] is not None else result, now + keep)
        heapq.heappush(self._due, (now + keep, key, _STEPS))
        return Recorded(steps[name][0])

    def _forget_step(self, command: ForgetStep, now: float) -> bool:
        key, token, name = command
        if key in self.records and self._held(key, token) is None:
            return False
        steps = self.steps.get(key, {})
        if name not in steps or steps[name][0] is not None:
            return False
        del steps[name]
        return True

    # --- what is due -------------------------------------------------------------------------

    def _sweep(self, command: Sweep, now: float) -> int:
        changed = 0
        while changed < command.limit and self._due and self._due[0][0] <= now:
            _, key, token = heapq.heappop(self._due)
            record = self.records.get(key)
            if token == _STEPS:
                changed += self._sweep_steps(key, record, now)
                continue
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

    def _sweep_steps(self, key: bytes, record: Record | None, now: float) -> int:
        steps = self.steps.get(key, {})
        due = [name for name, (_, goes) in steps.items() if goes <= now]
        if due and record is not None and record.state in (State.IN_FLIGHT, State.PARKED):
            heapq.heappush(self._due, (now + _LATER, key, _STEPS))
            return 0
        for name in due:
            del steps[name]
        if not steps:
            self.steps.pop(key, None)
        return len(due)


_EFFECTS: Final[dict[type, Callable[[MemoryTable, Any, float], Reply]]] = {
    Lookup: MemoryTable._lookup,
    Claim: MemoryTable._claim,
    Takeover: MemoryTable._take_over,
    Renew: MemoryTable._renew,
    Complete: MemoryTable._complete,
    Release: MemoryTable._release,
    Park: MemoryTable._park,
    Settle: MemoryTable._settle,
    Abandoned: MemoryTable._abandoned,
    Steps: MemoryTable._read_steps,
    RecordStep: MemoryTable._record_step,
    ForgetStep: MemoryTable._forget_step,
    Sweep: MemoryTable._sweep,
}
_STEPS = -1
"""Stands for a token in the heap of what is due: the steps of a key."""
_LATER = 60.0
"""Seconds after which steps of an operation that still runs are looked at again."""


class MemoryStore:
    """`memory://`: records in a dictionary, safe for threads and event loops of one process.

    `max_records` bounds it: beyond that, new keys are refused (503) until old ones expire.
    `clock` gives seconds; tests inject their own.
    """

    name = "memory"
    atomic = False
    lookup_first = True
    opens = False
    expires_itself = False
    file = None

    def __init__(
        self, max_records: int = 1_000_000, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._table = MemoryTable(max_records)
        self._lock = threading.Lock()
        self._clock = clock

    def for_a_thread(self) -> MemoryStore:
        """Return itself: it has no connections; see `store_for_a_thread`."""
        return self

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

    def open(self, command: Open) -> NoReturn:
        """Refuse, as `begin` does."""
        self.begin()

    async def aopen(self, command: Open) -> NoReturn:
        """Refuse, as `begin` does."""
        self.begin()
