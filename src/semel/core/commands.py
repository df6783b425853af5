"""What the engine can ask of the world, and what it is told in return.

The engine yields these; a driver carries them out. Commands of a store are handed to the store as
they are. Durations are seconds; a store adds them to its own clock, the only one that leases and
expiries go by.
"""

from __future__ import annotations

from typing import NamedTuple

from semel.core.record import Record, Response


class Lookup(NamedTuple):
    """Read the record. Told: `Found` or None."""

    key: bytes


class Claim(NamedTuple):
    """Win the right to run: insert the record unless there is one. Told: `Claimed` or `Found`."""

    key: bytes
    fingerprint: bytes
    lease: float
    owner: bytes


class Takeover(NamedTuple):
    """Claim a record that is over: lease ended, or expired. Told: `Claimed`, or `Found`, or None.

    Applies only while the record still holds `token` and is still over by the store's clock, and
    in the way that was seen: `expired` (completed and past its expiry), or else in flight past its
    lease. One that was seen in flight may have completed since, and expired: not to be run again.
    """

    key: bytes
    token: int
    fingerprint: bytes
    lease: float
    owner: bytes
    expired: bool


class Complete(NamedTuple):
    """Store the answer, if `token` is still the record's and it is in flight. Told: applied?"""

    key: bytes
    token: int
    response: Response
    expires: float
    tombstone: float


class Release(NamedTuple):
    """Give the claim back: delete the record, under the same condition. Told: applied?"""

    key: bytes
    token: int


class Park(NamedTuple):
    """Mark the outcome unknown, under the same condition. Told: applied?

    `lapsed` asks besides that the lease has ended: the caller is not the claim's holder.
    """

    key: bytes
    token: int
    reason: str
    lapsed: bool


class Renew(NamedTuple):
    """Extend leases of claims still held. Told: the frozenset of tokens that were lost.

    A lease that has already ended is renewed too while nobody has taken the key over: the token
    decides, not the time.
    """

    claims: tuple[tuple[bytes, int], ...]
    lease: float


class Sweep(NamedTuple):
    """Turn expired records into tombstones and delete old tombstones. Told: how many changed.

    At most `limit` records each way; in-flight and parked records are never touched.
    """

    limit: int


StoreCommand = Lookup | Claim | Takeover | Complete | Release | Park | Renew | Sweep


class Claimed(NamedTuple):
    """The claim is ours, under this token."""

    token: int
    attempt: int


class Found(NamedTuple):
    """There is a record; `now` is the store's clock at the moment it was read."""

    record: Record
    now: float


Reply = Claimed | Found | bool | int | frozenset[int] | None


class Wait(NamedTuple):
    """Wait until the key's operation ends, or for `poll` seconds where that cannot be seen.

    Never longer than `limit`. Told: the seconds that passed, or None where `most` wait already.
    """

    key: bytes
    poll: float
    limit: float
    most: int


class Sleep(NamedTuple):
    """Let `seconds` pass."""

    seconds: float


class RunHandler(NamedTuple):
    """Run the handler under this claim. Told: its `Answer`."""

    token: int
    attempt: int


class Answer(NamedTuple):
    """What came of running the handler."""

    response: Response
    """Where it raised before it answered: a 500 in the adapter's words (`HANDLER_FAILED`)."""
    atomic: bool = False
    """Its writes are in a transaction that has yet to commit with the record."""
    sent: bool = False
    """Part of the answer has left already (a stream), so it can no longer be taken back."""


class StoreError(Exception):
    """The store could not do what it was asked."""


class StoreUnavailable(StoreError):
    """It was definitely not done: unreachable, full, read-only, locked for too long."""


class StoreUnknown(StoreError):
    """It may or may not have been done: the answer was lost. To be read back, never guessed."""
