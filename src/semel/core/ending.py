"""The end of an operation: what came of the handler is recorded, released or parked.

The second half of the engine's generator (`semel.core.engine`).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

from semel.core import problems
from semel.core.commands import (
    Answer,
    Claim,
    Claimed,
    Complete,
    Found,
    Lookup,
    Open,
    Park,
    Release,
    Sleep,
    StoreError,
    StoreUnknown,
    Undo,
)
from semel.core.outcomes import Deliver, Life, Outcome, Refuse, Request, settled
from semel.core.policy import NOT_AN_OUTCOME, Policy
from semel.core.problems import Problem
from semel.core.record import State, UnreadableRecord

READ_BACK_PAUSES: Final = (0.05, 0.2, 0.6)
"""Seconds between attempts to learn what became of a write whose answer was lost."""


def finish(request: Request, policy: Policy, claimed: Claimed, answer: Answer) -> Life:
    """Record what came of the handler, and say what may be sent."""
    key, token = request.key, claimed.token
    response = answer.response
    forgotten = (
        policy.guarantee == "atomic"
        and not answer.atomic
        and response.status < 400
        and response.status not in NOT_AN_OUTCOME  # 307, 308: it went elsewhere
    )
    kept = not answer.released and not forgotten and policy.keeps(response, raised=answer.raised)
    if request.resumes and not kept:
        if response.status in (401, 403):
            reason = f"its caller may no longer do this: {response.status}"
            return (yield from park(request, policy, claimed, answer._replace(parked=reason)))
        return Refuse(problems.OUTCOME_UNRECORDED)  # and tried again once its lease has ended
    if not kept:
        yield from _release(key, token)
        return Refuse(problems.CONNECTION_NOT_TAKEN) if forgotten else Deliver(kept=False)
    if not answer.raised or not answer.atomic:  # there is nothing to undo
        if answer.raised:
            answer = answer._replace(raised=False)
        return (yield from _complete(request, policy, claimed, answer))
    undone = yield from _undo(request, policy, claimed, answer)
    if not isinstance(undone, Claimed):
        return undone
    return (yield from _complete(request, policy, undone, answer._replace(atomic=undone.opened)))


def _complete(request: Request, policy: Policy, claimed: Claimed, answer: Answer) -> Life:
    """Store the response, and learn whether that is done."""
    key, token = request.key, claimed.token
    outcome = Deliver(kept=True)
    complete = Complete(
        key, token, answer.response, policy.seconds.expires, policy.seconds.tombstone
    )
    for pause in (*READ_BACK_PAUSES, None):
        try:
            if (yield complete):
                return outcome
            return (yield from _fenced(request, policy, token, answer, outcome))
        except StoreUnknown:
            read_back = _read_back_opened if claimed.opened else _read_back
            known = yield from read_back(request, policy, token, answer, outcome)
            if known is not None:
                return known
        except StoreError:
            if answer.atomic or claimed.opened:  # definitely not committed
                yield from _release(key, token)
                return Refuse(_rolled_back(answer))
        if pause is not None:
            yield Sleep(pause)
    return Refuse(problems.OUTCOME_UNRECORDED)


def _undo(
    request: Request, policy: Policy, claimed: Claimed, answer: Answer
) -> Generator[Any, Any, Claimed | Outcome]:
    """Undo what a handler wrote that raised its response; return the claim to record that under.

    Where the transaction was the claim it is opened anew. Between the two another may have taken
    the key, and run: then its record says what this client is told.
    """
    try:
        yield Undo(request.key, claimed.token)
    except StoreError:  # nobody knows whether it is undone: nothing may be committed any more
        yield from _release(request.key, claimed.token)
        return Refuse(_rolled_back(answer))
    if not claimed.opened:
        return claimed
    refused = _rolled_back(answer)
    for pause in (*READ_BACK_PAUSES, None):
        try:
            found = yield Open(request.key, request.fingerprint(policy.algorithm), request.owner)
            if isinstance(found, Claimed):
                return found
            if found is not None:
                return _told_by(found, request, policy, -1, answer, Deliver(kept=True))
            refused = _undone(answer, problems.IN_FLIGHT)
        except UnreadableRecord:
            break
        except StoreError:
            refused = _rolled_back(answer)
        if pause is not None:
            yield Sleep(pause)
    return Refuse(refused)


def _fenced(request: Request, policy: Policy, token: int, answer: Answer, outcome: Outcome) -> Life:
    """The completion was refused: answer from what the record says now."""
    try:
        found = yield Lookup(request.key)
    except (StoreError, UnreadableRecord):
        return Refuse(problems.OUTCOME_UNRECORDED)
    return _told_by(found, request, policy, token, answer, outcome)


def _told_by(
    found: Found | None,
    request: Request,
    policy: Policy,
    token: int,
    answer: Answer,
    outcome: Outcome,
) -> Outcome:
    """Return what may be sent by one whose claim is over, to judge by the record."""
    if found is None:  # given back, so an atomic operation's writes can never commit
        return Refuse(_undone(answer, problems.STORE_UNAVAILABLE))
    record = found.record
    if record.token == token and record.state in (State.COMPLETED, State.EXPIRED):
        return outcome  # by an earlier try of ours, whose answer was lost
    try:
        there = settled(request.fingerprint, policy, *found)
    except UnreadableRecord:
        return Refuse(problems.OUTCOME_UNRECORDED)
    if there is None:
        return Refuse(_undone(answer, problems.IN_FLIGHT))
    if isinstance(there, Refuse) and there.problem in (problems.KEY_REUSED, problems.KEY_EXPIRED):
        return Refuse(_undone(answer, there.problem))  # said of the record: this one did run
    return there


def _undone(answer: Answer, problem: Problem) -> Problem:
    """A problem that says nothing was done: true of atomic operations without steps only."""
    undone = answer.atomic or answer.raised
    return problem if undone and not answer.stepped else problems.OUTCOME_UNRECORDED


def _rolled_back(answer: Answer) -> Problem:
    """The problem after a transaction that is known to be undone: steps are not undone with it."""
    return problems.OUTCOME_UNRECORDED if answer.stepped else problems.STORE_UNAVAILABLE


def _release(key: bytes, token: int) -> Generator[Any, Any, None]:
    """Give the claim back; where that fails, the lease ends by itself."""
    try:
        yield Release(key, token)
    except StoreError:
        return


def _read_back(
    request: Request, policy: Policy, token: int, answer: Answer, outcome: Outcome
) -> Generator[Any, Any, Outcome | None]:
    """Learn what became of a completion whose answer was lost.

    An outcome, or None where it was not written and may be tried again. Atomic: giving the claim
    back settles it, for the release waits for a commit still under way and is refused after it.
    """
    for pause in READ_BACK_PAUSES:
        try:
            found = yield Lookup(request.key)
            record = found.record if found is not None else None
            if record is None or record.token != token or record.state is not State.IN_FLIGHT:
                return _told_by(found, request, policy, token, answer, outcome)
            if not answer.atomic:
                return None
            if (yield Release(request.key, token)):
                return Refuse(_rolled_back(answer))
        except (StoreError, UnreadableRecord):
            yield Sleep(pause)
    return Refuse(problems.OUTCOME_UNRECORDED)


def _read_back_opened(
    request: Request, policy: Policy, token: int, answer: Answer, outcome: Outcome
) -> Generator[Any, Any, Outcome | None]:
    """The same where the transaction was the claim: the key can be had again only once that ended.

    What is read then is final: the record, or nothing, and nothing happened.
    """
    for pause in READ_BACK_PAUSES:
        try:
            found = yield Open(request.key, request.fingerprint(policy.algorithm), request.owner)
            if isinstance(found, Claimed):
                yield Release(request.key, found.token)
                return Refuse(_rolled_back(answer))
            if found is not None:
                return _told_by(found, request, policy, token, answer, outcome)
        except (StoreError, UnreadableRecord):
            pass
        yield Sleep(pause)
    return Refuse(problems.OUTCOME_UNRECORDED)


def park(request: Request, policy: Policy, claimed: Claimed, answer: Answer) -> Life:
    """Record that nobody can say what the handler did."""
    key, token = request.key, claimed.token
    assert answer.parked is not None
    holds = claimed.opened
    for pause in (*READ_BACK_PAUSES, None):
        try:
            if claimed.opened:  # there is no record yet; better made while the key is still held
                if not holds:
                    yield Release(key, token)
                mine = request.fingerprint(policy.algorithm)
                found = yield Claim(key, mine, policy.seconds.lease, request.owner)
                token = found.token if isinstance(found, Claimed) else found.record.token
                if not isinstance(found, Claimed) and found.record.owner != request.owner:
                    return _told_by(found, request, policy, token, answer, Deliver(kept=True))
            yield Park(key, token, answer.parked, lapsed=False)
            found = yield Lookup(key)
            return _told_by(found, request, policy, -1, answer, Deliver(kept=True))
        except UnreadableRecord:
            break
        except StoreError:
            holds = False
        if pause is not None:
            yield Sleep(pause)
    return Refuse(problems.OUTCOME_UNRECORDED)
