"""The engine: every decision in the life of one operation, without a clock, a socket or a thread.

`run` is a generator. It yields commands (`semel.core.commands`), is sent their results, and
returns the outcome. Three drivers carry the commands out: async, threads
(`semel.runtime.drivers`), and the simulator with virtual time (`lab.sim`), so what is proved of one
holds for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any, Final, NamedTuple

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
    RunHandler,
    Sleep,
    StoreError,
    StoreUnknown,
    Takeover,
    Wait,
)
from semel.core.keys import reference
from semel.core.policy import NOT_AN_OUTCOME, Policy
from semel.core.problems import Problem
from semel.core.record import Record, Response, State, UnreadableRecord

FIRST_POLL: Final = 0.02
LONGEST_POLL: Final = 0.5
POLL_GROWTH: Final = 1.6
"""A repeat that cannot see the first request's process looks at the record after 20 ms, then ever
less often, to at most twice a second: short operations end soon, long ones cost little."""

READ_BACK_PAUSES: Final = (0.05, 0.2, 0.6)
"""Seconds between attempts to learn what became of a write whose answer was lost."""


class Request(NamedTuple):
    """A request, as far as the engine needs to know it."""

    key: bytes
    """`keys.hash_key(scope, key)`."""
    owner: bytes
    """Random bytes of this attempt."""
    fingerprint: Callable[[int], bytes]
    """Gives the fingerprint by the algorithm of that number; `ValueError` where it is unknown."""
    remembered: bytes | None = None
    """The request itself, to be stored with its claim."""
    resumes: bool = False
    """Made by the completer: it takes a claim over or does nothing, and what fails is left to the
    next round."""
    late: bool = False
    """Its issued key is past its not-after: nothing runs any more."""


class Deliver(NamedTuple):
    """Send the handler's own response (or let what it raised go on)."""

    kept: bool


class Replay(NamedTuple):
    """Send the stored response."""

    response: Response


class Refuse(NamedTuple):
    """Send the problem; nothing runs, or what ran could not be recorded."""

    problem: Problem


class Bypass(NamedTuple):
    """Run the handler without a record (`on_store_error="run"`)."""


Outcome = Deliver | Replay | Refuse | Bypass
Life = Generator[Any, Any, Outcome]
"""Yields a command, is sent its result: the pairs are written at each command in `commands`."""


def run(
    request: Request, policy: Policy, found: Found | None = None, *, opens: bool = False
) -> Life:
    """Live through one operation and return what the client is to be sent.

    `found` is the record where a driver has read it already (`Store.lookup_first`); without one the
    claim itself finds it. `opens`: the claim is the handler's own transaction (`Open`).

    A driver throws `StoreUnavailable` or `StoreUnknown` into the generator where a command failed.
    """
    if request.late:
        return (yield from _refuse_late(request, policy))
    try:
        claimed = yield from _claim(request, policy, found, opens)
    except StoreError:
        if policy.on_store_error == "run":
            return Bypass()
        return Refuse(problems.STORE_UNAVAILABLE)
    except UnreadableRecord:
        return Refuse(problems.STORE_UNAVAILABLE)
    if not isinstance(claimed, Claimed):
        outcome: Outcome = claimed
        return outcome
    answer = yield RunHandler(claimed.token, claimed.attempt)
    if answer.parked is not None:
        return (yield from _park(request, policy, claimed, answer))
    return (yield from _finish(request, policy, claimed, answer))


def _refuse_late(request: Request, policy: Policy) -> Life:
    """Refuse an issued key whose time is over, and settle what a crash has left under it.

    Atomic: nothing was done, and once the claim has been taken over and given back nothing will be,
    whoever wakes up. Else nobody can say, and it is parked.
    """
    key = request.key
    try:
        found = yield Lookup(key)
        if found is None:
            return Refuse(problems.KEY_EXPIRED)
        record, now = found
        mine = settled(request.fingerprint, policy, record, now) is None
        lapsed = mine and record.state is State.IN_FLIGHT and record.lease_until <= now
        if lapsed and policy.guarantee == "atomic":
            asked, lease = record.fingerprint, policy.seconds.lease
            taken = yield Takeover(key, record.token, asked, lease, request.owner, expired=False)
            if isinstance(taken, Claimed):
                yield Release(key, taken.token)
        elif lapsed:
            yield Park(key, record.token, "its key's time was over before it was run again", True)
            found = yield Lookup(key)
        if found is not None and found.record.state is State.PARKED:
            return Refuse(problems.OUTCOME_UNKNOWN._replace(reference=reference(key)))
    except (StoreError, UnreadableRecord):
        pass  # left to the next one who comes
    return Refuse(problems.KEY_EXPIRED)


def _claim(
    request: Request, policy: Policy, found: Found | None, opens: bool
) -> Generator[Any, Any, Claimed | Outcome]:
    """Win the claim, or learn why not."""
    key = request.key
    mine = request.fingerprint(policy.algorithm)
    waiting = _Waiting()
    while True:
        command = _next_command(request, policy, found, mine, opens)
        kind = type(command)
        if kind in _CLAIMS:
            try:
                reply = yield command
            except StoreUnknown:
                found = yield Lookup(key)
                continue
            if isinstance(reply, Claimed):
                return reply
            found = reply
            if found is None and kind is not Takeover:  # another transaction holds the key
                if not (yield from _wait(key, policy, waiting)):
                    return Refuse(problems.IN_FLIGHT)
        elif kind is Park:
            yield command
            found = yield Lookup(key)
        elif command is None:
            assert found is not None
            left = found.record.lease_until - found.now
            if not (yield from _wait(key, policy, waiting, left)):
                return Refuse(problems.IN_FLIGHT)
            found = yield Lookup(key)
        else:
            outcome: Claimed | Outcome = command
            return outcome


