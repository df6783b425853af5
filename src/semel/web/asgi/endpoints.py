"""Endpoints of an application whose routes are Starlette's, or like them, found by their shape."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator
from typing import Any, Final

from semel.applications import Endpoint
from semel.web.http.callers import KNOWN_CREDENTIALS

_DEEPEST: Final = 100
"""Applications within applications; more of them is a circle."""
_METHODS: Final = ("POST", "PUT", "PATCH", "DELETE")


def endpoints_of(app: object, around: object = None) -> Iterator[Endpoint]:
    """Find the endpoints of an application, with those of routers and mounted applications.

    `app` may be within any number of middlewares that call what they wrap `app`. One that has no
    `routes` has no endpoints. `around`: the application (`scope["app"]`) whose middleware asks.
    """
    routes, around_it = routes_of(app), routes_of(around)
    known = around is not None and authenticates(around) and (routes is None or routes is around_it)
    for endpoint in _endpoints(routes or around_it or (), "", {}, 0):
        yield endpoint._replace(identified=known or bool(endpoint.credentials))


def layers_of(app: object) -> Iterator[Any]:
    """The middlewares around an application, itself, and what builds its own middleware."""
    for _ in range(_DEEPEST):
        if app is None:
            return
        yield app
        built = getattr(app, "build_middleware_stack", None)
        if built is not None:
            yield built
        app = getattr(app, "app", None)


def application_within(app: object) -> Any:
    """Return the application with routes that is within these middlewares, None without one."""
    for layer in layers_of(app):
        if isinstance(getattr(layer, "routes", None), (list, tuple)):
            return layer
    return None


def routes_of(app: object) -> list[Any] | None:
    """Return the routes of an application within its middlewares, None where it has none."""
    return getattr(application_within(app), "routes", None)


def _endpoints(
    routes: Iterable[Any], prefix: str, segments: dict[str, str], depth: int
) -> Iterator[Endpoint]:
    for route in flat(routes) if depth < _DEEPEST else ():
        path = prefix + (getattr(route, "path", None) or "")
        kinds = segments | _own_kinds(route)
        if getattr(route, "endpoint", None) is not None:
            yield from _of_handler(route, path, kinds)
            continue
        inner = mounted(route)
        if inner is None:
            continue
        routes_within = routes_of(inner)
        if routes_within:
            yield from _endpoints(routes_within, path, kinds, depth + 1)
        else:
            yield Endpoint((), path + "/{path:path}", segments=kinds)


def flat(routes: Iterable[Any]) -> Iterator[Any]:
    """The routes, with those of FastAPI's included routers in the place of these."""
    for route in routes:
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route
        else:
            for context in contexts():
                yield getattr(context, "starlette_route", None) or context


def mounted(route: Any) -> Any:
    """Return the application of a route that is a mount, or another host; None: it is neither."""
    return None if getattr(route, "endpoint", None) is not None else getattr(route, "app", None)


def _own_kinds(route: Any) -> dict[str, str]:
    """The expressions of the route's parameters, as its converters give them."""
    if hasattr(route, "host"):  # its parameters are no part of the path
        return {}
    converters = getattr(route, "param_convertors", None) or {}
    return {name: converter.regex for name, converter in converters.items()}


def _of_handler(route: Any, path: str, segments: dict[str, str]) -> Iterator[Endpoint]:
    handler, methods = route.endpoint, getattr(route, "methods", None)
    reads = frozenset(_credentials(getattr(route, "dependant", None)))
    if methods:
        yield Endpoint(tuple(sorted(methods)), path, handler, False, reads, segments)
    elif isinstance(handler, type):
        for method in _METHODS:
            own = getattr(handler, method.lower(), None)
            if own is not None:
                yield Endpoint((method,), path, _Method(handler, own), segments=segments)
    elif hasattr(route, "methods"):  # any; one of a WebSocket has no such thing
        yield Endpoint((), path, handler, segments=segments)


class _Method:
    """A method of a class, whose own mark goes before that of its class."""

    def __init__(self, owner: type, method: object) -> None:
        self.__wrapped__ = method
        self.__func__ = owner


def _credentials(dependant: Any) -> Iterator[str]:
    """The headers that a FastAPI handler and its dependencies take credentials from."""
    if dependant is None:
        return
    for parameter in dependant.header_params:
        if (name := parameter.alias.lower()).encode() in KNOWN_CREDENTIALS:
            yield name
    scheme = getattr(dependant.call, "model", None)  # of a SecurityBase
    kind = _word(getattr(scheme, "type_", None))
    if kind in ("http", "oauth2", "openIdConnect"):
        yield "authorization"
    elif scheme is not None and kind == "apiKey" and _word(scheme.in_) == "header":
        yield scheme.name.lower()
    for inner in dependant.dependencies:
        yield from _credentials(inner)


def _word(value: Any) -> Any:
    return getattr(value, "value", value)


def is_async(call: Any) -> bool:
    """Say whether a function, a partial of one or a callable object runs on the event loop."""
    while isinstance(call, functools.partial):
        call = call.func
    forms = (call,) if inspect.isclass(call) else (call, getattr(call, "__call__", None))  # noqa: B004
    return any(inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in forms)


def authenticates(app: object) -> bool:
    """Say whether an application has middleware of Starlette's that tells users apart."""
    return any(
        kind.__name__ in ("AuthenticationMiddleware", "SessionMiddleware")
        for middleware in getattr(app, "user_middleware", ())
        for kind in getattr(middleware.cls, "__mro__", ())
    )
