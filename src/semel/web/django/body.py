"""A request's body, read before the view is, and given to it again."""

from __future__ import annotations

import functools
from collections.abc import Callable

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.http.request import UnreadablePostError

from semel.core import problems
from semel.core.policy import Policy
from semel.core.problems import Problem
from semel.web.http.body import CHUNK, Body, Input, Intake


def body_of(policy: Policy, request: HttpRequest) -> Body:
    """Return an empty body that knows what is asked for."""
    meta = request.META
    line = (
        request.method or "",
        request.path.encode("utf-8", "surrogateescape"),
        meta.get("QUERY_STRING", "").encode("utf-8", "surrogateescape"),
        meta.get("CONTENT_TYPE", "").encode("latin-1", "replace"),
        meta.get("HTTP_CONTENT_ENCODING", "").encode("latin-1", "replace"),
    )
    return Body(policy.algorithm, line)


def declared(request: HttpRequest) -> int:
    """Return the length that the client has declared, 0 where it has none."""
    length = request.META.get("CONTENT_LENGTH") or ""
    return int(length) if length.isdigit() else 0


def read(policy: Policy, request: HttpRequest, write: Callable[[bytes], object]) -> Problem | None:
    """Read the body to its end. What Django has read already, for middleware, is taken as it is."""
    if hasattr(request, "_body"):
        if declared(request) > policy.max_request_body:
            return problems.request_too_large(policy.max_request_body)
        write(request.body)
        return None
    if request._read_started:
        raise ImproperlyConfigured(
            "a middleware that runs before IdempotencyMiddleware has read the request's body, so it"
            " cannot be compared: let that one come after it in MIDDLEWARE"
        )
    chunks = iter(functools.partial(request.read, CHUNK), b"")
    try:
        return Intake(policy).take(chunks, declared(request), write)
    except UnreadablePostError:  # the client has gone, or the server gave up on it
        return problems.BODY_TIMEOUT


def give(request: HttpRequest, body: Body) -> None:
    """Let the view read the body, whole or piece by piece, as if nobody had."""
    if not hasattr(request, "_body") and not hasattr(request, "_post"):
        request._stream = Input(body)
        request._read_started = False
