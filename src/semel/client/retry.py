"""The retry loop of a logical request, without I/O: when to send, wait and give up.

As `core.engine`, it is a generator. It yields `SendAttempt` and `RetryPause`; the drivers for httpx
and requests carry them out and tell what came of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, fields
from typing import Final, Literal, NamedTuple

from semel.client.budget import Budget
from semel.client.errors import Try
from semel.client.verdict import ReceivedResponse, judge

REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""Idempotent by method (RFC 9110 section 9.2.2): sent again without a key."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How a client retries. Times are in seconds.

    - `deadline`: for the logical request, its waits included. 60: longer than a lease of 30 s,
      after which another server takes over from one that died.
    - `attempts`: the most there are, the first included.
    - `pause`, `longest_pause`: the wait before retry n is random, between 0 and `pause` times
      2 ** (n - 1), `longest_pause` at most (full jitter).
    - `longest_retry_after`: what the server asks for with `Retry-After` is waited, up to this, and
      a random pause more, so that those who were told the same do not come together.
    - `max_body`: bytes of a body that are held for another attempt. A longer one is refused with
      `RequestTooLarge` before anything is sent.

    Raises `ValueError` naming the parameter.
    """

    deadline: float = 60.0
    attempts: int = 10
    pause: float = 0.2
    longest_pause: float = 10.0
    longest_retry_after: float = 60.0
    max_body: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"{field.name}: give a number over 0, not {value!r}")


class SendAttempt(NamedTuple):
    """Send the request; no part of the attempt may take longer than `seconds`."""

    seconds: float


class RetryPause(NamedTuple):
    """Wait before the next attempt."""

    seconds: float


class Broke(NamedTuple):
    """The attempt ended without a complete response."""

    error: str
    sent: bool
    """Whether any of the request can have reached the server."""
    again: bool = True
    """Whether another attempt could go better: not where the request itself is malformed."""


class Ending(NamedTuple):
    """How the logical request ended."""

    kind: Literal["told", "unsettled"]
    """`told`: the last response, or the last error, is the truth: hand it over."""
    tries: tuple[Try, ...]


Life = Generator[SendAttempt | RetryPause, ReceivedResponse | Broke | None, Ending]


def live(
    retry: Retry,
    budget: Budget,
    *,
    keyed: bool,
    begun: bool,
    clock: Callable[[], float],
    wall: Callable[[], float],
    random: Callable[[], float],
) -> Life:
    """Yield what to do for one logical request, and return how it ended.

    `keyed`: it goes out under a key; else it is idempotent by its method. `begun`: it was sent
    before, by this process or one that died, and nobody knows what came of that. `clock` is
    monotonic, `wall` the time of day, `random` returns 0 to 1.
    """
    started = clock()
    tries: list[Try] = []
    maybe = begun
    budget.earn()
    while True:
        told = yield SendAttempt(max(0.001, retry.deadline - (clock() - started)))
        assert told is not None
        after, again, free = None, True, False
        if isinstance(told, Broke):
            maybe, again = maybe or told.sent, told.again
            tries.append(Try(clock() - started, told.error))
        else:
            verdict = judge(told, wall())
            tries.append(Try(clock() - started, f"{told.status} {verdict.slug}".rstrip()))
            if verdict.effect == "known" and not verdict.again:
                return Ending("told", tuple(tries))
            maybe = maybe or verdict.effect != "none"
            after, again, free = verdict.after, verdict.again, verdict.free
        pause = _pause(retry, len(tries), after, random())
        left = retry.deadline - (clock() - started)
        worth_it = again and len(tries) < retry.attempts and pause < left
        if not (worth_it and (free or budget.spend())):
            return Ending("unsettled" if keyed and maybe else "told", tuple(tries))
        yield RetryPause(pause)


def _pause(retry: Retry, tried: int, after: float | None, jitter: float) -> float:
    most: float = min(retry.longest_pause, retry.pause * 2.0 ** min(tried - 1, 60))
    return min(after or 0.0, retry.longest_retry_after) + jitter * most
