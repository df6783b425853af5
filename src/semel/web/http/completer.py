"""The completer: finishes operations that a crash abandoned and whose client does not return.

Each adapter runs them in its own way; what is run, and what is parked instead, is decided here. It
goes the way that a client's retry goes: the same claim, under the same token, so two completers, or
a completer and a client, never run one operation twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from semel.core.commands import Found, Lookup, Park, Remembered
from semel.core.engine import Request
from semel.core.keys import InvalidKey
from semel.core.policy import Policy
from semel.core.record import State, UnreadableRecord
from semel.core.remembered import LARGEST, RememberedRequest, decode_request, encode_request
from semel.idempotency import Idempotency
from semel.issuer import GRACE
from semel.web.http import key_source
from semel.web.http.body import Body

log = logging.getLogger("semel")

MOST = 20
"""Operations that one round takes, the longest abandoned first."""


class Work(NamedTuple):
    """An abandoned operation that may be run."""

    key: bytes
    found: Found
    remembered: RememberedRequest
    policy: Policy
    body: Body
    request: Request


def remembered(
    policy: Policy, body: Body, request: Callable[[], RememberedRequest]
) -> bytes | None:
    """Return what is to be stored with the claim; None where the policy or the size says not to."""
    if not policy.remember_request or body.size > LARGEST:
        return None
    whole = request()._replace(version=policy.version, body=b"".join(body.chunks()))
    return encode_request(whole, credentials=policy.remember_credentials)


def remembers(idempotency: Idempotency) -> bool:
    """Whether there is anything to complete."""
    return any(policy.remember_request for policy in idempotency.routes.policies())


def wanted(abandoned: Remembered) -> Lookup:
    """Return the command whose reply `work` takes: is it abandoned still?"""
    return Lookup(abandoned.key)


def work(idempotency: Idempotency, abandoned: Remembered, found: object) -> Work | Park | None:
    """Return what is to be done: run it, park it, or nothing, because others have been here."""
    if not isinstance(found, Found):
        return None
    record = found.record
    if (record.token, record.state) != (abandoned.token, State.IN_FLIGHT):
        return None
    if record.lease_until > found.now:
        return None
    try:
        request = decode_request(abandoned.request)
    except UnreadableRecord as error:
        log.warning("operation %s is left to a newer version: %s", record.key[:6].hex(), error)
        return None
    path = request.path
    if request.root_path and path.startswith(request.root_path):
        path = path[len(request.root_path) :]
    policy = idempotency.routes.find(request.method, path)
    reason = None
    if policy is None or not policy.remember_request:
        reason = f"{request.method} {path} is no longer a route whose requests are remembered"
    elif policy.version != request.version:
        reason = f"version {request.version!r} of its handler began it, {policy.version!r} is here"
    if reason is not None or policy is None:
        return Park(record.key, record.token, reason or "", lapsed=True)
    fields = dict(request.headers)
    line = (request.method, request.raw_path, request.query)
    content = (fields.get(b"content-type", b""), fields.get(b"content-encoding", b""))
    body = Body(policy.algorithm, (*line, *content))
    body.write(request.body)
    policy = _rules(idempotency, policy, request, body)
    again = Request(
        record.key,
        idempotency.operations.owner(),
        body.fingerprint,
        abandoned.request,
        resumes=True,
    )
    return Work(record.key, found, request, policy, body, again)


def _rules(
    idempotency: Idempotency, policy: Policy, request: RememberedRequest, body: Body
) -> Policy:
    """Return the rules that the request's own key brings, as when it came in."""
    keys = [value for name, value in request.headers if name == b"idempotency-key"]
    try:
        named = key_source.resolve_key(
            idempotency, policy, keys, request.scope, RememberedView(request), body
        )
    except InvalidKey:  # an issued key that was good when it came; its secret is not known here
        issuer = idempotency.issuer
        left = issuer.lifetime.total_seconds() if issuer is not None else 0.0
        return policy.with_header.until(left, GRACE)
    return named.policy if named is not None else policy


class RememberedView:
    """A remembered request, as a `key` function and the sources of keys see it."""

    __slots__ = ("method", "native", "path")

    def __init__(self, request: RememberedRequest) -> None:
        self.method = request.method
        self.path = request.path
        self.native = request

    def header(self, name: str) -> str | None:
        wanted = name.lower().encode("latin-1")
        values = [value for field, value in self.native.headers if field == wanted]
        return b", ".join(values).decode("latin-1") if values else None
