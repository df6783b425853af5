"""Routers of Starlette's kind: which application, or which redirect, a request comes to."""

from __future__ import annotations

from typing import Any

from semel.web.asgi.endpoints import application_within, flat, mounted, routes_of
from semel.web.asgi.messages import ASGIScope, route_path


def redirects(app: object, scope: ASGIScope) -> bool:
    """Say whether a router of Starlette's kind answers this request by such a redirect.

    It runs no handler then, so the request needs no key. Asked only where the key belongs to
    another request, which may be the same at the other path.
    """
    app = application_within(app)
    router: Any = getattr(app, "router", app)
    if router is None:
        return False
    routes = list(flat(router.routes))
    for route in routes:
        found, more = route.matches(dict(scope))
        if found.value:
            inner = mounted(route)
            return inner is not None and redirects(inner, {**scope, **more})
    if not getattr(router, "redirect_slashes", False) or route_path(scope) in ("", "/"):
        return False
    path = scope["path"]
    other = {**scope, "path": path.rstrip("/") if path.endswith("/") else path + "/"}
    return any(route.matches(dict(other))[0].value for route in routes)


def leads_to(app: object, scope: ASGIScope) -> object:
    """Return the innermost application that a router hands this request to, None: its own route."""
    found: object = None
    for route in flat(routes_of(app) or ()):
        matched, more = route.matches(dict(scope))
        if matched.value:
            inner = mounted(route)
            if inner is not None:
                found = leads_to(inner, {**scope, **more}) or application_within(inner)
            return found
    return found
