"""The problem catalogue: every refusal there is, as RFC 9457 problem details.

A `type` is `base` + the slug: a stable URI with a page of its own in the documentation. `detail`
says what to do. Nothing here repeats a request's body, a fingerprint or a caller's identity.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from semel.core.keys import HEADER
from semel.core.record import Response

BASE = "https://semel.readthedocs.io/problems/"


class Problem(NamedTuple):
    """A refusal: which kind, and what to tell the client."""

    slug: str
    status: int
    title: str
    detail: str
    retry_after: int | None = None
    """Seconds to wait before the same request may be sent again under the same key."""
    reference: str | None = None
    """The record's public name, for support and logs."""

    def body(self, base: str = BASE) -> bytes:
        """Return the `application/problem+json` body."""
        members: dict[str, object] = {
            "type": base + self.slug,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.retry_after is not None:
            members["retry_after"] = self.retry_after
        if self.reference is not None:
            members["reference"] = self.reference
        return json.dumps(members, ensure_ascii=False).encode()

    def response(self, base: str = BASE) -> Response:
        """Return it as an answer."""
        return Response(self.status, tuple(self.headers(base)), self.body(base))

    def headers(self, base: str = BASE) -> list[tuple[bytes, bytes]]:
        """Return the headers that go with the body, its length excepted."""
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"cache-control", b"no-store"),
            (b"link", b'<%s%s>; rel="describedby"' % (base.encode(), self.slug.encode())),
        ]
        if self.retry_after is not None:
            headers.append((b"retry-after", b"%d" % self.retry_after))
        return headers


KEY_MISSING = Problem(
    "key-missing",
    400,
    f"{HEADER} is missing",
    f"This operation needs an {HEADER} header. Draw a new key for a new operation, for example"
    " a UUID, and send the same key with every retry of it.",
)
KEY_INVALID = Problem("key-invalid", 400, f"{HEADER} is not valid", "")
KEY_REUSED = Problem(
    "key-reused",
    422,
    f"{HEADER} was used for another request",
    "This key was sent before with another method, path, query, content type or body. Nothing was"
    " done now. Send exactly the first request to get its answer, or draw a new key.",
)
KEY_EXPIRED = Problem(
    "key-expired",
    410,
    f"{HEADER} has expired",
    "The answer to this request is no longer kept, so it is not known whether it would be done"
    " twice. Nothing was done now. Look up what became of it; draw a new key for a new one.",
)
IN_FLIGHT = Problem(
    "in-flight",
    409,
    "The first request is still being worked on",
    "A request with this key is in progress. Nothing was done by this one. Send it again, with the"
    " same key, after the time given.",
    retry_after=1,
)
OUTCOME_UNKNOWN = Problem(
    "outcome-unknown",
    409,
    "It is not known what became of the first request",
    "The first request with this key was cut off, and it is not known whether it took effect. It"
    " is not run again until that is settled. Give the reference to the people who run this"
    " service; a retry does not help.",
)
OUTCOME_UNRECORDED = Problem(
    "outcome-unrecorded",
    503,
    "The outcome could not be recorded",
    "The request was worked on, but what came of it could not be recorded, so it is not known"
    " whether it took effect. Send it again with the same key: only that key can tell.",
    retry_after=1,
)
RESPONSE_NOT_KEPT = Problem(
    "response-not-kept",
    409,
    "The operation is done; its answer was not kept",
    "The first request with this key took effect, but its answer was too large to keep or broke"
    " off. It is not run again. Read the result where the service shows it.",
)
REQUEST_TOO_LARGE = Problem("request-too-large", 413, "The request's body is too large", "")
BODY_TIMEOUT = Problem(
    "body-timeout",
    408,
    "The request's body arrived too slowly",
    "Nothing was done. Send the request again with the same key.",
)
STORE_UNAVAILABLE = Problem(
    "store-unavailable",
    503,
    "Idempotency keys cannot be checked now",
    "Nothing was done: without its records this service cannot tell a retry from a new request."
    " Send the request again with the same key after the time given.",
    retry_after=2,
)
HANDLER_FAILED = Problem(
    "handler-failed",
    500,
    "The operation failed",
    "The request failed while it was worked on, and may have taken effect in part. It is not run"
    " again under this key.",
)
CONNECTION_NOT_TAKEN = Problem(
    "connection-not-taken",
    500,
    "The operation is set up wrongly",
    'This route declares guarantee="atomic", but its handler answered without taking'
    " op.connection(), so nothing tied its writes to the key. The answer was withheld. This is for"
    " the people who run this service to mend.",
)
KEYS_NOT_ISSUED = Problem("keys-not-issued", 400, "The request for keys is not valid", "")
PRECONDITION_FAILED = Problem(
    "precondition-failed",
    412,
    "The resource is not as the request demands",
    "Nothing was done by this request: the resource has changed, or is there, or is not there,"
    " against what If-Match, If-None-Match or If-Unmodified-Since asks for. Read it again, and"
    " decide anew; what you send then is a new request, and takes a new key where keys are used.",
)
PRECONDITION_REQUIRED = Problem(
    "precondition-required",
    428,
    "The request has to say which state it changes",
    "Nothing was done. Read the resource, and send the request again with If-Match and the ETag"
    " that came with it; to create a resource, with If-None-Match: *.",
)
PRECONDITION_INVALID = Problem("precondition-invalid", 400, "A precondition is not valid", "")
UPSTREAM_UNAVAILABLE = Problem(
    "upstream-unavailable",
    503,
    "The service cannot be reached",
    "Nothing was done by this request: no connection to the service behind this gateway could be"
    " had, so it was not sent. Send it again, with the same key if it had one, after the time"
    " given.",
    retry_after=1,
)
UPSTREAM_FAILED = Problem(
    "upstream-failed",
    502,
    "The service gave no whole answer",
    "The request was sent to the service behind this gateway, and the connection broke off before"
    " it had answered, so it is not known whether the request took effect. With an idempotency key"
    " send it again under the same key.",
)
UPSTREAM_TIMEOUT = Problem(
    "upstream-timeout",
    504,
    "The service did not answer in time",
    "The request was sent to the service behind this gateway, which did not answer in time, so it"
    " is not known whether the request took effect. With an idempotency key send it again under the"
    " same key.",
)

