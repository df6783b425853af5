"""A request as it is remembered with its claim, so that Semel can finish it alone."""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from semel.core.record import UnreadableRecord

LARGEST: Final = 1024 * 1024
"""Bytes of a body up to which a request is remembered."""
CREDENTIALS: Final = frozenset(
    {b"authorization", b"proxy-authorization", b"cookie", b"x-api-key", b"x-auth-token"}
)
"""Headers that are remembered only with `remember_credentials`."""

_VERSION = 1


class RememberedRequest(NamedTuple):
    """A request with all that it takes to run it again."""

    method: str
    path: str
    raw_path: bytes
    root_path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    scope: str
    """The scope of the key: the caller who sent it."""
    version: str
    """The handler's version, as its policy named it."""
    body: bytes


def encode_request(request: RememberedRequest, *, credentials: bool) -> bytes:
    """Return the binary form; without the caller's credentials unless they are asked for."""
    headers = [
        [name.decode("latin-1"), value.decode("latin-1")]
        for name, value in request.headers
        if credentials or name.lower() not in CREDENTIALS
    ]
    head = json.dumps(
        {
            "method": request.method,
            "path": request.path,
            "raw_path": request.raw_path.decode("latin-1"),
            "root_path": request.root_path,
            "query": request.query.decode("latin-1"),
            "headers": headers,
            "scope": request.scope,
            "version": request.version,
        }
    ).encode()
    return bytes([_VERSION]) + len(head).to_bytes(4, "big") + head + request.body


def decode_request(data: bytes) -> RememberedRequest:
    """Return what `encode_request` wrote.

    Raises `UnreadableRecord` where a newer version has written it, or it is damaged.
    """
    if data[:1] != bytes([_VERSION]):
        raise UnreadableRecord(f"the request was remembered in form {data[:1].hex()}")
    end = 5 + int.from_bytes(data[1:5], "big")
    try:
        head = json.loads(data[5:end])
        headers = tuple((n.encode("latin-1"), v.encode("latin-1")) for n, v in head["headers"])
        return RememberedRequest(
            head["method"],
            head["path"],
            head["raw_path"].encode("latin-1"),
            head["root_path"],
            head["query"].encode("latin-1"),
            headers,
            head["scope"],
            head["version"],
            data[end:],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableRecord(f"a remembered request is damaged: {error!r}") from error
