"""Commands that the engine yields, and the replies that a driver sends back to it.

Commands of a store are handed to the store as they are. Durations are seconds; a store adds them to
its own clock, the only one that leases and expiries go by.
"""

from __future__ import annotations

from typing import NamedTuple

from semel.core.record import Record, Response

__all__ = [
    "Abandoned",
    "Claim",
    "Claimed",
    "Complete",
    "ForgetStep",
    "Found",
    "Lookup",
    "Open",
    "Park",
    "RecordStep",
    "Recorded",
    "Release",
    "Remembered",
    "Renew",
    "Reply",
    "Settle",
    "Steps",
    "StoreCommand",
    "StoreError",
    "StoreUnavailable",
    "StoreUnknown",
    "Sweep",
    "Takeover",
    "Undo",
]


class Lookup(NamedTuple):
    """Read the record. Reply: `Found` or None."""

    key: bytes


class Claim(NamedTuple):
    """Win the right to run: insert the record unless there is one. Reply: `Claimed` or `Found`."""

    key: bytes
    fingerprint: bytes
    lease: float
    owner: bytes
    request: bytes | None = None
    """The request itself, remembered until the operation ends, for the completer."""


class Open(NamedTuple):
    """Claim by a transaction that is also the handler's, and holds the key until it ends.

    Reply: `Claimed` (`opened`) where it is open, `Found` where there is a record, None while
    another such transaction holds the key. Nothing of it is seen before its `Complete` commits the
    record; a crash ends it and frees the key at once. Only of stores that say so (`Store.opens`).
    """

    key: bytes
    fingerprint: bytes
    owner: bytes


class Takeover(NamedTuple):
    """Claim a record that is over: lease ended, or expired. Reply: `Claimed`, or `Found`, or None.

    Applies only while the record still holds `token` and is still over by the store's clock, and
    in the way that was seen: `expired` (completed and past its expiry), or else in flight past its
    lease. One that was seen in flight may have completed since, and expired: not to be run again.
    What expired takes its steps with it: the key begins a new life.
    """

    key: bytes
    token: int
    fingerprint: bytes
    lease: float
    owner: bytes
    expired: bool
    request: bytes | None = None


class Complete(NamedTuple):
    """Store the response, if `token` is still the record's and it is in flight.

    Reply: whether it was applied.
    """

    key: bytes
    token: int
    response: Response
    expires: float
    tombstone: float


class Release(NamedTuple):
    """Give the claim back: delete the record, under the same condition.

    Reply: whether it was applied.
    """

    key: bytes
    token: int


class Park(NamedTuple):
    """Mark the outcome unknown, under the same condition. Reply: whether it was applied.

    `lapsed` asks besides that the lease has ended: the caller is not the claim's holder.
    """

    key: bytes
    token: int
    reason: str
    lapsed: bool


class Renew(NamedTuple):
    """Extend leases of claims still held. Reply: the frozenset of tokens that were lost.

    A lease that has already ended is renewed too while nobody has taken the key over: the token
    decides, not the time.
    """

    claims: tuple[tuple[bytes, int], ...]
    lease: float


class Settle(NamedTuple):
    """Record the outcome of a parked operation, if it is parked under `token`.

    Reply: whether it was applied.

    With a response it is completed. Without one nothing happened: the record goes, and the marks
    of steps that were begun and never ended with it, so that a retry runs anew.
    """

    key: bytes
    token: int
    response: Response | None
    expires: float
    tombstone: float


class Sweep(NamedTuple):
    """Turn expired records into tombstones and delete old tombstones. Reply: how many changed.

    At most `limit` records each way; in-flight and parked records are never touched. Steps go when
    their time is over, unless their operation is in flight or parked, and before their record.
    """

    limit: int


class Abandoned(NamedTuple):
    """Read the remembered requests of claims whose lease ended `idle` seconds ago or longer.

    Reply: a tuple of `Remembered`, the longest ended first, `limit` at most.
    """

    limit: int
    idle: float


class Steps(NamedTuple):
    """Read the steps recorded under a key. Reply: a dict of name to result, None if only begun."""

    key: bytes


class RecordStep(NamedTuple):
    """Record that a step was begun (`result` None), or its result; the first result stays.

    Reply: `Recorded` with the result that stands, or None where the claim is another's by now:
    there is a record, and it is not in flight under `token`. `keep` is in seconds.
    """

    key: bytes
    token: int
    name: str
    result: bytes | None
    keep: float


class ForgetStep(NamedTuple):
    """Take the mark of a step back that was begun and certainly not done.

    Reply: whether it was applied.
    """

    key: bytes
    token: int
    name: str


StoreCommand = (
    Lookup
    | Claim
    | Takeover
    | Complete
    | Release
    | Park
    | Renew
    | Settle
    | Sweep
    | Abandoned
    | Steps
    | RecordStep
    | ForgetStep
)


class Claimed(NamedTuple):
    """The claim is ours, under this token."""

    token: int
    attempt: int
    opened: bool = False
    """By `Open`: there is no record yet, and the transaction is the claim."""


class Remembered(NamedTuple):
    """An abandoned operation and its request."""

    key: bytes
    token: int
    attempt: int
    request: bytes


class Recorded(NamedTuple):
    """The recorded result of a step, or None where it was only begun."""

    result: bytes | None


class Found(NamedTuple):
    """There is a record; `now` is the store's clock at the moment it was read."""

    record: Record
    now: float


Reply = (
    Claimed
    | Found
    | bool
    | int
    | frozenset[int]
    | tuple[Remembered, ...]
    | dict[str, bytes | None]
    | Recorded
    | None
)


class Wait(NamedTuple):
    """Wait until the key's operation ends, or for `poll` seconds where that cannot be seen.

    Never longer than `limit`. Reply: the seconds that passed, or None where `most` wait already.
    """

    key: bytes
    poll: float
    limit: float
    most: int


class Sleep(NamedTuple):
    """Let `seconds` pass."""

    seconds: float


class RunHandler(NamedTuple):
    """Run the handler under this claim. Reply: its `Answer`."""

    token: int
    attempt: int


class Undo(NamedTuple):
    """Roll the handler's transaction back. Reply: nothing.

    A claim that is a record stays, and is completed without the transaction. Where the transaction
    was the claim, it has to be opened anew.
    """

    key: bytes
    token: int


class Answer(NamedTuple):
    """The outcome of running the handler."""

    response: Response
    """Where it raised before it responded: a 500 in the adapter's words (`HANDLER_FAILED`)."""
    atomic: bool = False
    """Its writes are in a transaction that has yet to commit with the record."""
    sent: bool = False
    """Part of the response has left already (a stream), so it can no longer be taken back."""
    parked: str | None = None
    """Why nobody can say what it did: park it."""
    released: bool = False
    """Nothing happened, it says: give the claim back, whatever the policy keeps."""
    stepped: bool = False
    """It took steps: rolling its writes back does not undo what they did elsewhere."""
    raised: bool = False
    """The response was made from an exception that left the handler: what it wrote in the
    transaction is undone, and the response is recorded without it."""


class StoreError(Exception):
    """The store could not do what it was asked."""


class StoreUnavailable(StoreError):
    """It was definitely not done: unreachable, full, read-only, locked for too long."""


class StoreUnknown(StoreError):
    """It may or may not have been done: the reply was lost. To be read back, never guessed."""
