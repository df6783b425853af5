"""The endpoint that issues keys: `POST /idempotency-keys` with `{"count": 50}`."""

from __future__ import annotations

import json
from typing import Final

from semel.core import problems
from semel.core.record import Response
from semel.idempotency import Idempotency
from semel.issuer import MOST

LARGEST: Final = 4096
"""Bytes of a request for keys."""


def issue(idempotency: Idempotency, scope: str, method: str, body: bytes) -> Response:
    """Answer a request for keys, for the caller named `scope`.

    An empty body asks for one key. 201 with `keys` and `not_after` (RFC 3339), 400 for a body that
    is not understood, 405 for another method.
    """
    issuer = idempotency.issuer
    assert issuer is not None
    if method != "POST":
        return Response(405, ((b"allow", b"POST"),), b"")
    try:
        wanted = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError):
        wanted = None
    if not isinstance(wanted, dict) or set(wanted) - {"count", "route"}:
        return _refused(idempotency, 'send {"count": 50}, and "route" where it is for one')
    count, route = wanted.get("count", 1), wanted.get("route", "")
    if isinstance(count, float) and count.is_integer():  # 50.0 is the same number in JSON
        count = int(count)
    if type(count) is not int or not 1 <= count <= MOST:
        return _refused(idempotency, f"count has to be a whole number from 1 to {MOST}")
    try:
        issued = issuer.issue(scope, count, route=route if isinstance(route, str) else "?")
    except ValueError:
        return _refused(idempotency, 'route has to be "/path" or "METHOD /path"')
    told = {"keys": issued.keys, "not_after": issued.not_after_text}
    headers = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))
    return Response(201, headers, json.dumps(told).encode())


def _refused(idempotency: Idempotency, reason: str) -> Response:
    return problems.keys_not_issued(reason).response(idempotency.problem_base)
