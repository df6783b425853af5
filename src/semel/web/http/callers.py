"""Callers: who sends a request, and the scope under which the caller's keys are stored."""

from __future__ import annotations

import hashlib
from typing import Protocol

from semel.core.policy import RequestView
from semel.idempotency import Scope

Caller = str | tuple[str | None, bytes, bytes]
"""The name that a `scope` function gave; or the framework's authenticated user, the `Authorization`
header and the session cookie."""


class CallerView(RequestView, Protocol):
    """A request, as far as it says who has sent it."""

    session_cookie: str | None
    """The name of the framework's own session cookie, where it has one."""

    def user(self) -> str | None:
        """Return the name of the framework's authenticated user. Raises `TypeError`."""

    def authorization(self) -> bytes:
        """Return the `Authorization` header, empty where there is none."""

    def cookie(self, name: str) -> bytes:
        """Return a cookie's value, empty where there is none."""


def caller_of(
    request: CallerView, scope: Scope | None, session_cookie: str | None = None
) -> Caller:
    """Return who has sent a request, by the service's own function where it has given one.

    Asked once a request. Raises `TypeError` where `scope` returned no name, or the user has none.
    """
    if scope is not None:
        name = scope(request)
        if not isinstance(name, str) or not name:
            raise TypeError(f"scope= has to return a non-empty string, not {name!r}")
        return name
    cookie = session_cookie or request.session_cookie
    return (
        request.user(),
        request.authorization(),
        request.cookie(cookie) if cookie is not None else b"",
    )


def scope_name(caller: Caller) -> str:
    """Return the scope under which a caller's keys are stored. See `Idempotency`."""
    if isinstance(caller, str):
        return caller
    user, authorization, cookie = caller
    if user is not None:
        return f"user:{user}"
    credentials = authorization or cookie
    if not credentials:
        return "anonymous"
    kind = "authorization" if authorization else "cookie"
    return f"{kind}:{hashlib.sha256(credentials).hexdigest()}"
