"""Fingerprints: versioned hashes by which two requests are the same.

Method, path, query, content type, content encoding and the body, each length-prefixed. The body
counts as the raw bytes sent, except that a multipart body counts without its boundary, which
browsers and clients generate anew for every attempt.

The first byte of a fingerprint names the algorithm, so that a record written by an older version
is compared by the algorithm it was written with.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Final, Protocol

RAW: Final = 1
JSON: Final = 2
KEY: Final = 4
CALL: Final = 5
"""Of a call's arguments (`semel.functions`). 3 was an earlier one."""

MAX_JSON_BODY = 1024 * 1024
"""Largest body, in bytes, that the JSON algorithm reads; a larger one counts as raw bytes."""

BOUNDARY: Final = re.compile(
    rb';[ \t]*boundary=(?:"([^"]{1,200})"|([^\s;"]{1,200}))', re.IGNORECASE
)


class Hasher(Protocol):
    """Takes a request's body in pieces and gives its fingerprint."""

    def update(self, chunk: bytes) -> None:
        """Add the next piece of the body."""

    def digest(self) -> bytes:
        """Return the fingerprint: one byte for the algorithm, then 32 bytes."""


def hasher(
    algorithm: int,
    method: str,
    path: bytes,
    query: bytes,
    content_type: bytes = b"",
    content_encoding: bytes = b"",
) -> Hasher:
    """Return a hasher for one request.

    `algorithm` is `RAW`, `JSON` (RFC 8785: a body that was serialised anew, with other spacing or
    key order, is the same request), or `KEY` (method and path only: whatever else is said, the same
    key is the same request). Raises `ValueError` for any other.
    """
    if algorithm not in (RAW, JSON, KEY):
        raise ValueError(f"unknown fingerprint algorithm {algorithm}")
    if algorithm == KEY:
        query = content_type = content_encoding = b""
    boundary = None
    if content_type[:10].lower() == b"multipart/" and not content_encoding:
        found = BOUNDARY.search(content_type)
        if found is not None:
            boundary = found.group(1) or found.group(2)
            content_type = content_type[: found.start()] + content_type[found.end() :]
    head = hashlib.sha256(
        b"%d:%d:%s%d:%s%d:%s%d:%s%d:%s"
        % (
            algorithm,
            len(method),
            method.encode(),
            len(path),
            path,
            len(query),
            query,
            len(content_type),
            content_type,
            len(content_encoding),
            content_encoding,
        )
    )
    prefix = bytes((algorithm,))
    if algorithm == KEY:
        return _Nothing(head, prefix)
    if boundary is not None:
        return _Multipart(head, prefix, b"--" + boundary)
    if algorithm == JSON and not content_encoding:
        return _Json(head, prefix)
    return _Raw(head, prefix)


class _Raw:
    __slots__ = ("_hash", "_prefix", "update")

    def __init__(self, head: hashlib._Hash, prefix: bytes) -> None:
        self._hash = head
        self._prefix = prefix
        self.update = head.update

    def digest(self) -> bytes:
        return self._prefix + self._hash.digest()


class _Nothing:
    """Takes no notice of the body."""

    __slots__ = ("_hash", "_prefix")

    def __init__(self, head: hashlib._Hash, prefix: bytes) -> None:
        self._hash = head
        self._prefix = prefix

    def update(self, chunk: bytes) -> None:
        return

    def digest(self) -> bytes:
        return self._prefix + self._hash.digest()


class _Multipart:
    """Hashes the stretches between delimiters, each on its own, so that none can pose as two."""

    __slots__ = ("_delimiter", "_hash", "_prefix", "_stretch", "_tail")

    def __init__(self, head: hashlib._Hash, prefix: bytes, delimiter: bytes) -> None:
        self._hash = head
        self._prefix = prefix
        self._delimiter = delimiter
        self._stretch = hashlib.sha256()
        self._tail = b""

    def update(self, chunk: bytes) -> None:
        *whole, rest = (self._tail + chunk).split(self._delimiter)
        for stretch in whole:
            self._stretch.update(stretch)
            self._hash.update(self._stretch.digest())
            self._stretch = hashlib.sha256()
        keep = min(len(rest), len(self._delimiter) - 1)  # a delimiter may be cut by the chunk's end
        self._stretch.update(rest[: len(rest) - keep])
        self._tail = rest[len(rest) - keep :]

    def digest(self) -> bytes:
        self._stretch.update(self._tail)
        self._hash.update(self._stretch.digest())
        return self._prefix + self._hash.digest()


class _Json:
    __slots__ = ("_body", "_hash", "_length", "_prefix")

    def __init__(self, head: hashlib._Hash, prefix: bytes) -> None:
        self._hash = head
        self._prefix = prefix
        self._body: list[bytes] | None = []
        self._length = 0

    def update(self, chunk: bytes) -> None:
        if self._body is None:
            self._hash.update(chunk)
            return
        self._body.append(chunk)
        self._length += len(chunk)
        if self._length > MAX_JSON_BODY:
            self._hash.update(b"raw:")
            for piece in self._body:
                self._hash.update(piece)
            self._body = None

    def digest(self) -> bytes:
        if self._body is not None:
            body = b"".join(self._body)
            canonical = canonical_json(body)
            self._hash.update(b"raw:" + body if canonical is None else b"jcs:" + canonical)
        return self._prefix + self._hash.digest()


def canonical_json(body: bytes) -> bytes | None:
    """Return the RFC 8785 form of a JSON text, or None where it has none.

    None stands for: not JSON, a repeated name, a number that a double cannot hold exactly or at
    all, or nesting too deep. Such a body is compared byte by byte: to call two different numbers
    the same request would be a silent lie.
    """
    try:
        return _canonical(
            json.loads(
                body,
                object_pairs_hook=_unique,
                parse_int=_number,
                parse_float=_number,
                parse_constant=_number,
            )
        ).encode()
    except (ValueError, RecursionError):
        return None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("repeated name")
    return names


_DIGITS = re.compile(r"-?0*(\d*)(?:\.(\d*))?(?:[eE]([+-]?\d+))?")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("not a number of RFC 8785")
    if len(text) > 15 and _decimal(text) != _decimal(repr(value)):
        raise ValueError("a double cannot hold it")
    return value


def _decimal(text: str) -> tuple[str, int]:
    match = _DIGITS.fullmatch(text)
    if match is None:
        raise ValueError("not a decimal number")
    whole, fraction, exponent = match.group(1), match.group(2) or "", int(match.group(3) or 0)
    digits = (whole + fraction).lstrip("0")
    stripped = digits.rstrip("0")
    return stripped, exponent - len(fraction) + len(digits) - len(stripped) if stripped else 0


def _canonical(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case float():
            return _ecmascript(value)
        case str():
            return json.dumps(value, ensure_ascii=False)
        case list():
            return "[" + ",".join(map(_canonical, value)) + "]"
        case dict():
            names = sorted(value, key=lambda name: name.encode("utf-16-be"))
            return "{" + ",".join(f"{_canonical(n)}:{_canonical(value[n])}" for n in names) + "}"
    raise ValueError("not JSON")


def _ecmascript(value: float) -> str:
    """Write a double as ECMAScript does (RFC 8785 section 3.2.2.3)."""
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    digits, exponent = _decimal(repr(abs(value)))
    point = len(digits) + exponent
    if len(digits) <= point <= 21:
        return sign + digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return sign + digits[:point] + "." + digits[point:]
    if -6 < point <= 0:
        return sign + "0." + "0" * -point + digits
    mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
    return f"{sign}{mantissa}e{'+' if point > 0 else '-'}{abs(point - 1)}"
