"""Planted bugs: each a small change of the real engine or store that the checker has to notice.

A checker that has never seen a bug proves nothing. `python -m lab.sim.mutants` plants each in
turn and simulates until it is caught; one that survives is a hole in the checker or the workload.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any
from unittest import mock

from lab.sim import simulator
from lab.sim.claims_by_transaction import Held, OpeningTable
from lab.sim.simulator import World, simulate
from semel.core import commands as c
from semel.core import engine, issued, problems
from semel.core.keys import hash_key
from semel.core.policy import Guarantee, Policy
from semel.core.record import Record, Response, State
from semel.stores.memory import MemoryTable

Planting = Callable[[], contextlib.AbstractContextManager[Any]]


def _without_grace(original: Any) -> Any:
    return lambda policy, left, grace: original(policy, left, timedelta())


def _never_late(original: Any) -> Any:
    return lambda world, sent: (original(world, sent)[0], False)


def _signs_for_anybody(original: Any) -> Any:
    return lambda secret, signed, scope, route: original(secret, signed, "", route)


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A planted bug."""

    name: str
    bug: str
    plant: Planting
    guarantee: Guarantee = "atomic"
    world: type[World] = World


def _patched(target: object, name: str, change: Callable[[Any], Any]) -> Planting:
    """Replace an attribute by what `change` makes of it."""
    return lambda: mock.patch.object(target, name, change(getattr(target, name)))


def _apply(change: Callable[[MemoryTable, Any, float, Any], Any]) -> Planting:
    """Change what the store does with a command: `change(table, command, now, original)`."""

    def wrap(original: Any) -> Any:
        def apply(self: MemoryTable, command: Any, now: float) -> Any:
            return change(self, command, now, lambda cmd=command: original(self, cmd, now))

        return apply

    return _patched(MemoryTable, "apply", wrap)


