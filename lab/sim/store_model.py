"""The store and the network before it: the real `MemoryTable`, whose callers cannot be sure.

Commands and replies get lost, servers crash or stand still around them, and a command whose caller
has given up may be carried out all the same, later, among the commands of others. The clock of the
store, the only one that leases and expiries go by, is set forward and back.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final

from lab.judge.history import (
    ClaimGranted,
    Effect,
    Note,
    Paused,
    Purged,
    Restarted,
    StepsForgotten,
    Stored,
    Wrote,
)
from lab.judge.responses import digest_of
from lab.sim.claims_by_transaction import Held, OpeningTable
from semel.core import commands as c
from semel.core.record import Record, State

if TYPE_CHECKING:
    from lab.sim.scheduler import Process, ServerProcess
    from lab.sim.surroundings import Surroundings

STATES: Final[dict[State, Any]] = {
    State.IN_FLIGHT: "in_flight",
    State.COMPLETED: "completed",
    State.PARKED: "parked",
    State.EXPIRED: "expired",
}
_DURING: Final[dict[type, str]] = {
    c.Complete: "completion under way",
    c.Claim: "claim under way",
    c.Takeover: "claim under way",
    c.RecordStep: "step under way",
    c.Steps: "step under way",
}
_LATE: Final[dict[type, str]] = {
    c.Claim: "late claim",
    c.Takeover: "late takeover",
    c.Complete: "late completion",
    c.Release: "late release",
    c.Park: "late parking",
    c.RecordStep: "late step",
    c.ForgetStep: "late step",
}
"""Commands that may be carried out after their caller has given up."""
_BY_THE_CLOCK: Final = frozenset({c.Takeover, c.Park, c.Lookup, c.Claim})
"""Commands before which the clock is set more often: what they do, or are told, goes by it."""
LOCK_TIMEOUT: Final = 3.0
"""Seconds that a command waits for a row which a commit under way has locked."""


class StoreModel:
    """Carries commands to the table, and writes down what they did."""

    table_type: type[OpeningTable] = OpeningTable

    def __init__(self, simulation: Surroundings) -> None:
        self.simulation = simulation
        self.scheduler = simulation.scheduler
        self.rng = simulation.rng
        self.profile = simulation.profile
        self.happened = simulation.happened
        self.note = simulation.note
        self.names = simulation.names
        self.table = self.table_type()
        self._ahead = 0.0
        """Seconds that the store's clock is ahead of real time."""
        self._locked: set[bytes] = set()
        """Records that a commit under way has changed already."""
        self._doomed: set[int] = set()
        """Tokens of transactions under whose key a record has come."""

    def clock(self) -> float:
        """Return the store's time, which all events are dated by."""
        return self.scheduler.now + self._ahead

    def set_clock(self) -> None:
        """Set the clock forward or back, within its bounds."""
        before = self._ahead
        self._ahead = self.rng.uniform(-self.profile.clock, self.profile.clock)
        self.happened["clock set back" if self._ahead < before else "clock set forward"] += 1
        self.note(Note(self.clock(), f"clock set by {self._ahead - before:.3f}"))

    # --- servers and what they hold --------------------------------------------------------

    def crash(self, server: ServerProcess, during: str) -> None:
        """Kill a server: all that runs on it is gone; it is back at once, knowing nothing."""
        self.happened[f"crash: {during}"] += 1
        server.epoch += 1
        server.paused_until = 0.0
        for key, held in list(self.table.held.items()):
            if held.server == server.name:
                self.happened["crash: transaction open"] += 1
                self.end_transaction(key, held.token)
        self.note(Restarted(self.clock(), server.name))

    def pause(self, server: ServerProcess) -> None:
        """Let a server stand still for half a lease to two and a half."""
        lease = self.profile.lease
        span = lease * self.rng.uniform(0.5, 2.5)
        self.happened["pause past the lease"] += span > lease
        server.paused_until = self.scheduler.now + span
        self.note(Paused(self.clock(), server.name))
        for key, held in self.table.held.items():
            if held.server == server.name:
                self.scheduler.spawn(self._too_idle(key, held.token, server))

    def _too_idle(self, key: bytes, token: int, server: ServerProcess) -> Process:
        """The database ends a transaction that stands still for as long as a lease."""
        yield self.profile.lease
        if server.paused_until > self.scheduler.now and self.end_transaction(key, token):
            self.happened["database ended a transaction"] += 1

    def end_transaction(self, key: bytes, token: int) -> bool:
        """Roll a transaction that was a claim back; the attempt may not know, and make another."""
        held = self.table.let_go(key, token)
        if held is None:
            return False
        if token not in self._doomed:
            self._given_back(key, held)
        return True

    def _given_back(self, key: bytes, held: Held) -> None:
        """Write down that a transaction is no claim any more."""
        scope, name = self.names[key]
        fingerprint = held.asked.fingerprint.decode("latin-1")
        self.note(Wrote(self.clock(), held.attempt, scope, name, held.token, "release", True))
        self.note(Stored(self.clock(), scope, name, "absent", held.token, fingerprint))

    # --- commands --------------------------------------------------------------------------

    def ask(
        self,
        server: ServerProcess,
        attempt: str,
        command: Any,
        transaction: list[Effect] | None = None,
    ) -> Generator[float, None, Any]:
        """Carry a command to the store and its reply back, through whatever faults there are."""
        rng, profile = self.rng, self.profile
        kind = type(command)
        yield rng.uniform(0.001, 0.02)
        healed = self.simulation.healed
        if not healed:
            fault = rng.random() - profile.crash
            if fault < 0:
                self.crash(server, _DURING.get(kind, "another command under way"))
                yield 0.0
            elif fault < profile.lost:
                self._lose(attempt, server, command, transaction)
            elif fault < profile.lost + profile.pause / (2 if kind is c.Takeover else 8):
                self.pause(server)
                yield 0.0
            if profile.clock and rng.random() < (0.1 if kind in _BY_THE_CLOCK else 0.02):
                self.set_clock()
        if self._locked and kind is not c.Lookup and kind is not c.Steps:
            yield from self._wait_for_lock(command.key)
        if kind is c.Open:
            reply = self.open(server, attempt, command)
        else:
            reply = self.apply(attempt, command, transaction)
        if not healed:
            fault = rng.random() - profile.crash
            if fault < 0:
                self.crash(server, _DURING.get(kind, "another command under way"))
                yield 0.0
            elif fault < profile.unknown:
                if type(reply) is c.Claimed and reply.opened:  # its connection went with it
                    self.end_transaction(command.key, reply.token)
                self.happened["claim answer lost"] += kind in (c.Claim, c.Open)
                self.happened["completion answer lost"] += kind is c.Complete
                self.happened["step answer lost"] += kind is c.RecordStep
                raise c.StoreUnknown("its answer was lost")
        yield rng.uniform(0.001, 0.02)
        return reply

    def _lose(
        self, attempt: str, server: ServerProcess, command: Any, transaction: list[Effect] | None
    ) -> None:
        """Lose a command: certainly, or its caller only gives up on it, and it may come late."""
        rng, happened, kind = self.rng, self.happened, type(command)
        happened["store down at claim"] += kind in (c.Claim, c.Open)
        happened["completion lost"] += kind is c.Complete
        if kind is c.Complete and command.key in self.table.held:
            self._commit_lost(attempt, command, transaction)
        elif kind is not c.Release and rng.random() < 0.5:  # how that failed makes no difference
            raise c.StoreUnavailable("lost")
        elif rng.random() < self.profile.delayed:
            delay = rng.uniform(0.01, rng.choice((1.5, 8.0)))
            if kind is c.Open:
                self.scheduler.spawn(self._late_open(attempt, server, command, delay))
            elif kind in _LATE:
                self.scheduler.spawn(self._late(attempt, command, transaction, delay))
        raise c.StoreUnknown("lost")

    def _commit_lost(
        self, attempt: str, command: c.Complete, transaction: list[Effect] | None
    ) -> None:
        """A commit and its connection are lost: it never arrives, or late, after the server has
        begun to ask what became of it."""
        if self.rng.random() < self.profile.delayed:
            self.happened["commit delayed past its answer"] += 1
            delay = self.rng.uniform(0.01, 1.5)
            self.scheduler.spawn(self._late(attempt, command, transaction, delay))
        else:
            self.happened["commit lost"] += 1
            self.end_transaction(command.key, command.token)

    def _late(
        self, attempt: str, command: Any, transaction: list[Effect] | None, delay: float
    ) -> Process:
        """Carry a command out after its caller has given up."""
        kind, key = type(command), command.key
        committing = kind is c.Complete and self.simulation.guarantee == "atomic"
        if committing and self._holds(command) and self.rng.random() < 0.5:
            # The record is written, and its row locked, but the commit has yet to be durable.
            self._locked.add(key)
            yield min(delay, LOCK_TIMEOUT)
            self._locked.discard(key)
            if self.rng.random() < 0.3:
                self.happened["commit lost"] += 1
                return
        else:
            yield delay
        try:
            reply = self.apply(attempt, command, transaction)
        except c.StoreUnknown:  # the database has ended it before it came
            return
        self.happened[_LATE[kind]] += bool(reply)

    def _holds(self, command: c.Complete) -> bool:
        record = self.table.records.get(command.key)
        return (
            record is not None
            and record.token == command.token
            and record.state is State.IN_FLIGHT
            and command.key not in self._locked
        )

    def _late_open(
        self, attempt: str, server: ServerProcess, command: c.Open, delay: float
    ) -> Process:
        """A transaction begins after its server has given up on it, and holds its key a while."""
        yield delay
        reply = self.open(server, attempt, command)
        if type(reply) is c.Claimed:
            self.happened["late claim"] += 1
            yield self.rng.uniform(0.01, 3.0)
            self.end_transaction(command.key, reply.token)

    def _wait_for_lock(self, key: bytes) -> Generator[float, None, None]:
        until = self.scheduler.now + LOCK_TIMEOUT
        while key in self._locked:
            self.happened["waited for a commit"] += 1
            yield 0.1
            if self.scheduler.now >= until:
                raise c.StoreUnavailable("locked for too long")

    def apply(self, attempt: str, command: Any, transaction: list[Effect] | None) -> Any:
        """Carry a command out, and write down what it did."""
        kind, now, table = type(command), self.clock(), self.table
        if kind is c.Lookup or kind is c.Steps:
            return table.apply(command, now)
        scope, key = self.names[command.key]
        if kind is c.RecordStep or kind is c.ForgetStep:
            return self._apply_step(attempt, command)
        before = table.records.get(command.key)
        held = table.held.get(command.key) if self.simulation.opens else None
        if kind is c.Complete and self.simulation.opens and (held is not None or before is None):
            reply: Any = table.finish(command, now)
        else:
            if held is not None and kind is c.Claim and before is None:
                # Somebody parks. Whoever holds the key by a transaction cannot commit any more.
                if held.token not in self._doomed:
                    self._given_back(command.key, held)
                self._doomed.add(held.token)
            reply = table.apply(command, now)
        if type(reply) is c.Claimed:
            self.happened["takeover"] += reply.attempt > 1
            record = table.records[command.key]
            self.note(ClaimGranted(now, attempt, scope, key, reply.token, record.lease_until))
            self._stored(scope, key, record)
        elif kind is c.Complete:
            response = command.response
            digest = digest_of(response.status, response.headers, response.body or b"")
            token = command.token
            self.note(Wrote(now, attempt, scope, key, token, "complete", reply, digest))
            self.happened["completion fenced"] += not reply
            self._changed(scope, key, before, command.key)
            if transaction and self.commits(reply):
                self.simulation.history += [e._replace(time=now) for e in transaction]
        elif kind is c.Release or kind is c.Park:
            action: Any = "release" if kind is c.Release else "park"
            self.note(Wrote(now, attempt, scope, key, command.token, action, bool(reply)))
            self._changed(scope, key, before, command.key)
        return reply

    def _apply_step(self, attempt: str, command: Any) -> Any:
        """Carry out a write to a step; one that changes nothing is not written down."""
        name, now = command.name, self.clock()
        before = self.table.steps.get(command.key, {}).get(name)
        reply = self.table.apply(command, now)
        after = self.table.steps.get(command.key, {}).get(name)
        digest = None
        if type(command) is c.ForgetStep:
            action: Any = "forget-step"
            changed = after is None
        elif command.result is None:
            action = "begin-step"
            changed = before is None
        else:
            action = "step"
            result = after[0] if after is not None else None
            changed = before is None or before[0] != result
            digest = step_digest(result or b"")
        if reply and not changed:
            return reply
        self.happened["step fenced"] += not reply
        scope, key = self.names[command.key]
        token = command.token
        self.note(Wrote(now, attempt, scope, key, token, action, bool(reply), digest, name))
        return reply

    def open(self, server: ServerProcess, attempt: str, command: c.Open) -> Any:
        """Begin a transaction that is to be a claim."""
        scope, key = self.names[command.key]
        now = self.clock()
        reply = self.table.open(command, attempt, server.name, now)
        if type(reply) is c.Claimed:
            self.happened["opened"] += 1
            fingerprint = command.fingerprint.decode("latin-1")
            self.note(ClaimGranted(now, attempt, scope, key, reply.token, now + 1e9))
            self.note(Stored(now, scope, key, "in_flight", reply.token, fingerprint))
        self.happened["key held by a transaction"] += reply is None
        return reply

    def commits(self, completed: bool) -> bool:
        """Whether a business transaction commits: with its completion only."""
        return completed

    def _changed(self, scope: str, key: str, before: Record | None, name: bytes) -> None:
        record = self.table.records.get(name)
        if record is before:
            return
        if record is not None:
            self._stored(scope, key, record)
        elif before is not None:
            fingerprint = before.fingerprint.decode("latin-1")
            self.note(Stored(self.clock(), scope, key, "absent", before.token, fingerprint))

    def _stored(self, scope: str, key: str, record: Record) -> None:
        response = record.response
        digest = None
        if response is not None:
            digest = digest_of(response.status, response.headers, response.body or b"")
        done = record.state is State.COMPLETED
        fingerprint = record.fingerprint.decode("latin-1")
        self.note(
            Stored(
                self.clock(),
                scope,
                key,
                STATES[record.state],
                record.token,
                fingerprint,
                digest,
                record.expires_at if done else None,
            )
        )

    # --- beside requests -------------------------------------------------------------------

    def renewing(self, attempt: str, key: bytes, token: int, running: list[bool]) -> Process:
        """Renew a lease each third of it while the handler runs, from the same server."""
        lease = self.profile.lease
        scope, name = self.names[key]
        while True:
            yield lease / 3
            if not running[0]:
                return
            if key in self._locked:
                continue
            now = self.clock()
            lost = self.table.apply(c.Renew(((key, token),), lease), now)
            if lost:
                self.note(Wrote(now, attempt, scope, name, token, "renew", False))
                return
            until = self.table.records[key].lease_until
            self.note(Wrote(now, attempt, scope, name, token, "renew", True, lease_until=until))

    def sweeping(self) -> Process:
        """The sweeper, now and then."""
        table, happened, simulation = self.table, self.happened, self.simulation
        while not simulation.healed or self.scheduler.now < simulation.forgotten_at:
            yield self.rng.uniform(1, 6)
            now = self.clock()
            before = dict(table.records)
            steps = {key: len(steps) for key, steps in table.steps.items()}
            table.apply(c.Sweep(100), now)
            for name, record in before.items():
                after = table.records.get(name)
                if after is record:
                    continue
                scope, key = self.names[name]
                if after is None:
                    happened["purged"] += 1
                    self.note(Purged(now, scope, key))
                else:
                    happened["expired"] += 1
                    self._stored(scope, key, after)
            for name, count in steps.items():
                if len(table.steps.get(name, ())) < count and name not in table.records:
                    happened["steps forgotten"] += 1
                    self.note(StepsForgotten(now, *self.names[name]))


def step_digest(result: bytes) -> str:
    """Return the digest of a step's result, as events name it."""
    return digest_of(0, (), result)
