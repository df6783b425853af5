"""Digests of what is sent: `Content-Digest` and `Repr-Digest` (RFC 9530), and tus' checksum.

A digest field is a structured dictionary (RFC 9651) of byte sequences, `sha-256=:…:`. Pure; every
function takes time linear in its input.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from semel.core.keys import PARAMETER

if TYPE_CHECKING:
    from hashlib import _Hash

_KEY = re.compile(rb"[a-z*][a-z0-9_\-.*]*+")
_BYTES = re.compile(rb"=:([A-Za-z0-9+/=]*+):")
_SEPARATOR = re.compile(rb"[ \t]*+,[ \t]*+")
_MAX_FIELD_LENGTH = 4096

DIGESTS = {"sha-256": "sha256", "sha-512": "sha512"}
"""The algorithms of RFC 9530 that are not deprecated, and hashlib's names for them."""
CHECKSUMS = ("sha1", "sha256", "sha512")
"""The algorithms of `Upload-Checksum`: `sha1` has to be there (tus 1.0), the others are sound."""


class InvalidDigest(ValueError):
    """The field cannot be used; the message says why and what to send instead."""


class Check(NamedTuple):
    """A promise about bytes: which field made it, hashlib's algorithm, and the digest."""

    field: str
    algorithm: str
    digest: bytes


def digest_checks(field: str, value: bytes) -> tuple[Check, ...]:
    """Return what a digest field promises, by the algorithms that are known here.

    `value` is the field's lines joined with commas. Unknown algorithms are passed over as long as
    there is a known one: a client that asks for a check is never left to believe in one that was
    not made. Raises `InvalidDigest`.
    """
    checks = []
    for name, digest in parse_digests(field, value).items():
        algorithm = DIGESTS.get(name)
        if algorithm is not None:
            checks.append(_checked(Check(field, algorithm, digest)))
    if not checks:
        raise InvalidDigest(f"{field} names no known algorithm; send sha-256 or sha-512")
    return tuple(checks)


def parse_digests(field: str, value: bytes) -> dict[str, bytes]:
    """Return the members of a digest field, known algorithm or not. Raises `InvalidDigest`."""
    malformed = InvalidDigest(f"{field} is malformed; send for example sha-256=:<base64>:")
    if len(value) > _MAX_FIELD_LENGTH:
        raise malformed
    value = value.lstrip(b" ").rstrip(b" \t")  # RFC 9651 sections 4.2 and 4.2.2
    found: dict[str, bytes] = {}
    position = 0
    while position < len(value) or not found:
        key = _KEY.match(value, position)
        member = _BYTES.match(value, key.end()) if key else None
        if key is None or member is None:
            raise malformed
        try:
            found[key.group().decode()] = _base64(member.group(1))
        except binascii.Error:
            raise malformed from None
        position = member.end()
        while parameter := PARAMETER.match(value, position):
            position = parameter.end()
        if position == len(value):
            break
        separator = _SEPARATOR.match(value, position)
        if separator is None or separator.end() == len(value):
            raise malformed
        position = separator.end()
    return found


def checksum_check(value: str) -> Check:
    """Return what tus' `Upload-Checksum` promises. Raises `InvalidDigest`."""
    algorithm, _, encoded = value.partition(" ")
    if algorithm not in CHECKSUMS:
        raise InvalidDigest(f"Upload-Checksum has to be of {', '.join(CHECKSUMS)}")
    try:
        return _checked(Check("Upload-Checksum", algorithm, _base64(encoded.encode("latin-1"))))
    except binascii.Error:
        raise InvalidDigest("Upload-Checksum is not base64; send <algorithm> <base64>") from None


def _checked(check: Check) -> Check:
    size = hashlib.new(check.algorithm).digest_size
    if len(check.digest) != size:
        raise InvalidDigest(f"{check.field}: a digest by {check.algorithm} has {size} bytes")
    return check


def _base64(encoded: bytes) -> bytes:
    """Decode; padding may be missing (RFC 9651 section 4.2.7), nothing else may be wrong."""
    bare = encoded.rstrip(b"=")
    if len(encoded) - len(bare) > 2 or (not bare and encoded):
        raise binascii.Error("padding")
    return base64.b64decode(bare + b"=" * (-len(bare) % 4), validate=True)


class Hashes:
    """Running hashes of bytes as they arrive: SHA-256, where asked for, and what checks need."""

    __slots__ = ("_checks", "_running")

    def __init__(self, checks: Sequence[Check], *also: str) -> None:
        self._checks = checks
        names = dict.fromkeys([*also, *(check.algorithm for check in checks)])
        self._running: dict[str, _Hash] = {
            name: hashlib.new(name, usedforsecurity=False) for name in names
        }

    def update(self, chunks: Iterable[bytes]) -> None:
        """Take the next bytes."""
        for running in self._running.values():
            for chunk in chunks:
                running.update(chunk)

    def broken(self) -> str | None:
        """Return the field whose promise the bytes do not keep, or None."""
        for check in self._checks:
            if not hmac.compare_digest(self._running[check.algorithm].digest(), check.digest):
                return check.field
        return None

    def sha256(self) -> str:
        """Return the SHA-256 in hexadecimal, the name of an object."""
        return self._running["sha256"].hexdigest()


def repr_digest(sha256: str) -> bytes:
    """Return the value of `Repr-Digest` for an object."""
    return b"sha-256=:%s:" % base64.b64encode(bytes.fromhex(sha256))
