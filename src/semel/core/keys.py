"""Idempotency keys: read from the header, checked, hashed, and derived from.

Source: draft-ietf-httpapi-idempotency-key-header-06 section 2.1 (the value is an RFC 9651
String), and practice (Stripe, Adyen and nearly every client send a bare token). Both forms name
the same key. Every function here takes time linear in its input.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence

HEADER = "Idempotency-Key"
MAX_KEY_LENGTH = 255
"""Longest key, in characters (Stripe's documented limit)."""

_MAX_FIELD_LENGTH = 4096  # 255 escaped characters, quotes, parameters and a few joined repeats
_VISIBLE = bytes(range(0x21, 0x7F))
_STRING = re.compile(rb'"((?:[ !#-\[\]-~]|\\["\\])*+)"')
_BARE = re.compile(rb"[!-+\--~]++")
_PLAIN = re.compile(rb'("?)([!#-+\--\[\]-~]{1,%d}+)\1' % MAX_KEY_LENGTH)
_ESCAPED = re.compile(rb"\\(.)")
PARAMETER = re.compile(
    rb";[ ]*+[a-z*][a-z0-9_\-.*]*+"
    rb"(?:=(?:-?[0-9]{1,12}\.[0-9]{1,3}|@?-?[0-9]{1,15}|\?[01]|:[A-Za-z0-9+/=]*+:"
    rb'|"(?:[ !#-\[\]-~]|\\["\\])*+"|%"(?:[ !#$&-~]|%[0-9a-f]{2})*+"'
    rb"|[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*+))?+"
)
_SEPARATOR = re.compile(rb"[ \t]*+,[ \t]*+")


class InvalidKey(ValueError):
    """The header's value is not a usable key; the message says why and what to send instead."""


def parse_key(fields: Sequence[bytes]) -> str | None:
    """Return the one key that these header fields name, or None if there is no field at all.

    `fields` are the raw values of every `Idempotency-Key` line of the request. A value is a
    quoted RFC 9651 String (parameters are checked and ignored) or a bare token of visible ASCII
    without commas; `"k"` and `k` are the same key. A server or proxy may have joined repeated
    lines with commas, so a list is accepted while all its members are the same key.

    Raises `InvalidKey` for an empty value, a character outside visible ASCII, more than
    `MAX_KEY_LENGTH` characters, or two different keys.
    """
    if not fields:
        return None
    value = fields[0] if len(fields) == 1 else b",".join(fields)
    plain = _PLAIN.fullmatch(value)
    if plain is not None:  # the forms that nearly every client sends
        return plain.group(2).decode("ascii")
    if len(value) > _MAX_FIELD_LENGTH:
        raise InvalidKey(_TOO_LONG)
    keys = _members(value.strip(b" \t"))
    if any(key != keys[0] for key in keys):
        raise InvalidKey(
            "the request names two different keys; send one Idempotency-Key header"
            " (a key that contains a comma has to be quoted)"
        )
    return _checked(keys[0])


_TOO_LONG = f"the key is longer than {MAX_KEY_LENGTH} characters; send a shorter one"


def _members(value: bytes) -> list[bytes]:
    keys: list[bytes] = []
    position = 0
    while True:
        quoted = value[position : position + 1] == b'"'
        match = (_STRING if quoted else _BARE).match(value, position)
        if match is None:
            if position == len(value) and not keys:
                raise InvalidKey("the key is empty; send 1 to 255 visible ASCII characters")
            raise InvalidKey(
                "the key is malformed; send 1 to 255 visible ASCII characters,"
                " bare or as a quoted string"
            )
        position = match.end()
        if quoted:
            keys.append(_ESCAPED.sub(rb"\1", match.group(1)))
            while parameter := PARAMETER.match(value, position):
                position = parameter.end()
        else:
            keys.append(match.group())
        if position == len(value):
            return keys
        separator = _SEPARATOR.match(value, position)
        if separator is None:
            raise InvalidKey(
                "the key is malformed: something follows it; send 1 to 255 visible ASCII"
                " characters without spaces, bare or as one quoted string"
            )
        position = separator.end()


def _checked(key: bytes) -> str:
    if not key:
        raise InvalidKey("the key is empty; send 1 to 255 visible ASCII characters")
    if len(key) > MAX_KEY_LENGTH:
        raise InvalidKey(_TOO_LONG)
    if key.translate(None, _VISIBLE):
        raise InvalidKey("the key contains a space; send visible ASCII characters only")
    return key.decode("ascii")


def hash_key(scope: str, key: str) -> bytes:
    """Return the 16 bytes under which a record is stored: a hash of whose key it is and the key.

    The scope is part of the hash, so a record of one caller cannot even be looked up by another
    (invariant S6), and the key itself is never stored.
    """
    owner = scope.encode()
    return hashlib.blake2b(
        len(owner).to_bytes(4, "big") + owner + key.encode(), digest_size=16, person=b"semel key v1"
    ).digest()


def derive(key_hash: bytes, name: str) -> str:
    """Return the key to send to somebody else's system for the step called `name`.

    A pure function of the record and the name, never of the attempt (invariant S10), so a retry
    hands the far side the same key. 40 hexadecimal digits.
    """
    return hmac.new(key_hash, name.encode(), hashlib.sha256).hexdigest()[:40]


def reference(key_hash: bytes) -> str:
    """Return the short public name of a record, for problem answers, logs and support tickets."""
    return key_hash[:6].hex()
