"""Outcomes of a request: what its client is to be sent, and what a record says by itself."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from semel.core import problems
from semel.core.keys import reference
from semel.core.policy import Policy
from semel.core.problems import Problem
from semel.core.record import Record, Response, State, UnreadableRecord


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
