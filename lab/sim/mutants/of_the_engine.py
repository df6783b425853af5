"""Planted bugs of the engine: wrong conclusions from what it is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from lab.sim.mutants.planting import (
    Mutant,
    Planting,
    driven,
    in_the_engine,
    in_the_table,
    patched,
    together,
)
from lab.sim.servers import Service
from semel.core import commands as c
from semel.core import ending, engine, issued, problems
from semel.core.policy import Policy
from semel.core.record import Record, Response, State
from semel.stores.memory import MemoryTable

# --- what a record says by itself --------------------------------------------------------------


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

    return together(patched(engine, "settled", wrap), patched(ending, "settled", wrap))


def _any_fingerprint(fp: Any, policy: Policy, record: Record, now: float, original: Any) -> Any:
    return original(lambda algorithm: record.fingerprint, policy, record, now)


def _replays_the_expired(fp: Any, policy: Policy, record: Record, now: float, original: Any) -> Any:
    return original(fp, policy, record, 0.0)


def _reruns_the_parked(fp: Any, policy: Policy, record: Record, now: float, original: Any) -> Any:
    if record.state is State.PARKED:
        return None
    return original()


def _parked_is_free(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.Takeover:
        record = table.records.get(command.key)
        if record is not None and record.state is State.PARKED:
            table.records[command.key] = record._replace(state=State.EXPIRED)
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


# --- what becomes of a run ---------------------------------------------------------------------


def _unknown_is_no(request: Any, policy: Policy, life: Any) -> Any:
    """A lost answer to a completion is taken for a failure, and said to be one."""

    def failed(command: Any, error: c.StoreError) -> engine.Outcome | None:
        lost = type(command) is c.Complete and isinstance(error, c.StoreUnknown)
        return engine.Refuse(problems.STORE_UNAVAILABLE) if lost else None

    return (yield from driven(life, failed=failed))


def _failure_is_yes(request: Any, policy: Policy, life: Any) -> Any:
    """A completion that failed is delivered all the same."""

    def failed(command: Any, error: c.StoreError) -> engine.Outcome | None:
        return engine.Deliver(kept=True) if type(command) is c.Complete else None

    return (yield from driven(life, failed=failed))


def _fenced_delivers(request: Any, policy: Policy, life: Any) -> Any:
    """One whose completion was refused sends its own answer."""
    refused = False

    def heard(command: Any, value: Any) -> Any:
        nonlocal refused
        refused = refused or (type(command) is c.Complete and value is False)
        return value

    outcome = yield from driven(life, heard=heard)
    return engine.Deliver(kept=True) if refused else outcome


def _claim_failure_runs(request: Any, policy: Policy, life: Any) -> Any:
    """A store that is down lets requests pass, though the policy refuses them."""

    def failed(command: Any, error: c.StoreError) -> engine.Outcome | None:
        return engine.Bypass() if type(command) is c.Claim else None

    outcome = yield from driven(life, failed=failed)
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
    return (yield from driven(life, skipped=lambda command: type(command) is c.Complete or None))


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

    return (yield from driven(life, heard=heard))


def _own_park_is_done(original: Any) -> Any:
    """Whatever became of one's own claim, it is taken for completed."""

    def told_by(
        found: Any, request: Any, policy: Policy, token: int, answer: Any, outcome: Any
    ) -> Any:
        if found is not None and found.record.token == token:
            return outcome
        return original(found, request, policy, token, answer, outcome)

    return told_by


def _given_back_is_in_flight(original: Any) -> Any:
    """A claim that was given back is reported as somebody else's in flight."""

    def told_by(found: Any, *rest: Any) -> Any:
        return engine.Refuse(problems.IN_FLIGHT) if found is None else original(found, *rest)

    return told_by


# --- issued keys -------------------------------------------------------------------------------


def _without_grace(original: Any) -> Any:
    return lambda policy, left, grace: original(policy, left, timedelta())


def _never_late(original: Any) -> Any:
    return lambda service, sent: (original(service, sent)[0], False)


def _signs_for_anybody(original: Any) -> Any:
    return lambda secret, signed, scope, route: original(secret, signed, "", route)


ENGINE_MUTANTS: tuple[Mutant, ...] = (
    Mutant("any-fingerprint", "another request gets the answer", _settled(_any_fingerprint)),
    Mutant("expired-replayed", "an expired answer is replayed", _settled(_replays_the_expired)),
    Mutant("rebuilt", "a replay is put together anew", _settled(_rebuilds)),
    Mutant("expired-rerun", "a tombstone does not stop a new run", _settled(_runs_the_expired)),
    Mutant("unknown-is-no", "a lost commit is reported undone", in_the_engine(_unknown_is_no)),
    Mutant("failure-is-yes", "a failed commit is delivered", in_the_engine(_failure_is_yes)),
    Mutant("fenced-delivers", "the fenced sends its own", in_the_engine(_fenced_delivers)),
    Mutant("fails-open", "a dead store lets pass", in_the_engine(_claim_failure_runs)),
    Mutant("waits-then-runs", "impatience runs", in_the_engine(_waits_then_runs)),
    Mutant("answer-first", "answered, then recorded", in_the_engine(_answers_before_recording)),
    Mutant("refused-releases", "unlock by a stranger", in_the_engine(_releases_the_refused)),
    Mutant(
        "any-claim-is-mine",
        "a stranger's claim is taken for one's own",
        in_the_engine(_knows_any_claim),
    ),
    Mutant(
        "parked-rerun",
        "a parked key is taken over",
        together(_settled(_reruns_the_parked), in_the_table(_parked_is_free)),
        "at-most-once",
    ),
    Mutant(
        "crash-rerun",
        "at most once runs what crashed",
        in_the_engine(_takes_over_at_most_once),
        "at-most-once",
    ),
    Mutant(
        "parked-is-completed",
        "a parked key is taken for a completion whose answer was lost",
        patched(ending, "_told_by", _own_park_is_done),
        "at-most-once",
    ),
    Mutant(
        "given-back-is-in-flight",
        "a 409 whose cause is the attempt's own, released claim",
        patched(ending, "_told_by", _given_back_is_in_flight),
    ),
    Mutant(
        "record-goes-with-its-key",
        "the record of an issued key is purged at its not-after",
        patched(Policy, "until", _without_grace),
    ),
    Mutant(
        "late-key-runs",
        "an issued key is accepted after its not-after",
        patched(Service, "rules", _never_late),
    ),
    Mutant(
        "key-of-another",
        "an issued key is good for anybody",
        patched(issued, "_sign", _signs_for_anybody),
    ),
)