CATALOGUE: tuple[Problem, ...] = (
    KEY_MISSING,
    KEY_INVALID,
    KEY_REUSED,
    KEY_EXPIRED,
    IN_FLIGHT,
    OUTCOME_UNKNOWN,
    OUTCOME_UNRECORDED,
    RESPONSE_NOT_KEPT,
    REQUEST_TOO_LARGE,
    BODY_TIMEOUT,
    STORE_UNAVAILABLE,
    HANDLER_FAILED,
    CONNECTION_NOT_TAKEN,
    KEYS_NOT_ISSUED,
    PRECONDITION_FAILED,
    PRECONDITION_REQUIRED,
    PRECONDITION_INVALID,
    UPSTREAM_UNAVAILABLE,
    UPSTREAM_FAILED,
    UPSTREAM_TIMEOUT,
)


def key_invalid(reason: str) -> Problem:
    """Return the refusal of a malformed key, with the reason in its detail."""
    return KEY_INVALID._replace(detail=f"Nothing was done: {reason}.")


def keys_not_issued(reason: str) -> Problem:
    """Return the refusal of a request for keys, with the reason in its detail."""
    return KEYS_NOT_ISSUED._replace(detail=f"No keys were issued: {reason}.")


def request_too_large(limit: int) -> Problem:
    """Return the refusal of a body longer than `limit` bytes."""
    return REQUEST_TOO_LARGE._replace(
        detail=f"Nothing was done. The body of a request to this operation may have {limit} bytes."
    )


def precondition_invalid(reason: str) -> Problem:
    """Return the refusal of a precondition that cannot be read, with the reason in its detail."""
    return PRECONDITION_INVALID._replace(
        detail=f"Nothing was done: {reason}. Send a tag as it came in ETag, quotes and all, and a"
        " new key where keys are used."
    )
