"""The problem catalogue: every refusal there is, as RFC 9457 problem details.

A `type` is `base` + the slug: a stable URI with a page of its own in the documentation. `detail`
says what to do. Nothing here repeats a request's body, a fingerprint or a caller's identity.

The string under each problem is the advice on its page, written by `docs/generate.py`: whether
anything was done, what the client does, what the operator does. To add a problem, define it here
with its advice and run that script; nothing else lists it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from semel.core.keys import HEADER
from semel.core.record import Response

BASE = "https://semel.readthedocs.io/problems/"


Effect = Literal["known", "none", "unknown"]
"""What a response says about the operation. `known`: what became of it. `none`: this request did
nothing, which says nothing of an earlier one under the same key. `unknown`: it may have taken
effect, or may yet."""


class Problem(NamedTuple):
    """A refusal: its kind, its meaning, and the text that the client gets."""

    slug: str
    status: int
    title: str
    detail: str
    effect: Effect
    retry: bool
    """Whether the same request may be sent again under the same key, as it is."""
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
        """Return it as a response."""
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


def problems_in(module: Mapping[str, object]) -> tuple[Problem, ...]:
    """Return the problems among a module's names, in the order of their definition."""
    return tuple(value for value in module.values() if isinstance(value, Problem))


KEY_MISSING = Problem(
    "key-missing",
    400,
    f"{HEADER} is missing",
    f"This operation needs an {HEADER} header. Generate a new key for a new operation, for"
    " example a UUID, and send the same key with every retry of it.",
    effect="none",
    retry=False,
)
"""Done: No.
Client: Generate a key for the operation, a UUID for example, keep it with the request, and send it
with every retry. Generate it once, outside the retry loop.
Operator: The route has `Policy(required=True)`, or its handler takes the operation.
"""
KEY_INVALID = Problem(
    "key-invalid",
    400,
    f"{HEADER} is not valid",
    "",
    effect="none",
    retry=False,
)
"""Done: No.
Client: Send 1 to 255 visible ASCII characters, bare or as one quoted string, in one header.
Operator: A proxy that joins repeated headers with a comma can cause it; the detail says which rule
was broken.
"""
KEY_REUSED = Problem(
    "key-reused",
    422,
    f"{HEADER} was used for another request",
    "This key was sent before with another method, path, query, content type or body. Nothing was"
    " done now. Send exactly the first request to get its response, or generate a new key.",
    effect="none",
    retry=False,
)
"""Done: Not by this request. The first one with the key is untouched.
Client: To get the first response, send exactly the first request. For another operation generate
another key: whenever anything in the request changes.
Operator: A client that serialises JSON anew for each attempt runs into this:
`Policy(fingerprint="json")` forgives it.
"""
KEY_EXPIRED = Problem(
    "key-expired",
    410,
    f"{HEADER} has expired",
    "The response to this request is no longer kept, so it is not known whether it would be done"
    " twice. Nothing was done now. Look up what became of it; generate a new key for a new one.",
    effect="unknown",
    retry=False,
)
"""Done: Not by this request. The first one may well have been.
Client: Look up what became of the operation where the service shows it. Do not simply generate a
new key: that is how things happen twice.
Operator: The response is kept for `expires`, the key is refused for `tombstone` after that. Choose
them longer than your clients retry; `after_expiry="run"` lets keys be used again.
"""
IN_FLIGHT = Problem(
    "in-flight",
    409,
    "The first request is still being processed",
    "A request with this key is in progress. Nothing was done by this one. Send it again, with the"
    " same key, after the time given.",
    effect="unknown",
    retry=True,
    retry_after=1,
)
"""Done: Not by this request. The first one is still running.
Client: Wait as long as `Retry-After` says and send the same request with the same key.
Operator: After a crash this lasts until the lease ends (30 s unless the policy says otherwise).
"""
OUTCOME_UNKNOWN = Problem(
    "outcome-unknown",
    409,
    "It is not known what became of the first request",
    "The first request with this key was cut off, and it is not known whether it took effect. It"
    " is not run again until that is settled. Give the reference to the operator of this"
    " service; a retry does not help.",
    effect="unknown",
    retry=False,
)
"""Done: Nobody knows. The first request was cut off, and the route promises at most once.
Client: Do not retry. Give the reference to the operator of the service.
Operator: The key is parked. Find out what became of the operation (the reference is the start of
the record's key), and settle it.
"""
OUTCOME_UNRECORDED = Problem(
    "outcome-unrecorded",
    503,
    "The outcome could not be recorded",
    "The request was processed, but its outcome could not be recorded, so it is not known"
    " whether it took effect. Send it again with the same key: only that key can tell.",
    effect="unknown",
    retry=True,
    retry_after=1,
)
"""Done: Perhaps: the request was processed, and its outcome could not be written down.
Client: Send it again with the same key, and only with that key.
Operator: The store failed between the handler and the record. Under at least once the retry may run
it again; under at most once it will be parked.
"""
RESPONSE_NOT_KEPT = Problem(
    "response-not-kept",
    409,
    "The operation is done; its response was not kept",
    "The first request with this key took effect, but its response was too large to keep or broke"
    " off. It is not run again. Read the result where the service shows it.",
    effect="known",
    retry=False,
)
"""Done: Yes, by the first request.
Client: Read the result where the service shows it. A retry does not help and does no harm.
Operator: The response was larger than `max_response_body`, or a stream that broke off.
"""
REQUEST_TOO_LARGE = Problem(
    "request-too-large",
    413,
    "The request's body is too large",
    "",
    effect="none",
    retry=False,
)
"""Done: No.
Client: Send less, or ask for another way to upload.
Operator: `max_request_body` is the limit for requests with a key; the body is read whole before the
claim.
"""
BODY_TIMEOUT = Problem(
    "body-timeout",
    408,
    "The request's body arrived too slowly",
    "Nothing was done. Send the request again with the same key.",
    effect="none",
    retry=True,
)
"""Done: No.
Client: Send the request again with the same key.
Operator: `body_timeout` and `min_body_rate` say how slow an upload may be.
"""
STORE_UNAVAILABLE = Problem(
    "store-unavailable",
    503,
    "Idempotency keys cannot be checked now",
    "Nothing was done: without its records this service cannot tell a retry from a new request."
    " Send the request again with the same key after the time given.",
    effect="none",
    retry=True,
    retry_after=2,
)
"""Done: No. Without its records the service cannot tell a retry from a new request.
Client: Wait as long as `Retry-After` says and send the same request with the same key.
Operator: The database is down, full, read-only or locked; the log says which. Semel fails closed:
`on_store_error="run"` would let requests through without protection.
"""
HANDLER_FAILED = Problem(
    "handler-failed",
    500,
    "The operation failed",
    "The request failed while it was processed, and may have taken effect in part. It is not run"
    " again under this key.",
    effect="known",
    retry=False,
)
"""Done: Perhaps in part. The handler raised, and the route promises at most once.
Client: Do not retry. Look up what became of the operation.
Operator: The exception is in the log. The failure is the operation's response from now on.
"""
CONNECTION_NOT_TAKEN = Problem(
    "connection-not-taken",
    500,
    "The operation is misconfigured",
    'This route declares guarantee="atomic", but its handler responded without taking'
    " op.connection(), so nothing tied its writes to the key. The response was withheld. The"
    " operator of this service must fix this.",
    effect="unknown",
    retry=False,
)
"""Done: Perhaps, outside the key's transaction. The response was withheld and nothing is kept.
Client: Report it.
Operator: The route declares `guarantee="atomic"`, and its handler answered without
`op.connection()`: take it, or drop the declaration.
"""
KEYS_NOT_ISSUED = Problem(
    "keys-not-issued",
    400,
    "The request for keys is not valid",
    "",
    effect="known",
    retry=False,
)
"""Done: No keys were issued.
Client: Send `{"count": 50}`, a whole number from 1 to 1000, with `"route": "POST /charges"` where
the keys are to be good for that only.
Operator: `Issuer(path=…)` says where keys are handed out.
"""
PRECONDITION_FAILED = Problem(
    "precondition-failed",
    412,
    "The resource is not as the request demands",
    "Nothing was done by this request: the resource has changed, or is there, or is not there,"
    " against what If-Match, If-None-Match or If-Unmodified-Since asks for. Read it again, and"
    " decide again; what you send then is a new request, and takes a new key where keys are used.",
    effect="known",
    retry=False,
)
"""Done: Not by this request.
Client: Read the resource again and decide again; send what follows from it as a new request, with a
new key. A retry under the same key gets this response again. If it may have been your own first
attempt that changed the resource, its response was lost, and no key was sent to tell: compare
before you overwrite.
Operator: Whoever was faster has won. Clients that retry conditional writes without a key get this
for their own success: let them send a key.
"""
PRECONDITION_REQUIRED = Problem(
    "precondition-required",
    428,
    "The request has to say which state it changes",
    "Nothing was done. Read the resource, and send the request again with If-Match and the ETag"
    " that came with it; to create a resource, with If-None-Match: *.",
    effect="known",
    retry=False,
)
"""Done: No.
Client: GET the resource, and send the request again with `If-Match` and its `ETag`, or with
`If-None-Match: *` to create it. The same key may be used.
Operator: The route has `require_match=True`: it protects against lost updates (RFC 6585).
"""
PRECONDITION_INVALID = Problem(
    "precondition-invalid",
    400,
    "A precondition is not valid",
    "",
    effect="known",
    retry=False,
)
"""Done: No.
Client: Send `If-Match` or `If-None-Match` as `*`, or as tags in double quotes, as they came in
`ETag`. The detail says which of the two could not be read.
Operator: Nothing is written under a condition that cannot be read.
"""
UPSTREAM_UNAVAILABLE = Problem(
    "upstream-unavailable",
    503,
    "The service cannot be reached",
    "Nothing was done by this request: no connection to the service behind this gateway could be"
    " had, so it was not sent. Send it again, with the same key if it had one, after the time"
    " given.",
    effect="none",
    retry=True,
    retry_after=1,
)
"""Done: Not by this request. No connection could be had, so not a byte of it was sent.
Client: Wait as long as `Retry-After` says and send the same request with the same key.
Operator: The service behind the gateway is down, its name cannot be resolved, its certificate is
not accepted, or all of `[upstream] connections` are in use; the gateway's log says which.
"""
UPSTREAM_FAILED = Problem(
    "upstream-failed",
    502,
    "The service gave no complete response",
    "The request was sent to the service behind this gateway, and the connection broke off before"
    " it had responded, so it is not known whether the request took effect. With an idempotency key"
    " send it again under the same key.",
    effect="unknown",
    retry=True,
)
"""Done: Perhaps: the request was sent, and no complete response came back.
Client: With a key, send the same request with the same key. Without one, look up what became of it
before you send it again.
Operator: The service behind the gateway died or closed the connection. A request with a key gets
this only where the route does not promise at most once; there it is parked.
"""
UPSTREAM_TIMEOUT = Problem(
    "upstream-timeout",
    504,
    "The service did not respond in time",
    "The request was sent to the service behind this gateway, which did not respond in time, so it"
    " is not known whether the request took effect. With an idempotency key send it again under the"
    " same key.",
    effect="unknown",
    retry=True,
)
"""Done: Perhaps: the request was sent, and no response came in time.
Client: With a key, send the same request with the same key. Without one, look up what became of it
before you send it again.
Operator: `[upstream] timeout` is how long the service may be silent. A request with a key gets this
only where the route does not promise at most once; there it is parked.
"""

CATALOGUE: Final = problems_in(vars())
"""Every problem above, in this order."""


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
