"""`init_app`: puts Semel into a FastAPI or Starlette application."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware

from semel.applications import Endpoint
from semel.core.policy import PolicyError
from semel.idempotency import Idempotency
from semel.operation import NoOperation
from semel.web.asgi.endpoints import (
    application_within,
    endpoints_of,
    flat,
    mounted,
    routes_of,
)
from semel.web.asgi.messages import ROOT, ASGIApp, ASGIScope, Ask, Receive, Send
from semel.web.asgi.middleware import ASGIMiddleware
from semel.web.asgi.raised import noting
from semel.web.asgi.slashes import leads_to
from semel.web.conditional import NotMet
from semel.web.fastapi.caller import asking
from semel.web.fastapi.exits import late_commits
from semel.web.fastapi.responses import respond
from semel.web.http.callers import one_way_to_ask
from semel.web.openapi import document

__all__ = ["init_app"]

log = logging.getLogger("semel")


def init_app(app: Starlette, idempotency: Idempotency, *, caller: Any = None) -> None:
    """Protect a FastAPI or Starlette application: Semel stands inside all its middleware.

    Called at any time before the application starts, in any order with `add_middleware`, routes and
    routers. Takes over `@idempotency.route(…)` rules, those of routers and mounted applications
    too, answers `NotMet`, and writes the headers and their problem responses into the OpenAPI
    document.

    `caller` says whose requests they are. For FastAPI it is a dependency, as a route takes it: a
    function or class, or one that is annotated or has security scopes. For Starlette it is a plain
    or async function of the request. It returns the user's name or number, or an object or a
    mapping that has an `id`, `sub` or `username` (`semel.web.http.callers.named_caller`), and
    refuses by raising `HTTPException`. It is asked before a claim and before a replay, except on
    routes with `Policy(shared=True)`, which are public. A handler that depends on it too has it
    called once more.

    A second call with the same `Idempotency` does nothing. Raises `PolicyError` where
    `Idempotency(scope=…)` names the caller already, or where the application has another
    `Idempotency`, or another caller.
    """
    one_way_to_ask(idempotency, caller)
    built: Any = app.build_middleware_stack
    if isinstance(built, _Stack):
        built.again(idempotency, caller)
        return
    stack = app.build_middleware_stack = _Stack(app, idempotency, caller)  # type: ignore[method-assign]
    app.middleware_stack = None  # built anew, where it has been
    idempotency.serve(stack)

    async def refuse(request: Request, error: NotMet) -> Response:
        return respond(error.response(idempotency.problem_base))

    app.add_exception_handler(NotMet, refuse)  # type: ignore[arg-type]
    if isinstance(app, FastAPI):
        _document(app, idempotency)


class _Stack:
    """Builds an application's middleware, with Semel innermost."""

    def __init__(self, app: Starlette, idempotency: Idempotency, caller: Any) -> None:
        self._app = app
        self._build = app.build_middleware_stack
        self.idempotency = idempotency
        self._caller = caller
        self.around: Ask | None = None
        """What the application asks that this one is mounted in."""

    def again(self, idempotency: Idempotency, caller: Any) -> None:
        """Take a second `init_app` of the same application."""
        if idempotency is not self.idempotency:
            raise PolicyError("init_app: this application has an Idempotency already; keep one")
        if caller is not None and self._caller not in (None, caller):
            raise PolicyError("init_app: this application has a caller= already; keep one")
        self._caller = caller or self._caller
        self._app.middleware_stack = None

    @property
    def identified(self) -> bool:
        """Whether there is a `caller=`."""
        return self._ask() is not None

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints of the application, and of those mounted in it."""
        return list(endpoints_of(self._app, self._app))

    def within(self) -> list[_Stack]:
        """Return the mounted applications that have Semel inside their own middleware."""
        leaving = _place_within(self._app, self.idempotency, self._ask())
        return [inner.build_middleware_stack for inner in leaving]  # type: ignore[misc]

    def _ask(self) -> Ask | None:
        return self.around if self._caller is None else asking(self._app, self._caller)

    def __call__(self) -> Any:
        app, idempotency, ask = self._app, self.idempotency, self._ask()
        theirs = [each for each in app.user_middleware if not self._by_hand(each)]
        ours = Middleware(
            Innermost,
            idempotency=idempotency,
            whole=app,
            caller=ask,
            leaving=_place_within(app, idempotency, ask),
            endpoints=self.endpoints,
        )
        return _build(app, self._build, [*theirs, ours])

    def _by_hand(self, middleware: Any) -> bool:
        given = [*getattr(middleware, "args", ()), *middleware.kwargs.values()]
        if middleware.cls is not ASGIMiddleware or self.idempotency not in given:
            return False
        log.warning("add_middleware(ASGIMiddleware): init_app has put Semel in its place; drop it")
        return True


class Innermost(ASGIMiddleware):
    """The middleware of one application, which leaves requests to those mounted in it.

    `leaving`: the mounted applications that have middleware of their own, and Semel inside it.
    """

    def __init__(
        self,
        app: ASGIApp,
        idempotency: Idempotency,
        *,
        whole: Starlette,
        caller: Ask | None,
        endpoints: Callable[[], list[Endpoint]],
        leaving: list[Starlette],
    ) -> None:
        super().__init__(app, idempotency, caller=caller, registers=False)
        self._whole = whole
        self._leaving = leaving
        self.learn(endpoints())

    def has_met(self) -> None:
        """Warn of what the application's dependencies commit after the record."""
        super().has_met()
        for sentence in late_commits(self._whole, self.idempotency.routes):
            log.warning("%s", sentence)
        if "sqlalchemy" in sys.modules:
            with contextlib.suppress(ImportError):  # older than 2.0
                from semel.sessions.watch import watch

                watch()

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if self._leaving and scope["type"] == "http":
            scope.setdefault(ROOT, scope.get("root_path", ""))
            if leads_to(self.app, scope) in self._leaving:
                await self.app(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


class _Told:
    """Builds the middleware of a mounted application, whose handlers run in operations."""

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self._build = app.build_middleware_stack

    def __call__(self) -> Any:
        return _build(self._app, self._build, self._app.user_middleware)


def _build(app: Starlette, build: Callable[[], Any], middleware: list[Any]) -> Any:
    """Build an application's middleware; its exception handlers tell what was raised."""
    before = app.user_middleware, app.exception_handlers
    default = ExceptionMiddleware(app.router).http_exception
    handlers: dict[Any, Any] = {HTTPException: default, **app.exception_handlers}
    outside = {kind: handlers.pop(kind) for kind in (500, Exception) if kind in handlers}
    try:
        app.user_middleware = middleware
        app.exception_handlers = {**noting(handlers), **outside, NoOperation: _pass_on}
        return build()
    finally:
        app.user_middleware, app.exception_handlers = before


async def _pass_on(request: Request, error: Exception) -> Response:
    """Leave `NoOperation` to Semel, whatever handler there is for its base classes."""
    raise error


def _place_within(app: Starlette, idempotency: Idempotency, ask: Ask | None) -> list[Starlette]:
    """Make mounted applications ready; return those that have Semel inside their own middleware."""
    leaving: list[Starlette] = []
    for inner in _mounted(app):
        built: Any = inner.build_middleware_stack
        if not isinstance(built, (_Stack, _Told)):
            built = _Stack(inner, idempotency, None) if inner.user_middleware else _Told(inner)
            inner.build_middleware_stack = built  # type: ignore[method-assign]
            inner.middleware_stack = None
        if isinstance(built, _Told):
            leaving += _place_within(inner, idempotency, ask)
        elif built.idempotency is idempotency:
            built.around = ask
            inner.middleware_stack = None
            leaving.append(inner)
    return leaving


def _mounted(app: object) -> Iterator[Starlette]:
    for route in flat(routes_of(app) or ()):
        inner = application_within(mounted(route))
        if isinstance(inner, Starlette):
            yield inner
        elif inner is not None:
            yield from _mounted(inner)


def _document(app: FastAPI, idempotency: Idempotency) -> None:
    make_document = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            idempotency.meet()
            document(make_document(), idempotency)
        return make_document()

    app.openapi = openapi  # type: ignore[method-assign]
