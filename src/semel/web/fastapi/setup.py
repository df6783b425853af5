"""`init_app`: puts Semel into a FastAPI application."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import FastAPI, Request, Response, routing
from starlette.routing import Mount

from semel.applications import POLICY_ATTRIBUTE
from semel.core.policy import Policy
from semel.idempotency import Idempotency
from semel.web.asgi.middleware import ASGIMiddleware
from semel.web.conditional import NotMet
from semel.web.fastapi.responses import respond
from semel.web.openapi import document

__all__ = ["init_app"]


def init_app(app: FastAPI, idempotency: Idempotency) -> None:
    """Protect an application: add the middleware, take over `@idempotency.route(…)` rules, answer
    `NotMet`, and write the headers and their problem answers into the OpenAPI document.

    Call it after the routes are defined, and before authentication is added with
    `app.add_middleware` (what is added later runs earlier).
    """
    for path, route in _routes(app.routes):
        policy = getattr(getattr(route, "endpoint", None), POLICY_ATTRIBUTE, None)
        if policy is not None:
            for method in sorted(route.methods or ()):
                _register(idempotency, method, path, policy)
    app.add_middleware(ASGIMiddleware, idempotency=idempotency)

    async def refuse(request: Request, error: NotMet) -> Response:
        return respond(error.response(idempotency.problem_base))

    app.exception_handler(NotMet)(refuse)
    make_document = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document(make_document(), idempotency)
        return make_document()

    app.openapi = openapi  # type: ignore[method-assign]


def _routes(routes: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every route with its whole path, those of routers and mounted applications too."""
    # FastAPI copied included routers into a flat list before it had this function.
    for route in getattr(routing, "iter_route_contexts", iter)(routes):
        mounted = getattr(route, "original_route", route)
        if isinstance(mounted, Mount):
            yield from _routes(mounted.routes, prefix + mounted.path)
        elif route.path is not None:
            yield prefix + route.path, route


def _register(idempotency: Idempotency, method: str, path: str, policy: Policy) -> None:
    if method not in policy.methods:
        policy = dataclasses.replace(policy, methods=(*policy.methods, method))
    idempotency.routes.add(f"{method} {path}", policy)
