"""Falcon: `init_app` puts Semel into an application, WSGI or ASGI, inside its middleware."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import falcon.asgi
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.web.falcon needs Falcon: pip install falcon") from error

from semel.idempotency import Idempotency
from semel.web.falcon import on_asgi, on_wsgi

__all__ = ["init_app"]


def init_app(
    app: Any, idempotency: Idempotency, *, caller: Callable[[Any], object] | None = None
) -> Any:
    """Protect the routes of an application; return the application to serve in its place.

        application = init_app(app, idempotency, caller=lambda req: req.context.user)

    Semel stands inside the application's middleware: what authenticates runs before a key is looked
    up, and `process_response` of all of it runs for replays too. Around a WSGI application, call it
    after the middleware is added; for a `falcon.asgi.App`, which is returned itself, the order does
    not matter. Sinks are not covered.

    `caller` is given the request, and may be async under ASGI; see
    `semel.web.http.callers.named_caller` for what it may return. What it raises
    (`falcon.HTTPUnauthorized`) goes out instead: no claim, no replay.

    Raises `PolicyError` where `Idempotency(scope=…)` names the caller already, and where an ASGI
    application is protected by another `Idempotency` or `caller`.
    """
    if isinstance(app, falcon.asgi.App):
        on_asgi.protect(app, idempotency, caller)
        return app
    return on_wsgi.protect(app, idempotency, caller)
