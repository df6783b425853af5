"""Endpoints of a WSGI application whose routes are Flask's, or like them, found by their shape."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Final

from semel.applications import SAFE, Endpoint

_DEEPEST: Final = 100
"""Applications within applications; more of them is a circle."""
_CONVERTER: Final = re.compile(r"<(?:([a-zA-Z_]\w*)(?:\(.*?\))?:)?([a-zA-Z_]\w*)>")


def endpoints_of(app: object, prefix: str = "", depth: int = 0) -> Iterator[Endpoint]:
    """Find the endpoints of a Flask application, and of what Werkzeug's dispatcher mounts.

    `app` may be within any number of middlewares that call what they wrap `app`. Another has no
    endpoints that can be seen.
    """
    while app is not None and depth < _DEEPEST:
        depth += 1
        owner = getattr(app, "__self__", app)  # `app.wsgi_app` is a method of the application
        if hasattr(owner, "url_map") and hasattr(owner, "view_functions"):
            yield from flask_endpoints(owner, prefix)
            return
        mounts = getattr(app, "mounts", None)
        if isinstance(mounts, Mapping):
            for below, mounted in mounts.items():
                yield from endpoints_of(mounted, prefix + below, depth)
        app = getattr(app, "app", None)


def flask_endpoints(app: Any, prefix: str = "", *, leave_out: str = "") -> Iterator[Endpoint]:
    """Return the endpoints of one Flask application, of blueprints and class-based views too.

    `leave_out` is the name of one that is Semel's own.
    """
    for rule in app.url_map.iter_rules():
        view = app.view_functions.get(rule.endpoint)
        if rule.endpoint == leave_out or re.search("[{}]", rule.rule):  # no pattern says a brace
            continue
        path = prefix + _CONVERTER.sub(_parameter, rule.rule)
        converters = getattr(rule, "_converters", {})
        kinds = {name: converter.regex for name, converter in converters.items()}
        methods = sorted(rule.methods or ())
        for own, handler in handlers_of(view, methods):
            yield Endpoint(own, path, handler, segments=kinds)


def _parameter(match: re.Match[str]) -> str:
    kind, name = match.groups()
    return f"{{{name}}}" if kind in (None, "default", "string") else f"{{{name}:{kind}}}"


def handlers_of(view: Any, methods: list[str]) -> Iterator[tuple[tuple[str, ...], object]]:
    """The methods of a view, and what may carry the mark for them: of a class, several things."""
    cls = getattr(view, "view_class", None)
    if cls is None:
        yield tuple(methods), view
        return
    for method in methods:
        own = getattr(cls, method.lower(), None)
        if method not in SAFE:
            own = own or getattr(cls, "dispatch_request", None)
            around = SimpleNamespace(__wrapped__=cls, __func__=view)
            yield (method,), SimpleNamespace(__wrapped__=own, __func__=around)
        elif own is not None:
            yield (method,), own