def _whatever_token(*kinds: type) -> Planting:
    """Carry these commands out for anybody: the token asked for is the one that is stored."""

    def change(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
        record = table.records.get(getattr(command, "key", b""))
        if type(command) in kinds and record is not None:
            return original(command._replace(token=record.token))
        return original()

    return _apply(change)


def _claim_over(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.Claim:
        record = table.records.get(command.key)
        if record is not None and record.state is State.IN_FLIGHT and int(now * 1000) % 4 == 0:
            del table.records[command.key]
    return original()


def _eager_takeover(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.Takeover:
        record = table.records.get(command.key)
        if record is not None and record.state is State.IN_FLIGHT:
            table.records[command.key] = record._replace(lease_until=now)
    return original()


def _takeover_keeps_token(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    reply = original()
    if type(command) is c.Takeover and type(reply) is c.Claimed:
        record = table.records[command.key]
        table.records[command.key] = record._replace(token=command.token)
        return reply._replace(token=command.token)
    return reply


def _tokens_start_anew(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.Claim and command.key not in table.records:
        table._last_token = 0
    return original()


def _sweep_in_flight(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.Sweep:
        for key, record in list(table.records.items()):
            if record.state is State.IN_FLIGHT:
                del table.records[key]
    return original()


def _sweep_too_early(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.Sweep:
        for key, record in list(table.records.items()):
            if record.state is State.COMPLETED:
                del table.records[key]
    return original()


def _renew_resurrects(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.Renew:
        for key, token in command.claims:
            record = table.records.get(key)
            if record is not None and record.state is State.IN_FLIGHT:
                table.records[key] = record._replace(token=token)
    return original()


def _overwrites(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.Complete:
        record = table.records.get(command.key)
        if record is not None and record.state is State.COMPLETED:
            table.records[command.key] = record._replace(response=command.response)
            return True
    return original()


def _loses_the_write(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.Complete and int(now * 1000) % 5 == 0:
        return True
    return original()


def _settled(change: Callable[[Any, Policy, Record, float, Any], Any]) -> Planting:
    def wrap(original: Any) -> Any:
        def settled(fingerprint: Any, policy: Policy, record: Record, now: float) -> Any:
            return change(
                fingerprint,
                policy,
                record,
                now,
                lambda *a: original(*(a or (fingerprint, policy, record, now))),
            )

        return settled

    return _patched(engine, "settled", wrap)


def _any_fingerprint(fp: Any, policy: Policy, record: Record, now: float, original: Any) -> Any:
    return original(lambda algorithm: record.fingerprint, policy, record, now)


def _replays_the_expired(fp: Any, policy: Policy, record: Record, now: float, original: Any) -> Any:
    return original(fp, policy, record, 0.0)


def _reruns_the_parked(fp: Any, policy: Policy, record: Record, now: float, original: Any) -> Any:
    if record.state is State.PARKED:
        return None
    return original()


def _rebuilds(fp: Any, policy: Policy, record: Record, now: float, original: Any) -> Any:
    outcome = original()
    if isinstance(outcome, engine.Replay):
        status, headers, body = outcome.response
        return engine.Replay(Response(status, headers, (body or b"") + b"\n"))
    return outcome


def _runs_the_expired(fp: Any, policy: Policy, record: Record, now: float, original: Any) -> Any:
    outcome = original()
    return None if outcome == engine.Refuse(problems.KEY_EXPIRED) else outcome


def _life(change: Callable[[Any, Policy, Any], engine.Life]) -> type[World]:
    """A world whose engine is wrapped: `change(request, policy, life)` is a generator like it."""

    def life(request: Any, policy: Policy, found: Any = None, opens: bool = False) -> engine.Life:
        return change(request, policy, engine.run(request, policy, found, opens=opens))

    class Changed(World):
        pass

    Changed.life = staticmethod(life)
    return Changed


Failed = Callable[[Any, c.StoreError], engine.Outcome | None]
Heard = Callable[[Any, Any], Any]


def _driven(
    life: Any,
    *,
    failed: Failed = lambda command, error: None,
    heard: Heard = lambda command, value: value,
    skipped: tuple[type, ...] = (),
) -> Any:
    """Drive a life from outside, and meddle.

    `failed` may end it where a command failed, `heard` changes what it is told, and commands of the
    kinds `skipped` are not carried out: it is told that they were.
    """
    send: Any = life.send
    value: Any = None
    while True:
        try:
            command = send(value)
        except StopIteration as end:
            return end.value
        send = life.send
        if type(command) in skipped:
            value = True
            continue
        try:
            value = heard(command, (yield command))
        except c.StoreError as error:
            outcome = failed(command, error)
            if outcome is not None:
                return outcome
            send, value = life.throw, error


def _unknown_is_no(request: Any, policy: Policy, life: Any) -> Any:
    """A lost answer to a completion is taken for a failure, and said to be one."""

    def failed(command: Any, error: c.StoreError) -> engine.Outcome | None:
        lost = type(command) is c.Complete and isinstance(error, c.StoreUnknown)
        return engine.Refuse(problems.STORE_UNAVAILABLE) if lost else None

    return (yield from _driven(life, failed=failed))


def _failure_is_yes(request: Any, policy: Policy, life: Any) -> Any:
    """A completion that failed is delivered all the same."""

    def failed(command: Any, error: c.StoreError) -> engine.Outcome | None:
        return engine.Deliver(kept=True) if type(command) is c.Complete else None

    return (yield from _driven(life, failed=failed))


def _fenced_delivers(request: Any, policy: Policy, life: Any) -> Any:
    """One whose completion was refused sends its own answer."""
    refused = False

    def heard(command: Any, value: Any) -> Any:
        nonlocal refused
        refused = refused or (type(command) is c.Complete and value is False)
        return value

    outcome = yield from _driven(life, heard=heard)
    return engine.Deliver(kept=True) if refused else outcome


def _claim_failure_runs(request: Any, policy: Policy, life: Any) -> Any:
    """A store that is down lets requests pass, though the policy refuses them."""

    def failed(command: Any, error: c.StoreError) -> engine.Outcome | None:
        return engine.Bypass() if type(command) is c.Claim else None

    outcome = yield from _driven(life, failed=failed)
    if isinstance(outcome, engine.Bypass):
        yield c.RunHandler(0, 1)
        return engine.Deliver(kept=True)
    return outcome


def _waits_then_runs(request: Any, policy: Policy, life: Any) -> Any:
    """One that has waited too long runs, instead of being refused."""
    outcome = yield from life
    if outcome == engine.Refuse(problems.IN_FLIGHT):
        yield c.RunHandler(0, 1)
        return engine.Deliver(kept=True)
    return outcome


def _answers_before_recording(request: Any, policy: Policy, life: Any) -> Any:
    """The answer goes out before the completion is written, which a crash may then prevent."""
    return (yield from _driven(life, skipped=(c.Complete,)))


def _releases_the_refused(request: Any, policy: Policy, life: Any) -> Any:
    """One that is refused gives "its" claim back, under whatever token is there."""
    outcome = yield from life
    if outcome == engine.Refuse(problems.IN_FLIGHT):
        found = yield c.Lookup(request.key)
        if found is not None:
            yield c.Release(request.key, found.record.token)
    return outcome


def _takes_over_at_most_once(request: Any, policy: Policy, life: Any) -> Any:
    """At most once runs again what crashed."""
    loose = dataclasses.replace(policy, guarantee="at-least-once")
    return (yield from engine.run(request, loose))


def _knows_any_claim(request: Any, policy: Policy, life: Any) -> Any:
    """Every claim in flight is taken for one's own whose answer was lost."""

    def heard(command: Any, value: Any) -> Any:
        if type(value) is c.Found and value.record.state is State.IN_FLIGHT:
            return value._replace(record=value.record._replace(owner=request.owner))
        return value

    return (yield from _driven(life, heard=heard))


class CommitsAnyway(World):
    """A fenced business transaction commits all the same."""

    def commits(self, completed: bool) -> bool:
        """Commit whatever became of the completion."""
        return True


class TwoCommits(World):
    """The business transaction commits as the handler ends, the record after it."""

    def handle(self, server: Any, sent: Any, token: int, transaction: Any) -> Any:
        """Run the handler, and commit."""
        response = yield from super().handle(server, sent, token, transaction)
        if response.status < 300:
            self.history += [effect._replace(time=self.now) for effect in transaction]
            transaction.clear()
        return response


class ForgetsToRollBack(World):
    """What a failed handler wrote is committed with the release of its claim."""

    def apply(self, attempt: str, command: Any, transaction: Any) -> Any:
        """Commit on release."""
        reply = super().apply(attempt, command, transaction)
        if type(command) is c.Release and transaction:
            self.history += [effect._replace(time=self.now) for effect in transaction]
        return reply


class OneRecordTooLate(World):
    """The record is completed, and the business transaction lost, every so often."""

    def commits(self, completed: bool) -> bool:
        """Lose some."""
        return completed and self.rng.random() > 0.1


class ScopeLeftOut(World):
    """Records are stored under the key alone."""


def _no_scope() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(simulator, "hash_key", lambda scope, key: hash_key("", key))


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    yield


def _parked_is_free(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.Takeover:
        record = table.records.get(command.key)
        if record is not None and record.state is State.PARKED:
            table.records[command.key] = record._replace(state=State.EXPIRED)
    return original()


def _holds_nothing(original: Any) -> Any:
    """A transaction that is a claim keeps nobody else out."""

    def open(self: OpeningTable, command: c.Open, *where: Any) -> Any:
        self.held.pop(command.key, None)
        return original(self, command, *where)

    return open


def _overwrites_a_record(original: Any) -> Any:
    """A commit takes the place of whatever record is there, held or not."""

    def finish(self: OpeningTable, command: c.Complete, now: float) -> Any:
        self.records.pop(command.key, None)
        if command.key not in self.held:
            asked = c.Open(command.key, b"\x01want", b"")
            self.held[command.key] = Held("", "", command.token, asked)
        self.held[command.key] = self.held[command.key]._replace(token=command.token)
        return original(self, command, now)

    return finish


def _reads_back_too_soon(original: Any) -> Any:
    """After a lost commit, what is not there yet is taken for undone: it may be on its way."""

    def read_back(request: Any, policy: Policy, token: int, answer: Any, outcome: Any) -> Any:
        try:
            found = yield c.Lookup(request.key)
        except c.StoreError:
            return engine.Refuse(problems.OUTCOME_UNRECORDED)
        if found is None:
            return engine.Refuse(problems.STORE_UNAVAILABLE)
        return (yield from original(request, policy, token, answer, outcome))

    return read_back


@contextlib.contextmanager
def _both(*plantings: Planting) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for planting in plantings:
            stack.enter_context(planting())
        yield


MUTANTS: tuple[Mutant, ...] = (
    Mutant("complete-without-token", "whoever completes is believed", _whatever_token(c.Complete)),
    Mutant("release-without-token", "anybody can give a claim back", _whatever_token(c.Release)),
    Mutant("check-then-insert", "a claim overwrites a claim", _apply(_claim_over)),
    Mutant("takeover-of-the-living", "the lease is not looked at", _apply(_eager_takeover)),
    Mutant("takeover-keeps-token", "a takeover does not raise it", _apply(_takeover_keeps_token)),
    Mutant("tokens-start-anew", "tokens come again after a release", _apply(_tokens_start_anew)),
    Mutant("sweep-in-flight", "the sweeper deletes claims", _apply(_sweep_in_flight)),
    Mutant("sweep-too-early", "answers go before their expiry", _apply(_sweep_too_early)),
    Mutant("renew-resurrects", "a renewal takes a lost claim back", _apply(_renew_resurrects)),
    Mutant("overwritten", "a completed record is completed again", _apply(_overwrites)),
    Mutant("lost-write", "a completion is confirmed and not made", _apply(_loses_the_write)),
    Mutant("any-fingerprint", "another request gets the answer", _settled(_any_fingerprint)),
    Mutant("expired-replayed", "an expired answer is replayed", _settled(_replays_the_expired)),
    Mutant("rebuilt", "a replay is put together anew", _settled(_rebuilds)),
    Mutant("expired-rerun", "a tombstone does not stop a new run", _settled(_runs_the_expired)),
    Mutant("no-scope", "the scope is left out of the key", _no_scope, world=ScopeLeftOut),
    Mutant(
        "unknown-is-no", "a lost commit is reported undone", _nothing, world=_life(_unknown_is_no)
    ),
    Mutant(
        "failure-is-yes", "a failed commit is delivered", _nothing, world=_life(_failure_is_yes)
    ),
    Mutant("fenced-delivers", "the fenced sends its own", _nothing, world=_life(_fenced_delivers)),
    Mutant("fails-open", "a dead store lets pass", _nothing, world=_life(_claim_failure_runs)),
    Mutant("waits-then-runs", "impatience runs", _nothing, world=_life(_waits_then_runs)),
    Mutant(
        "answer-first", "answered, then recorded", _nothing, world=_life(_answers_before_recording)
    ),
    Mutant(
        "refused-releases", "unlock by a stranger", _nothing, world=_life(_releases_the_refused)
    ),
    Mutant("commits-anyway", "the fence does not hold the effect", _nothing, world=CommitsAnyway),
    Mutant("two-commits", "effect and record commit apart", _nothing, world=TwoCommits),
    Mutant("no-rollback", "a failed handler's writes stay", _nothing, world=ForgetsToRollBack),
    Mutant(
        "effect-lost", "the record commits, the effect does not", _nothing, world=OneRecordTooLate
    ),
    Mutant(
        "parked-rerun",
        "a parked key is taken over",
        lambda: _both(_settled(_reruns_the_parked), _apply(_parked_is_free)),
        "at-most-once",
    ),
    Mutant(
        "crash-rerun",
        "at most once runs what crashed",
        _nothing,
        "at-most-once",
        _life(_takes_over_at_most_once),
    ),
    Mutant(
        "any-claim-is-mine",
        "a stranger's claim is taken for one's own",
        _nothing,
        world=_life(_knows_any_claim),
    ),
    Mutant(
        "open-holds-nothing",
        "two transactions claim one key",
        lambda: _both(
            _patched(OpeningTable, "open", _holds_nothing),
            _patched(OpeningTable, "finish", _overwrites_a_record),
        ),
    ),
    Mutant(
        "read-back-too-soon",
        "a late commit is reported undone",
        _patched(engine, "_read_back_opened", _reads_back_too_soon),
    ),
    Mutant(
        "record-goes-with-its-key",
        "the record of an issued key is purged at its not-after",
        _patched(Policy, "until", _without_grace),
    ),
    Mutant(
        "late-key-runs",
        "an issued key is accepted after its not-after",
        _patched(World, "rules", _never_late),
    ),
    Mutant(
        "key-of-another",
        "an issued key is good for anybody",
        _patched(issued, "_sign", _signs_for_anybody),
    ),
)


def hunt(mutant: Mutant, most: int = 3000, first: int = 1) -> tuple[int, str] | None:
    """Simulate until the bug is caught; return the seeds it took and the invariant that broke.

    None: it survived `most` seeds. A history that the checker calls contradictory, or a client
    that never gets its answer, counts as caught.
    """
    with mutant.plant():
        for seed in range(first, first + most):
            try:
                run = simulate([seed], mutant.guarantee, mutant.world)
            except (AssertionError, ValueError) as error:
                return seed - first + 1, type(error).__name__
            if run.report.violations:
                return seed - first + 1, run.report.violations[0].invariant
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant every bug; return 0 only if all are caught."""
    parser = argparse.ArgumentParser(prog="python -m lab.sim.mutants")
    parser.add_argument("--most", type=int, default=3000, help="seeds to try for each")
    options = parser.parse_args(arguments)
    survivors = 0
    for mutant in MUTANTS:
        caught = hunt(mutant, options.most)
        survivors += caught is None
        how = "SURVIVED" if caught is None else f"{caught[1]} after {caught[0]:,} seeds"
        print(f"{mutant.name:24} {mutant.bug:42} {how}", flush=True)
    print(f"{len(MUTANTS) - survivors} of {len(MUTANTS)} planted bugs caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
