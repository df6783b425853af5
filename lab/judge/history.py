"""Histories: what clients, stores and effects did, as small events that are cheap to make and keep.

**The order of the list is the order of time.** `Claimed`, `Wrote`, `Stored`, `Purged` and an
`Effect` in the database are written down where the store carries them out, so that their order is
the store's own; in one step of the store `Claimed` or `Wrote` comes before the `Stored` it leads
to. `Sent` comes before the request leaves, `Answered` after the answer has arrived, and after the
effects of its attempt: work in the background is an attempt of its own. A harness that cannot see
inside the store (real processes under kill -9) leaves the store's events out, and the checker then
says which invariants it could not judge.

Vocabulary and invariants (S1-S10, L1) are those of the reliability notes; times are seconds by the
store's clock.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, NamedTuple, TextIO

from lab.judge.contract import Promise

Headers = tuple[tuple[bytes, bytes], ...]
"""Names and values as they were on the wire, in order; the form `semel.core` keeps them in."""

Kind = Literal["ok", "refused", "released", "unknown"]
"""How a client has to read an answer.

- `ok`: a kept answer, the first or a replay of it, whatever its status.
- `refused`: definitely not executed (400, 401, 410, 413, 422 `key-reused`, 409 `in-flight`, 503
  `store-unavailable`).
- `released`: the handler ran, the answer was not kept, a retry may run again.
- `unknown`: no telling: timeout, reset, 502, 504, 503 `outcome-unrecorded`, 409 `outcome-unknown`
  and `response-not-kept` (which say nothing of *this* attempt).
"""

Action = Literal["complete", "release", "renew", "park", "step"]
State = Literal["absent", "in_flight", "completed", "parked", "expired"]
Where = Literal["database", "elsewhere"]

KIND_OF_PROBLEM: Final[dict[str, Kind]] = {
    "key-missing": "refused",
    "key-invalid": "refused",
    "key-reused": "refused",
    "key-expired": "refused",
    "in-flight": "refused",
    "request-too-large": "refused",
    "body-timeout": "refused",
    "store-unavailable": "refused",
    "outcome-unknown": "unknown",
    "outcome-unrecorded": "unknown",
    "response-not-kept": "unknown",
    "handler-failed": "ok",
    "connection-not-taken": "released",
    "keys-not-issued": "refused",
}
"""How to read each problem of the catalogue, by the last part of its `type`."""


class HistoryError(ValueError):
    """A history contradicts itself, so nothing can be concluded from it; the message says where."""


class Sent(NamedTuple):
    """A client sent an attempt. A duplicate made by the network is an attempt of its own."""

    time: float
    attempt: str
    """Unique in the history."""
    scope: str
    key: str
    fingerprint: str
    not_after: float | None = None
    """Of an issued key: from then on it is refused for ever."""
    issued_to: str | None = None
    """Of an issued key: the scope it is good in."""


class Answered(NamedTuple):
    """The client got an answer, or gave up waiting for one (`status` 0)."""

    time: float
    attempt: str
    kind: Kind
    status: int
    body: bytes
    headers: Headers = ()
    replayed: bool = False


class Claimed(NamedTuple):
    """The store granted an attempt the claim of a key, for the first time or by a takeover."""

    time: float
    attempt: str
    scope: str
    key: str
    token: int
    lease_until: float | None = None


class Wrote(NamedTuple):
    """An attempt asked the store for a write under a token, and the store applied it or did not."""

    time: float
    attempt: str
    scope: str
    key: str
    token: int
    action: Action
    applied: bool
    response_digest: str | None = None
    """Of a completion: `digest_of` the answer; of a step: any digest of its result."""
    step: str | None = None
    lease_until: float | None = None
    """Of a renewal: the new end of the lease."""


class Stored(NamedTuple):
    """A record changed: this is how it stands in the store from here on."""

    time: float
    scope: str
    key: str
    state: State
    token: int
    fingerprint: str
    response_digest: str | None = None
    """`digest_of` the answer, or None where the record holds none."""
    expires: float | None = None
    """Of a completed record: when its answer may go. None: not known to the harness."""


class Purged(NamedTuple):
    """The record was deleted for its age: the key is absent, and may execute as new."""

    time: float
    scope: str
    key: str


class Effect(NamedTuple):
    """An effect that stands: committed in the database, or done by somebody else's system."""

    time: float
    attempt: str
    scope: str
    key: str
    token: int | None
    """The token it was made under; None where the harness cannot see it."""
    where: Where
    step: str | None = None


class Foreign(NamedTuple):
    """A step called somebody else's system, under the key derived for it."""

    time: float
    attempt: str
    scope: str
    key: str
    step: str
    derived_key: str


class Settled(NamedTuple):
    """A person, or a probe of the far side, settled a parked record."""

    time: float
    scope: str
    key: str
    state: State
    """`completed`, or `absent` where it is to run again."""


class Restarted(NamedTuple):
    """A server process died and, if `server` is seen again, came back."""

    time: float
    server: str


class Paused(NamedTuple):
    """A server stood still (SIGSTOP, a long collection, a lost network): leases may have ended."""

    time: float
    server: str


class Surveyed(NamedTuple):
    """Faults are over and recovery has had its time.

    The `FinalRecord` events that follow are all the records there are.
    """

    time: float


