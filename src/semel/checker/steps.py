"""The steps from which cases are composed."""

from __future__ import annotations

import re

from semel.checker.exchange import (
    Count,
    Crash,
    Pause,
    SendOne,
    Steps,
    T,
    Together,
    WireRequest,
    WireResponse,
)
from semel.checker.scene import Scene
from semel.checker.verdict import NotRun

__all__ = [
    "COME_BACK",
    "begin",
    "count",
    "crash",
    "persist",
    "ran",
    "send",
    "together",
    "twice",
    "watched",
]

COME_BACK = frozenset({0, 409, 423, 425, 429, 500, 502, 503, 504})
"""Statuses, and no response at all, after which a client sends the same request again."""


def send(request: WireRequest) -> Steps[WireResponse]:
    """Send a request."""
    answer = yield SendOne(request)
    assert isinstance(answer, WireResponse)
    return answer


def together(requests: list[WireRequest]) -> Steps[list[WireResponse]]:
    """Send requests at the same moment."""
    answers = yield Together(tuple(requests))
    assert isinstance(answers, list)
    return answers


def count() -> Steps[int | None]:
    """Count the effects; None where they are not counted."""
    number = yield Count()
    assert number is None or isinstance(number, int)
    return number


def crash(request: WireRequest, after: float | None) -> Steps[WireResponse]:
    """Kill the server around a request, and start it again."""
    answer = yield Crash(request, after)
    assert isinstance(answer, WireResponse)
    return answer


def watched(steps: Steps[T]) -> Steps[tuple[T, int | None]]:
    """Return what the steps return, and how many effects they had; None if that is not counted."""
    before = yield from count()
    result = yield from steps
    after = yield from count()
    return result, None if before is None or after is None else after - before


def begin(scene: Scene, request: WireRequest | None = None) -> Steps[WireResponse]:
    """Send a first request. Raises `NotRun` where it fails: there is nothing to repeat."""
    answer = yield from send(request or scene.request())
    if not answer.done:
        raise NotRun(f"its first request was answered {answer}")
    return answer


def twice(
    scene: Scene, request: WireRequest | None = None
) -> Steps[tuple[WireResponse, WireResponse]]:
    """Send a request, and again once it is answered."""
    first = yield from begin(scene, request)
    again = yield from send(request or scene.request())
    return first, again


def persist(scene: Scene, request: WireRequest | None = None) -> Steps[WireResponse]:
    """Send a request until it has a response that is no "come back", for `patience` seconds.

    Three times at least: an API that makes retries wait may use up all patience with the first.
    """
    waited, delay, tries = 0.0, 0.1, 0
    while True:
        answer = yield from send(request or scene.request())
        tries += 1
        waited += answer.seconds
        if answer.status not in COME_BACK or (waited >= scene.target.patience and tries >= 3):
            return answer
        asked = answer.header("Retry-After") or ""
        seconds = int(asked) if re.fullmatch("[0-9]{1,6}", asked) else 0
        wait = min(max(delay, seconds), scene.target.patience / 4)
        yield Pause(wait)
        waited += wait
        delay = min(delay * 2, 2.0)


def ran(effects: int | None, first: WireResponse, again: WireResponse) -> bool | None:
    """Whether two successful requests were two operations; None: it cannot be told.

    By the effects where they are counted, else by the responses: different ones come of two runs.
    """
    if effects is not None:
        return effects > 1
    return True if again.done and not again.same(first) else None
