"""Authentication for the WSGI applications, outside the idempotency layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from bench.peers.apps import books


def authenticated(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """401 without a known Authorization."""

    def around(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("HTTP_AUTHORIZATION", "") in books.ACCOUNTS:
            return app(environ, start_response)
        _, body = books.refusal()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response("401 Unauthorized", headers)
        return [body]

    return around
