"""The meaning of a response: whether to send the request again, and what is known of its effect.

Sources: RFC 9110 sections 10.2.3 and 15, RFC 6585, RFC 8470 (425), Semel's problem catalogue, and
Stripe's documentation for `Idempotent-Replayed` and `Stripe-Should-Retry`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

from semel.core.problems import CATALOGUE, Effect


class ReceivedResponse(NamedTuple):
    """A complete response, as far as a client looks at it."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes


class ResponseVerdict(NamedTuple):
    """What follows from a response."""

    again: bool
    """Whether a retry under the same key makes sense."""
    effect: Effect
    after: float | None = None
    """Seconds that the server asks to be left alone for."""
    slug: str = ""
    """The problem's name, where the response is a problem document."""
    free: bool = False
    """Whether a retry is left out of the budget: this very request is being worked on, so to ask
    again is to wait, and no overload."""


_CATALOGUED: Final = {problem.slug: problem for problem in CATALOGUE}
_COME_BACK: Final = frozenset({408, 425, 429})
"""Not now: nothing was done."""
_TURNED_AWAY: Final = frozenset({401, 403, 407, 413, 421, 431, 501, 505})
"""Refused before anybody looked the key up: nothing was done by this attempt."""


def judge(response: ReceivedResponse, wall: float) -> ResponseVerdict:
    """Say what a response means for a request that went out under a key.

    `wall` is the time in seconds since the epoch, for a `Retry-After` that is a date.
    """
    status, headers = response.status, response.headers
    if status < 400:
        return ResponseVerdict(False, "known")
    after = retry_after(headers, wall)
    slug = _slug(response)
    problem = _CATALOGUED.get(slug)
    again: bool
    effect: Effect
    if problem is not None:
        again, effect = problem.retry, problem.effect
    elif headers.get("idempotent-replayed") == "true":
        again, effect = False, "known"  # a 5xx too: it was kept, and would be replayed again
    elif status in _COME_BACK:
        again, effect = True, "none"
    elif status in _TURNED_AWAY:
        again, effect = False, "none"
    elif status >= 500 or (status == 409 and after is not None):
        again, effect = True, "unknown"
    else:
        again, effect = False, "known"
    told = headers.get("stripe-should-retry")
    if told == "true" and effect == "known":
        effect = "unknown"  # the server expects another response
    if told in ("true", "false"):
        again = told == "true"
    return ResponseVerdict(again, effect, after, slug, free=status == 409)


def retry_after(headers: Mapping[str, str], wall: float) -> float | None:
    """Return the seconds that `Retry-After` names, 0 or more; None: absent, or not understood.

    A date counts from the response's own `Date` where it has one: the two clocks need not agree.
    """
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)  # RFC 9110 has whole seconds; fractions are seen in practice
    except ValueError:
        until = _moment(value)
        if until is None:
            return None
        now = _moment(headers.get("date", ""))
        return max(0.0, until - (wall if now is None else now))
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _moment(value: str) -> float | None:
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _slug(response: ReceivedResponse) -> str:
    """Return the last part of a problem's type; empty where the response is none."""
    if not response.headers.get("content-type", "").startswith("application/problem+json"):
        return ""
    try:
        kind = json.loads(response.body)["type"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return kind.rpartition("/")[2] if isinstance(kind, str) else ""
