"""Events of a history: the observable acts of clients, stores, handlers and far sides.

**The order of the list is the order of time.** `ClaimGranted`, `Wrote`, `Stored`, `Purged` and an
`Effect` in the database are written down where the store carries them out, so that their order is
the store's own; in one step of the store `ClaimGranted` or `Wrote` comes before the `Stored` it
leads to. `Sent` comes before the request leaves, `ResponseSeen` after the response has arrived, and
after the effects of its attempt: work in the background is an attempt of its own. A harness that
cannot see inside the store (real processes under kill -9) leaves the store's events out, and the
checker then says which invariants it could not judge.

The invariants are those of `lab.judge.invariants.catalogue`; times are seconds by the store's
clock.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

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

Action = Literal["complete", "release", "renew", "park", "step", "begin-step", "forget-step"]
"""Of steps: `begin-step` marks one as begun, `step` writes its result, `forget-step` takes the mark
back. A write that changes nothing, because the result is there already, is no event."""
STEP_ACTIONS = frozenset({"step", "begin-step", "forget-step"})
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


class ResponseSeen(NamedTuple):
    """The client got an answer, or gave up waiting for one (`status` 0)."""

    time: float
    attempt: str
    kind: Kind
    status: int
    body: bytes
    headers: Headers = ()
    replayed: bool = False


class ClaimGranted(NamedTuple):
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


class StepBegun(NamedTuple):
    """A handler came to a step; what is recorded of it is read next."""

    time: float
    attempt: str
    scope: str
    key: str
    step: str


class Foreign(NamedTuple):
    """A step called somebody else's system, under the key derived for it."""

    time: float
    attempt: str
    scope: str
    key: str
    step: str
    derived_key: str


class StepSkipped(NamedTuple):
    """A step was not called, because its result is recorded: the handler went on with that."""

    time: float
    attempt: str
    scope: str
    key: str
    step: str
    result_digest: str | None = None
    """As the `response_digest` of the `Wrote` that recorded it."""


class StepsForgotten(NamedTuple):
    """Steps of a key without a record went for their age: whoever comes now begins anew.

    A transaction that holds the key is no record, so it may have begun already.
    """

    time: float
    scope: str
    key: str


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
    | ResponseSeen
    | ClaimGranted
    | Wrote
    | Stored
    | Purged
    | Effect
    | StepBegun
    | Foreign
    | StepSkipped
    | StepsForgotten
    | Settled
    | Restarted
    | Paused
    | Surveyed
    | FinalRecord
    | Note
    | Promise
)
History = list[Event]
