"""Callers: the application's own dependency says who has sent a request."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_origin

from fastapi import Depends, FastAPI, Request, Response, params
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Route

from semel.web.asgi.endpoints import endpoints_of, flat, is_async, mounted, routes_of
from semel.web.asgi.messages import ASGIApp, ASGIScope, Ask, Message, Receive, Send
from semel.web.fastapi.dependencies import asking_room
from semel.web.http.callers import Caller, named_caller

try:
    from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
except ImportError:  # FastAPI before 0.118 keeps its stacks in the route
    AsyncExitStackMiddleware = None  # type: ignore[assignment, misc]

__all__ = ["asking"]

_USER = "semel.user"
_PARAMETER = re.compile(r"\{([A-Za-z_]\w*)[:}]")


def asking(app: Starlette, caller: Any) -> Ask:
    """Return what asks `caller` who has sent a request to this application.

    For a FastAPI application a dependency, with all that it depends on: solved by FastAPI itself,
    as that of a route, and over, its `yield` too, when this returns. For Starlette a plain or async
    function of the request. What it raises goes to the application's exception handlers.
    """
    handlers = {k: h for k, h in app.exception_handlers.items() if k not in (500, Exception)}

    @functools.cache
    def solving(path: str) -> ASGIApp:
        found = _dependency(app, caller, path) if isinstance(app, FastAPI) else _function(caller)
        return ExceptionMiddleware(found, handlers=handlers, debug=app.debug)

    solving("/")
    takes = _parameters(caller, app) if isinstance(app, FastAPI) else set()
    takes_a_thread = _takes_a_thread(caller, app)
    takes_path = any(takes.intersection(_names(each.path)) for each in endpoints_of(app))

    async def ask(scope: ASGIScope, receive: Receive) -> Caller | ASGIApp:
        sent: list[Message] = []

        async def keep(message: Message) -> None:
            sent.append(message)

        path, parameters = _place(app, scope) if takes_path else ("/", {})
        own = {**scope, "path_params": parameters}
        async with asking_room() if takes_a_thread else contextlib.nullcontext():
            await solving(path)(own, receive, keep)
        if _USER in own:
            return named_caller(own[_USER])

        async def refuse(scope: ASGIScope, receive: Receive, send: Send) -> None:
            for message in sent:
                await send(message)

        return refuse

    return ask


def _dependency(app: FastAPI, caller: Any, path: str) -> Any:
    """A route of FastAPI's, whose handler takes the caller."""
    route = _route(app, caller, path)
    return route.app if AsyncExitStackMiddleware is None else AsyncExitStackMiddleware(route.app)


def _parameters(caller: Any, app: FastAPI) -> set[str]:
    """The names in the path or the query that a dependency, and all that it depends on, takes."""
    return {
        each.name
        for dependant in _dependants(caller, app)
        for each in (*dependant.query_params, *dependant.path_params)
    }


def _dependants(caller: Any, app: FastAPI) -> Iterator[Dependant]:
    """A dependency, and all that it depends on."""
    waiting = [*_route(app, caller, "/").dependant.dependencies]
    while waiting:
        dependant = waiting.pop()
        yield dependant
        waiting += dependant.dependencies


def _takes_a_thread(caller: Any, app: Starlette) -> bool:
    calls = (
        [each.call for each in _dependants(caller, app)] if isinstance(app, FastAPI) else [caller]
    )
    return not all(is_async(call) for call in calls)


def _names(path: str) -> list[str]:
    return _PARAMETER.findall(path)


def _place(app: Starlette, scope: ASGIScope, prefix: str = "") -> tuple[str, dict[str, Any]]:
    """The path of the route that a request comes to, as it is written, and its parameters."""
    for route in flat(routes_of(app) or ()):
        matched, more = route.matches(dict(scope))
        if matched.value:
            path, inner = prefix + getattr(route, "path", ""), mounted(route)
            if inner is not None:
                return _place(inner, {**scope, **more}, path)
            return path, more.get("path_params", {})
    return "/", {}


def _route(app: FastAPI, caller: Any, path: str) -> APIRoute:

    async def found(**given: Any) -> Response:
        given["request"].scope[_USER] = given["user"]
        return Response()

    annotation, default = Any, caller
    if get_origin(caller) is Annotated:
        annotation, default = caller, inspect.Parameter.empty
    elif not isinstance(caller, params.Depends):
        default = Depends(caller)
    kind = inspect.Parameter.KEYWORD_ONLY
    found.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("request", kind, annotation=Request),
            inspect.Parameter("user", kind, annotation=annotation, default=default),
        ]
    )
    return APIRoute(
        path, found, methods=["POST"], response_model=None, dependency_overrides_provider=app
    )


def _function(caller: Callable[..., Any]) -> Any:
    """A route of Starlette's, whose handler calls the function."""
    on_loop = is_async(caller)

    async def found(request: Request) -> Response:
        user = await caller(request) if on_loop else await run_in_threadpool(caller, request)
        request.scope[_USER] = await user if inspect.isawaitable(user) else user
        return Response()

    return Route("/", found, methods=["POST"]).app
