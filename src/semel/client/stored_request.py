"""A request as the journal stores it: all that it takes to send it again, and its binary form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Final, NamedTuple

from semel.core.remembered import CREDENTIALS

_OF_ONE_CONNECTION: Final = frozenset(
    {"connection", "content-length", "host", "keep-alive", "te", "transfer-encoding", "upgrade"}
)
_CREDENTIALS: Final = frozenset(name.decode() for name in CREDENTIALS)


class StoredRequest(NamedTuple):
    """A request under its key."""

    key: str
    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    at: float
    """When it was begun, in seconds since the epoch."""

    def fingerprint(self) -> bytes:
        """Return a hash of what is asked: another one under the same key is another operation.

        Without the address, of which two clients may write the same in two ways.
        """
        asked = self.method.encode() + b" " + self.body
        return hashlib.blake2b(asked, digest_size=16).digest()


def worth_keeping(
    headers: Iterable[tuple[str, str]], *, credentials: bool
) -> tuple[tuple[str, str], ...]:
    """Return the headers without those of one connection and, unless asked for, credentials."""
    return tuple(
        (name, value)
        for name, value in headers
        if name.lower() not in _OF_ONE_CONNECTION
        and (credentials or name.lower() not in _CREDENTIALS)
    )


def encode(request: StoredRequest) -> bytes:
    """Return the binary form: the length of a JSON head, the head, the body as it is."""
    head = json.dumps([request.key, request.method, request.url, request.headers, request.at])
    data = head.encode()
    return len(data).to_bytes(4, "big") + data + request.body


def decode(data: bytes) -> StoredRequest:
    """Return what `encode` wrote. Raises `ValueError` for anything else."""
    end = 4 + int.from_bytes(data[:4], "big")
    if end > len(data):
        raise ValueError("a journaled request is cut short")
    try:
        key, method, url, headers, at = json.loads(data[4:end])
        pairs = tuple((str(name), str(value)) for name, value in headers)
        return StoredRequest(str(key), str(method), str(url), pairs, data[end:], float(at))
    except TypeError as error:
        raise ValueError(f"a journaled request is damaged: {error}") from error
