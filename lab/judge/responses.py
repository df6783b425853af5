"""Equality of responses (S3): which headers count, and a digest to compare stored ones by."""

from __future__ import annotations

import functools
import hashlib
from typing import Final

from lab.judge.history import Headers, ResponseSeen

OF_THE_MOMENT: Final = frozenset(
    {
        b"age",
        b"authentication-info",
        b"alt-svc",
        b"connection",
        b"content-length",
        b"date",
        b"idempotent-replayed",
        b"keep-alive",
        b"nel",
        b"proxy-authenticate",
        b"proxy-connection",
        b"report-to",
        b"retry-after",
        b"server",
        b"server-timing",
        b"set-cookie",
        b"te",
        b"traceparent",
        b"tracestate",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"via",
        b"www-authenticate",
        b"x-amzn-trace-id",
        b"x-b3-spanid",
        b"x-b3-traceid",
        b"x-cloud-trace-context",
        b"x-correlation-id",
        b"x-process-time",
        b"x-request-id",
        b"x-response-time",
        b"x-runtime",
        b"x-trace-id",
    }
)
"""Headers that two answers to one operation may differ in (S3): of one connection or one moment,
authentication, tracing, cookies, and Content-Length, which a streamed first answer lacks."""

OF_THE_MOMENT_PREFIXES: Final = (b"access-control-", b"ratelimit", b"x-ratelimit")


@functools.lru_cache(maxsize=4096)
def compared_headers(headers: Headers) -> Headers:
    """Return the headers, names in lower case, in which all answers to one operation must agree."""
    return tuple(
        (name.lower(), value)
        for name, value in headers
        if (lower := name.lower()) not in OF_THE_MOMENT
        and not lower.startswith(OF_THE_MOMENT_PREFIXES)
    )


def same_response(one: ResponseSeen, other: ResponseSeen) -> bool:
    """Say whether two answers are equal in what replays must agree in (S3)."""
    return (
        one.body == other.body
        and one.status == other.status
        and (
            one.headers == other.headers
            or compared_headers(one.headers) == compared_headers(other.headers)
        )
    )


def digest_of(status: int, headers: Headers, body: bytes) -> str:
    """Return a short digest of an answer over what replays must agree in (S3).

    The checker makes it of answers that clients saw and compares it with those of `Wrote`, `Stored`
    and `FinalRecord`: an answer other than the stored one is found even if no two clients saw both.
    """
    digest = hashlib.blake2b(b"%d\n" % status, digest_size=16)
    for name, value in compared_headers(headers):
        digest.update(b"%d:%d:%b%b" % (len(name), len(value), name, value))
    digest.update(b"\n" + body)
    return digest.hexdigest()
