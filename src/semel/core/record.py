"""The stored record of an operation, its states, and the binary form of its response."""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

__all__ = [
    "ABSENT",
    "COLUMNS",
    "COLUMN_TYPES",
    "TRANSITIONS",
    "Record",
    "Response",
    "State",
    "UnreadableRecord",
]


class State(enum.IntEnum):
    """The state of a record. The numbers are stored; they never change their meaning."""

    IN_FLIGHT = 1
    """Claimed: a handler may be running. Held by a lease."""
    COMPLETED = 2
    """The response is known and never changes again."""
    PARKED = 3
    """The outcome is unknown and waits for a person or a policy."""
    EXPIRED = 4
    """A tombstone: the response is gone, the key is still refused."""


ABSENT: Final = None

TRANSITIONS: Final[dict[State | None, dict[str, State | None]]] = {
    ABSENT: {"claim": State.IN_FLIGHT},
    State.IN_FLIGHT: {
        "take over": State.IN_FLIGHT,  # under a higher token, once the lease has ended
        "renew": State.IN_FLIGHT,
        "complete": State.COMPLETED,
        "park": State.PARKED,
        "release": ABSENT,
    },
    State.COMPLETED: {"expire": State.EXPIRED, "purge": ABSENT, "take over": State.IN_FLIGHT},
    State.EXPIRED: {"purge": ABSENT, "take over": State.IN_FLIGHT},
    State.PARKED: {"settle": State.COMPLETED, "release": ABSENT},
}
"""Every change of state there is. A completed record is taken over only after its expiry and only
by a route with `after_expiry="run"`. The picture of the states in the documentation is drawn from
this table, and `lab/sim/exhaustive.py` holds each change that it explores against it."""


class Response(NamedTuple):
    """A response as it is stored: status, headers without those of one connection, body.

    `body` is None where the operation completed but its response was not kept (too large, or a
    stream that broke): a repeat is told so and nothing runs a second time.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes | None


class Record(NamedTuple):
    """A stored record. Times are seconds since the epoch by the store's own clock."""

    key: bytes
    """16 bytes: `keys.hash_key(scope, key)`."""
    state: State
    token: int
    """Fencing token: grows with each claim of the key; every write names it."""
    owner: bytes
    """A unique name of the attempt that claimed, by which it knows its own claim again."""
    attempt: int
    """1 for the first claim of the key, one more for every takeover."""
    fingerprint: bytes
    lease_until: float
    expires_at: float
    """When the response goes; of a tombstone, when that goes."""
    purge_at: float
    response: Response | None
    reason: str | None
    """Why a parked record is parked."""

    @classmethod
    def claimed(
        cls,
        key: bytes,
        token: int,
        owner: bytes,
        fingerprint: bytes,
        lease_until: float,
        attempt: int = 1,
    ) -> Record:
        """Return the record of a claim just won."""
        return cls(
            key,
            State.IN_FLIGHT,
            token,
            owner,
            attempt,
            fingerprint,
            lease_until,
            0.0,
            0.0,
            None,
            None,
        )

    def completed(self, response: Response, expires_at: float, purge_at: float) -> Record:
        """Return this record with its response."""
        return Record(
            self.key,
            State.COMPLETED,
            self.token,
            self.owner,
            self.attempt,
            self.fingerprint,
            self.lease_until,
            expires_at,
            purge_at,
            response,
            None,
        )


COLUMN_TYPES: Final[dict[str, type]] = {
    "key": bytes,
    "state": int,
    "token": int,
    "owner": bytes,
    "attempt": int,
    "fingerprint": bytes,
    "lease_until": float,
    "due_at": float,
    "purge_at": float,
    "answer": bytes,
    "reason": str,
}
"""The columns of a stored record and what they hold, in the order of `Record`'s fields.

A new one needs, besides this module, a migration of each set of tables: SQLite's, the portable
ones, and PostgreSQL's (the table, the type `semel_found`, and the functions that return it).
"""
COLUMNS: Final = tuple(COLUMN_TYPES)
"""Their names: what a store selects for `read_row`."""


class UnreadableRecord(Exception):
    """A stored record was written by a newer version, or is damaged; nothing may run on a guess."""


_HEAD = struct.Struct(">BBHH")  # version, kept, status, number of headers
_FIELD = struct.Struct(">HI")  # length of a name, of a value
_VERSION = 1
"""The form that is written."""
_READS = frozenset({1})
"""The forms that are read. A form is read one release before it is written, and ever after, so that
servers of two releases can share a store while they are replaced one by one."""
_STATES = {int(state): state for state in State}


def encode_response(response: Response) -> bytes:
    """Return the compact binary form of a response: a version, lengths, and bytes as they were."""
    parts = [
        _HEAD.pack(_VERSION, response.body is not None, response.status, len(response.headers))
    ]
    for name, value in response.headers:
        parts += (_FIELD.pack(len(name), len(value)), name, value)
    if response.body is not None:
        parts.append(response.body)
    return b"".join(parts)


def decode_response(data: bytes) -> Response:
    """Return the response that `encode_response` wrote.

    Raises `UnreadableRecord` where the version is newer than this one or lengths do not add up.
    """
    try:
        version, kept, status, count = _HEAD.unpack_from(data)
        if version not in _READS:
            raise UnreadableRecord(
                f"the response was stored in form {version}; this version of Semel reads"
                f" {sorted(_READS)}"
            )
        position = _HEAD.size
        headers = []
        for _ in range(count):
            name, value = _FIELD.unpack_from(data, position)
            position += _FIELD.size
            end = position + name + value
            if end > len(data):
                raise UnreadableRecord("a stored response is cut short")
            headers.append((data[position : position + name], data[position + name : end]))
            position = end
    except struct.error as error:
        raise UnreadableRecord(f"a stored response is damaged: {error}") from error
    return Response(status, tuple(headers), data[position:] if kept else None)


def read_row(row: Sequence[Any]) -> Record:
    """Return the record that a row of `COLUMNS` holds, whichever store has read it.

    Raises `UnreadableRecord` where its state or its response cannot be read.
    """
    key, state, token, owner, attempt, fingerprint, lease, due, purge, answer, reason = row
    try:
        known = _STATES[state]
    except KeyError:
        raise UnreadableRecord(f"this version of Semel knows no state {state!r}") from None
    return Record(
        key if type(key) is bytes else bytes(key),
        known,
        token,
        owner if type(owner) is bytes else bytes(owner),
        attempt,
        fingerprint if type(fingerprint) is bytes else bytes(fingerprint),
        lease,
        due or 0.0,
        purge or 0.0,
        decode_response(bytes(answer)) if answer is not None else None,
        reason,
    )
