"""Planted bugs of commits: effect and record apart, commands that arrive late, clocks believed."""

from __future__ import annotations

from typing import Any

from lab.sim import servers
from lab.sim.mutants.planting import Mutant, driven, in_the_engine, in_the_table, patched
from lab.sim.servers import Service
from lab.sim.store_model import StoreModel
from semel.core import commands as c
from semel.core import ending, engine, problems
from semel.core.keys import hash_key
from semel.core.policy import Policy
from semel.core.record import State
from semel.stores.memory import MemoryTable


def _commits_anyway(original: Any) -> Any:
    return lambda store, completed: True


def _loses_some_effects(original: Any) -> Any:
    return lambda store, completed: completed and store.rng.random() > 0.1


def _two_commits(original: Any) -> Any:
    """The business transaction commits as the handler ends, the record after it."""

    def handle(self: Service, server: Any, sent: Any, token: int, policy: Any, effects: Any) -> Any:
        answer = yield from original(self, server, sent, token, policy, effects)
        if answer.response.status < 300:
            now = self.store.clock()
            self.simulation.history += [effect._replace(time=now) for effect in effects]
            effects.clear()
        return answer

    return handle


def _no_rollback(original: Any) -> Any:
    """What a failed handler wrote is committed with the release of its claim."""

    def apply(self: StoreModel, attempt: str, command: Any, transaction: Any) -> Any:
        reply = original(self, attempt, command, transaction)
        if type(command) is c.Release and transaction:
            now = self.clock()
            self.simulation.history += [effect._replace(time=now) for effect in transaction]
        return reply

    return apply


def _reads_back_too_soon(original: Any) -> Any:
    """After a lost commit, what is not there yet is taken for undone: it may be on its way."""

    def read_back(request: Any, policy: Policy, token: int, answer: Any, outcome: Any) -> Any:
        try:
            found = yield c.Lookup(request.key)
        except c.StoreError:
            return engine.Refuse(problems.OUTCOME_UNRECORDED)
        there = found is not None and found.record.state is not State.IN_FLIGHT
        if not there:
            return engine.Refuse(problems.STORE_UNAVAILABLE)
        return (yield from original(request, policy, token, answer, outcome))

    return read_back


def _expiry_is_not_asked_again(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    """What was seen to be expired is taken over, though the clock was set back since."""
    record = table.records.get(getattr(command, "key", b""))
    if type(command) is c.Takeover and command.expired and record is not None:
        if record.state is State.COMPLETED and record.token == command.token:
            table.records[command.key] = record._replace(expires_at=now)
    return original()


def _lease_for_a_fence(original: Any) -> Any:
    """Who has held its claim for less than a lease, by its own clock, need not show its token."""
    granted: dict[tuple[StoreModel, int], float] = {}

    def apply(self: StoreModel, attempt: str, command: Any, transaction: Any) -> Any:
        now = self.scheduler.now
        if type(command) is c.Complete:
            record = self.table.records.get(command.key)
            since = granted.get((self, command.token), -1e9)
            if record is not None and now - since < self.profile.lease:
                command = command._replace(token=record.token)
        reply = original(self, attempt, command, transaction)
        if type(reply) is c.Claimed:
            granted[self, reply.token] = now
        return reply

    return apply


def _forgets_the_undo(request: Any, policy: Policy, life: Any) -> Any:
    """What a handler wrote before it raised is committed with the response."""
    return (yield from driven(life, skipped=lambda command: type(command) is c.Undo or None))


def _completes_before_the_undo(request: Any, policy: Policy, life: Any) -> Any:
    """The record is completed in the handler's transaction, which is rolled back after that."""
    undo = None

    def skipped(command: Any) -> Any:
        nonlocal undo
        undo = command if type(command) is c.Undo else undo
        return type(command) is c.Undo or None

    outcome = yield from driven(life, skipped=skipped)
    if undo is not None:
        yield undo
    return outcome


def _gives_back_what_was_raised(request: Any, policy: Policy, life: Any) -> Any:
    """What was raised is rolled back, and its response with it: a retry runs again."""

    def heard(command: Any, value: Any) -> Any:
        raised = type(command) is c.RunHandler and value.raised
        return value._replace(released=True) if raised else value

    return (yield from driven(life, heard=heard))


def _takes_a_raise_for_a_return(request: Any, policy: Policy, life: Any) -> Any:
    """The adapter does not say that the response was made from an exception."""

    def heard(command: Any, value: Any) -> Any:
        return value._replace(raised=False) if type(command) is c.RunHandler else value

    return (yield from driven(life, heard=heard))


COMMIT_MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "no-scope",
        "the scope is left out of the key",
        patched(servers, "hash_key", lambda original: lambda scope, key: hash_key("", key)),
    ),
    Mutant(
        "commits-anyway",
        "the fence does not hold the effect",
        patched(StoreModel, "commits", _commits_anyway),
    ),
    Mutant(
        "two-commits",
        "effect and record commit apart",
        patched(Service, "handle", _two_commits),
    ),
    Mutant(
        "no-rollback",
        "a failed handler's writes stay",
        patched(StoreModel, "apply", _no_rollback),
    ),
    Mutant(
        "effect-lost",
        "the record commits, the effect does not",
        patched(StoreModel, "commits", _loses_some_effects),
    ),
    Mutant(
        "read-back-too-soon",
        "a late commit is reported undone",
        patched(ending, "_read_back", _reads_back_too_soon),
    ),
    Mutant(
        "read-back-too-soon-opened",
        "the same where the transaction is the claim",
        patched(ending, "_read_back_opened", _reads_back_too_soon),
    ),
    Mutant(
        "expiry-not-asked-again",
        "an expiry is believed after the clock was set back",
        in_the_table(_expiry_is_not_asked_again),
    ),
    Mutant(
        "lease-for-a-fence",
        "a lease by one's own clock stands in for the token",
        patched(StoreModel, "apply", _lease_for_a_fence),
    ),
    Mutant(
        "undo-forgotten",
        "what was written before a raise is committed",
        in_the_engine(_forgets_the_undo),
    ),
    Mutant(
        "undo-too-late",
        "the response is recorded before the undo",
        in_the_engine(_completes_before_the_undo),
    ),
    Mutant(
        "raised-given-back",
        "what was raised is released, not kept",
        in_the_engine(_gives_back_what_was_raised),
    ),
    Mutant(
        "raise-not-noted",
        "a raise of the handler is taken for a return",
        in_the_engine(_takes_a_raise_for_a_return),
    ),
)
