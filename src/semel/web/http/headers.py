"""Response headers: which are kept with a record, and which a replay carries."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from semel.core.policy import Policy

REPLAYED = (b"idempotent-replayed", b"true")
"""The marker of a replay (Stripe's name for it)."""

OF_ONE_CONNECTION = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110 section 7.6.1."""

NOT_KEPT = OF_ONE_CONNECTION | frozenset(
    {
        # of one moment or one server
        b"date",
        b"server",
        b"server-timing",
        b"x-process-time",
        b"x-response-time",
        b"x-runtime",
        b"age",
        # of one caller's credentials
        b"www-authenticate",
        b"proxy-authenticate",
        b"authentication-info",
        b"proxy-authentication-info",
        # of one trace
        b"traceparent",
        b"tracestate",
        b"x-request-id",
        b"x-correlation-id",
        b"x-trace-id",
        b"x-amzn-trace-id",
        b"x-cloud-trace-context",
        b"b3",
        b"idempotent-replayed",
        b"idempotency-key",  # a key that was handed out is not handed out again
    }
)
_NOT_REPLAYED = NOT_KEPT | {b"content-length"}
_NOT_KEPT_PREFIXES = (b"access-control-", b"ratelimit", b"x-ratelimit-", b"x-rate-limit-", b"x-b3-")
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
_VALUE = re.compile(rb"[\t -~\x80-\xff]*")


def is_valid(name: bytes, value: bytes) -> bool:
    """Say whether a header may be sent: RFC 9110 section 5; no CR, LF or NUL can get through."""
    return _NAME.fullmatch(name) is not None and _VALUE.fullmatch(value) is not None


Headers = tuple[tuple[bytes, bytes], ...]


def kept(headers: Iterable[tuple[bytes, bytes]], policy: Policy) -> Headers:
    """Return the headers that a replay will carry. Invalid ones are left out."""
    fields = tuple(map(tuple, headers))
    return _kept(fields, policy.keep_headers, policy.keep_cookies)


@functools.lru_cache(maxsize=1024)  # the same few sets of headers come again and again
def _kept(headers: Headers, allowed: frozenset[str] | None, cookies: bool) -> Headers:
    keep = []
    for original, value in headers:
        name = original.lower()
        if name in NOT_KEPT or name.startswith(_NOT_KEPT_PREFIXES):
            continue
        if name == b"set-cookie" and not cookies:
            continue
        if (
            allowed is not None
            and name.decode("latin-1") not in allowed
            and name[:8] != b"content-"
        ):
            continue
        if is_valid(name, value):
            keep.append((name, value))
    return tuple(keep)


@functools.lru_cache(maxsize=1024)
def replayed(headers: Headers) -> Headers:
    """Return the headers of a replay, checked once more: the store may have been written to.

    Its length is left to who sends it, and counted.
    """
    sound = (
        (name, value)
        for name, value in headers
        if is_valid(name, value) and name.lower() not in _NOT_REPLAYED
    )
    return (*sound, REPLAYED)