_CLAIMS: Final = frozenset({Claim, Open, Takeover})


def _next_command(
    request: Request, policy: Policy, found: Found | None, mine: bytes, opens: bool
) -> Any:
    """Return the command that the record calls for, or that there is none.

    `Claimed`, where the record is this attempt's own claim; an outcome, where the record says it;
    None, where the key's operation is in flight and to be waited for.
    """
    lease = policy.seconds.lease
    if found is None:
        if request.resumes:
            return Refuse(problems.IN_FLIGHT)
        if opens:
            return Open(request.key, mine, request.owner)
        return Claim(request.key, mine, lease, request.owner, request.remembered)
    record, now = found
    in_flight = record.state is State.IN_FLIGHT
    if in_flight and record.owner == request.owner:
        return Claimed(record.token, record.attempt)  # the reply to the claim itself was lost
    outcome = settled(request.fingerprint, policy, record, now)
    if outcome is not None:
        return outcome
    if in_flight and record.lease_until > now:
        return None
    reason = _parked_for(record, policy)
    if reason is not None:
        return Park(request.key, record.token, reason, lapsed=True)
    return Takeover(
        request.key, record.token, mine, lease, request.owner, not in_flight, request.remembered
    )


class _Waiting:
    """The time that a repeat has waited, and the pause until it looks again."""

    __slots__ = ("poll", "waited")

    def __init__(self) -> None:
        self.waited = 0.0
        self.poll = FIRST_POLL


def _wait(
    key: bytes, policy: Policy, waiting: _Waiting, longest: float = math.inf
) -> Generator[Any, Any, bool]:
    """Wait for the key's operation, `longest` seconds at most. False: the time is up."""
    left = policy.seconds.wait - waiting.waited
    if left <= 0:
        return False
    passed = yield Wait(key, min(waiting.poll, left, longest), left, policy.max_waiters)
    if passed is None:
        return False
    waiting.waited += passed
    waiting.poll = min(waiting.poll * POLL_GROWTH, LONGEST_POLL)
    return True


def _parked_for(record: Record, policy: Policy) -> str | None:
    """Why an operation whose process ended is parked and not run again; None: it is run."""
    if record.state is not State.IN_FLIGHT:
        return None
    if policy.guarantee == "at-most-once":
        return "its process ended before it answered"
    if record.attempt >= policy.max_attempts:
        return f"{record.attempt} processes have ended while they ran it"
    return None


def settled(
    fingerprint: Callable[[int], bytes], policy: Policy, record: Record, now: float
) -> Outcome | None:
    """Return what a record says by itself, or None while it is in flight or free to be taken.

    Raises `UnreadableRecord` where a newer version has written it.
    """
    over = record.state is State.EXPIRED or (
        record.state is State.COMPLETED and record.expires_at <= now
    )
    if over:
        return None if policy.after_expiry == "run" else Refuse(problems.KEY_EXPIRED)
    try:
        asked = fingerprint(record.fingerprint[0])
    except (ValueError, IndexError) as error:
        raise UnreadableRecord("its fingerprint is of a kind this version does not know") from error
    if asked != record.fingerprint:
        return Refuse(problems.KEY_REUSED)
    if record.state is State.PARKED:
        return Refuse(problems.OUTCOME_UNKNOWN._replace(reference=reference(record.key)))
    if record.state is State.COMPLETED:
        response = record.response
        if response is None or response.body is None:
            return Refuse(problems.RESPONSE_NOT_KEPT._replace(reference=reference(record.key)))
        return Replay(response)
    return None


def _finish(request: Request, policy: Policy, claimed: Claimed, answer: Answer) -> Life:
    """Record what came of the handler, and say what may be sent."""
    key, token = request.key, claimed.token
    response = answer.response
    outcome = Deliver(kept=True)
    forgotten = (
        policy.guarantee == "atomic"
        and not answer.atomic
        and response.status < 400
        and response.status not in NOT_AN_OUTCOME  # 307, 308: it went elsewhere
    )
    kept = not answer.released and not forgotten and policy.keeps(response.status)
    if request.resumes and not kept:
        if response.status in (401, 403):
            reason = f"its caller may no longer do this: {response.status}"
            return (yield from _park(request, policy, claimed, answer._replace(parked=reason)))
        return Refuse(problems.OUTCOME_UNRECORDED)  # and tried again once its lease has ended
    if not kept:
        yield from _release(key, token)
        return Refuse(problems.CONNECTION_NOT_TAKEN) if forgotten else Deliver(kept=False)
    complete = Complete(key, token, response, policy.seconds.expires, policy.seconds.tombstone)
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
    return problem if answer.atomic and not answer.stepped else problems.OUTCOME_UNRECORDED


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


def _park(request: Request, policy: Policy, claimed: Claimed, answer: Answer) -> Life:
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
