"""The engine: every decision in the life of one operation, without a clock, a socket or a thread.

`run` is a generator. It yields commands (`semel.core.commands`), is sent their results, and
returns the outcome. Three drivers carry the commands out: async, threads
(`semel.runtime.drivers`), and the simulator with virtual time (`lab.sim`), so what is proved of one
holds for all.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any, Final

from semel.core import ending, problems
from semel.core.commands import (
    Claim,
    Claimed,
    Found,
    Lookup,
    Open,
    Park,
    Release,
    RunHandler,
    StoreError,
    StoreUnknown,
    Takeover,
    Wait,
)
from semel.core.keys import reference
from semel.core.outcomes import (
    Bypass,
    Deliver,
    Life,
    Outcome,
    Refuse,
    Replay,
    Request,
    settled,
)
from semel.core.policy import Policy
from semel.core.record import Record, State, UnreadableRecord

__all__ = [
    "Bypass",
    "Deliver",
    "Life",
    "Outcome",
    "Refuse",
    "Replay",
    "Request",
    "run",
    "settled",
]

FIRST_POLL: Final = 0.02
LONGEST_POLL: Final = 0.5
POLL_GROWTH: Final = 1.6
"""A repeat that cannot see the first request's process looks at the record after 20 ms, then ever
less often, to at most twice a second: short operations end soon, long ones cost little."""


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
        return (yield from ending.park(request, policy, claimed, answer))
    return (yield from ending.finish(request, policy, claimed, answer))


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