class FinalRecord(NamedTuple):
    """A record as the survey found it."""

    time: float
    scope: str
    key: str
    state: State
    token: int | None = None
    fingerprint: str | None = None
    response_digest: str | None = None


class Note(NamedTuple):
    """A remark for whoever reads the history; the checker passes over it."""

    time: float
    text: str


Event = (
    Sent
    | Answered
    | Claimed
    | Wrote
    | Stored
    | Purged
    | Effect
    | Foreign
    | Settled
    | Restarted
    | Paused
    | Surveyed
    | FinalRecord
    | Note
    | Promise
)
History = list[Event]

EVENTS: Final[dict[str, type[Event]]] = {
    kind.__name__: kind
    for kind in (
        Sent,
        Answered,
        Claimed,
        Wrote,
        Stored,
        Purged,
        Effect,
        Foreign,
        Settled,
        Restarted,
        Paused,
        Surveyed,
        FinalRecord,
        Note,
        Promise,
    )
}

OF_THE_MOMENT: Final = frozenset(
    {
        b"age",
        b"authentication-info",
        b"alt-svc",
        b"connection",
        b"content-length",
        b"date",
        b"idempotent-replayed",
        b"keep-alive",
        b"nel",
        b"proxy-authenticate",
        b"proxy-connection",
        b"report-to",
        b"retry-after",
        b"server",
        b"server-timing",
        b"set-cookie",
        b"te",
        b"traceparent",
        b"tracestate",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"via",
        b"www-authenticate",
        b"x-amzn-trace-id",
        b"x-b3-spanid",
        b"x-b3-traceid",
        b"x-cloud-trace-context",
        b"x-correlation-id",
        b"x-process-time",
        b"x-request-id",
        b"x-response-time",
        b"x-runtime",
        b"x-trace-id",
    }
)
"""Headers that two answers to one operation may differ in (S3): of one connection or one moment,
authentication, tracing, cookies, and Content-Length, which a streamed first answer lacks."""

OF_THE_MOMENT_PREFIXES: Final = (b"access-control-", b"ratelimit", b"x-ratelimit")


@functools.lru_cache(maxsize=4096)
def compared_headers(headers: Headers) -> Headers:
    """Return the headers, names in lower case, in which all answers to one operation must agree."""
    return tuple(
        (name.lower(), value)
        for name, value in headers
        if (lower := name.lower()) not in OF_THE_MOMENT
        and not lower.startswith(OF_THE_MOMENT_PREFIXES)
    )


def same_answer(one: Answered, other: Answered) -> bool:
    """Say whether two answers are equal in what replays must agree in (S3)."""
    return (
        one.body == other.body
        and one.status == other.status
        and (
            one.headers == other.headers
            or compared_headers(one.headers) == compared_headers(other.headers)
        )
    )


def digest_of(status: int, headers: Headers, body: bytes) -> str:
    """Return a short digest of an answer over what replays must agree in (S3).

    The checker makes it of answers that clients saw and compares it with those of `Wrote`, `Stored`
    and `FinalRecord`: an answer other than the stored one is found even if no two clients saw both.
    """
    digest = hashlib.blake2b(b"%d\n" % status, digest_size=16)
    for name, value in compared_headers(headers):
        digest.update(b"%d:%d:%b%b" % (len(name), len(value), name, value))
    digest.update(b"\n" + body)
    return digest.hexdigest()


def dump_event(event: Event) -> str:
    """Return the event as one line of JSON, without the line's end.

    `{"event": "Sent", "time": …}`. Bytes are written as text, one character (U+0000 to U+00FF) a
    byte, so ASCII stays readable; fields that have their default are left out.
    """
    kind = type(event)
    line: dict[str, Any] = {"event": kind.__name__}
    for name, value in zip(kind._fields, event, strict=True):
        if name in kind._field_defaults and value == kind._field_defaults[name]:
            continue
        line[name] = _as_json(value)
    return json.dumps(line)


def _as_json(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, tuple):
        return [_as_json(item) for item in value]
    return value


def load_event(line: str) -> Event:
    """Return the event that `dump_event` wrote. Raises `HistoryError` where the line is none."""
    try:
        fields = json.loads(line)
        kind = EVENTS[fields.pop("event")]
        if "body" in fields:
            fields["body"] = fields["body"].encode("latin-1")
        if "headers" in fields:
            fields["headers"] = tuple(
                (n.encode("latin-1"), v.encode("latin-1")) for n, v in fields["headers"]
            )
        return kind(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HistoryError(f"not an event: {line[:200]!r} ({error!r})") from error


def dump(history: Iterable[Event], file: TextIO) -> None:
    """Write a history, an event a line (JSONL). More of it may be appended later."""
    file.writelines(dump_event(event) + "\n" for event in history)


def load(file: Iterable[str]) -> Iterator[Event]:
    """Read what `dump` wrote; empty lines are passed over.

    A torn last line, as a killed process leaves it, is passed over too: it was not yet an event.
    Raises `HistoryError` for any other line that is not an event.
    """
    last = ""
    for line in file:
        if last.strip():
            yield load_event(last)
        last = line
    if not last.strip():
        return
    try:
        event = load_event(last)
    except HistoryError:
        if last.endswith("\n"):
            raise
        return
    yield event
