"""The headers that pass, and their form: RFC 9110 section 7.6, and the forwarding headers."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Final, NamedTuple

from semel.web.http.headers import OF_ONE_CONNECTION, is_valid

HOP_BY_HOP: Final = OF_ONE_CONNECTION | {b"proxy-authenticate", b"proxy-authorization"}
"""Of one connection. Trailers are dropped, so what announces them is too."""

FORWARDED: Final = frozenset(
    {b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip"}
)
KEY: Final = b"idempotency-key"
PSEUDONYM: Final = b"semel"

_TAKEN: Final = (
    HOP_BY_HOP
    | FORWARDED
    | {b"host", b"via", b"expect", b"content-length", KEY, b"x-forwarded-port"}
)
"""What is looked at one by one; the rest passes as it is."""

Fields = list[tuple[bytes, bytes]]


class Rules(NamedTuple):
    """The settings that matter for headers; the same for every request."""

    preserve_host: bool = True
    behind_proxy: bool = False
    caller: bytes = b""
    """The header that names the caller."""


def request(
    headers: Iterable[tuple[bytes, bytes]],
    rules: Rules,
    peer: bytes,
    scheme: bytes,
    version: bytes,
    key: bytes | None,
) -> list[tuple[str, str]]:
    """Return a request's headers as the service gets them.

    `key`: the idempotency key to send, None to send none. Values are UTF-8: the client library
    writes nothing else, and the server in front refuses the rest.
    """
    fields: Fields = []
    taken: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _TAKEN:
            taken[name] = taken[name] + b", " + value if name in taken else value
        elif b"_" in name and name.replace(b"_", b"-") in (rules.caller, *_TAKEN):
            continue  # to a CGI-like service it is the same header, to whoever has checked it not
        else:
            fields.append((name, value))
    if b"connection" in taken:
        named = _options(taken[b"connection"])
        fields = [field for field in fields if field[0] not in named]
        for name in named & (FORWARDED | {b"via"}):
            taken.pop(name, None)
    host = taken.get(b"host")
    if host is not None and rules.preserve_host:
        fields.append((b"host", host))
    if b"content-length" in taken:
        fields.append((b"content-length", taken[b"content-length"]))
    if key is not None:
        fields.append((KEY, key))
    via = b"%b %b" % (version, PSEUDONYM)
    fields.append((b"via", b"%b, %b" % (taken[b"via"], via) if b"via" in taken else via))
    fields += _forwarded(taken if rules.behind_proxy else {}, peer, scheme, host)
    return [(_name(name), value.decode()) for name, value in fields]


def _forwarded(taken: dict[bytes, bytes], peer: bytes, scheme: bytes, host: bytes | None) -> Fields:
    earlier = taken.get(b"x-forwarded-for")
    fields = [(b"x-forwarded-for", b"%b, %b" % (earlier, peer) if earlier else peer)]
    fields.append((b"x-forwarded-proto", taken.get(b"x-forwarded-proto", scheme)))
    told = taken.get(b"x-forwarded-host", host)
    if told is not None:
        fields.append((b"x-forwarded-host", told))
    fields += [
        (n, taken[n]) for n in (b"forwarded", b"x-real-ip", b"x-forwarded-port") if n in taken
    ]
    return fields


def response(headers: Iterable[tuple[bytes, bytes]], status: int, version: bytes) -> Fields:
    """Return a response's headers as the client gets them: in order, doubled ones and all."""
    fields: Fields = []
    named: set[bytes] = set()
    bodiless = status in (204, 304)
    for original, value in headers:
        name = original.lower()
        if name in HOP_BY_HOP:
            if name == b"connection":
                named |= _options(value)
            elif name == b"transfer-encoding":  # it counts, and a length beside it does not
                named |= {b"content-length"}
        elif (not bodiless or name != b"content-length") and is_valid(name, value):
            fields.append((name, value))
    if named:
        fields = [field for field in fields if field[0] not in named]
    fields.append((b"via", b"%b %b" % (version, PSEUDONYM)))
    return fields


@functools.lru_cache(maxsize=256)
def _options(connection: bytes) -> frozenset[bytes]:
    """The headers that `Connection` names: they too are of one connection.

    Not those that frame the message or name its target, whatever it says.
    """
    options = frozenset(option.strip().lower() for option in connection.split(b","))
    return options - {b"host", b"content-length", b"content-type", KEY, b"close", b""}


@functools.lru_cache(maxsize=1024)
def _name(name: bytes) -> str:
    return name.decode()
