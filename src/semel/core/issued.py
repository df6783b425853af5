"""Keys that the server issues: signed, bound to a caller, with a date after which they are refused.

Checked without storage. A record under an issued key is kept until the key's not-after and a while
longer, and the key is refused after it, so such a key gives at most once for ever, in bounded
storage (invariants S9 and S13). The signature is HMAC-SHA-256 (RFC 2104) over the key's own fields
and what it is bound to.

A key is 36 bytes: version, number of the signing key, what it is bound to, not-after (seconds since
the epoch, 5 bytes), 12 random bytes, and 16 bytes of the signature.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

NONCE_LENGTH: Final = 12
SHORTEST_SECRET: Final = 32
"""Bytes of a signing key: as many as the hash gives (RFC 2104 section 3)."""

_VERSION: Final = 1
_HEAD = struct.Struct(">BBB5s")
_SIGNATURE: Final = 16
_SIZE: Final = _HEAD.size + NONCE_LENGTH + _SIGNATURE
_TO_CALLER, _TO_PATH, _TO_METHOD_AND_PATH = 0, 1, 2
_NOBODYS_SECRET: Final = bytes(SHORTEST_SECRET)


class KeyFormat(NamedTuple):
    """How issued keys are written: a prefix by which they are told apart, and an alphabet."""

    prefix: str = "ik."
    readable: bool = False
    """Base58 (no 0, O, I, l), for keys that people read out; else base64url, which is faster."""


DEFAULT: Final = KeyFormat()


def seal(
    secret: bytes,
    number: int,
    *,
    scope: str,
    not_after: int,
    nonce: bytes,
    route: str = "",
    form: KeyFormat = DEFAULT,
) -> str:
    """Return a key for the caller named `scope`, valid until `not_after`.

    `number` names the secret (0 to 255). `route` binds the key to a path (`/charges`), or to a
    method and path (`POST /charges`); empty: to the caller only.
    """
    bound = _TO_CALLER if not route else _TO_METHOD_AND_PATH if " " in route else _TO_PATH
    signed = _HEAD.pack(_VERSION, number, bound, not_after.to_bytes(5, "big")) + nonce
    return _write(signed + _sign(secret, signed, scope, route), form)


class Sealed(NamedTuple):
    """What an issued key says."""

    genuine: bool
    """Whether it was issued by us, to this caller, for this route. Nothing else counts if not."""
    not_after: int


def unseal(
    text: str,
    secrets: Mapping[int, bytes],
    *,
    scope: str,
    method: str,
    path: str,
    form: KeyFormat = DEFAULT,
) -> Sealed:
    """Check a key that somebody sent.

    Takes the same steps whatever is wrong with it, and compares in constant time. There is one way
    to write each key: a key that was written otherwise would be another key with the same rights.
    """
    raw = _read(text, form)
    sound = raw is not None
    data = raw if raw is not None else bytes(_SIZE)
    signed, signature = data[:-_SIGNATURE], data[-_SIGNATURE:]
    version, number, bound, until = _HEAD.unpack_from(signed)
    secret = secrets.get(number)
    known = secret is not None and version == _VERSION and bound <= _TO_METHOD_AND_PATH
    route = {_TO_PATH: path, _TO_METHOD_AND_PATH: f"{method} {path}"}.get(bound, "")
    wanted = _sign(secret if secret is not None else _NOBODYS_SECRET, signed, scope, route)
    genuine = hmac.compare_digest(wanted, signature) and sound and known
    return Sealed(genuine, int.from_bytes(until, "big"))


def is_issued(text: str, form: KeyFormat) -> bool:
    """Say whether a key claims to be an issued one."""
    return text.startswith(form.prefix)


def _sign(secret: bytes, signed: bytes, scope: str, route: str) -> bytes:
    parts = [signed]
    for text in (scope, route):
        encoded = text.encode("utf-8", "surrogateescape")
        parts += (len(encoded).to_bytes(4, "big"), encoded)
    message = b"semel issued key" + b"".join(parts)
    return hmac.new(secret, message, hashlib.sha256).digest()[:_SIGNATURE]


def _write(data: bytes, form: KeyFormat) -> str:
    if not form.readable:
        return form.prefix + base64.urlsafe_b64encode(data).decode("ascii")
    number, digits = int.from_bytes(data, "big"), []
    for _ in range(_BASE58_LENGTH):
        number, digit = divmod(number, 58)
        digits.append(_BASE58[digit])
    return form.prefix + "".join(reversed(digits))


def _read(text: str, form: KeyFormat) -> bytes | None:
    """Return the bytes of a key, or None where it is not what `_write` writes."""
    body = text[len(form.prefix) :]
    try:
        if form.readable:
            number = 0
            for character in body[:_BASE58_LENGTH]:
                number = number * 58 + _BASE58.index(character)
            data = number.to_bytes(_SIZE, "big")
        else:
            data = base64.urlsafe_b64decode(body)
    except (ValueError, OverflowError):
        return None
    return data if len(data) == _SIZE and _write(data, form) == text else None


_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58_LENGTH: Final = 50  # 58 ** 50 > 256 ** 36
