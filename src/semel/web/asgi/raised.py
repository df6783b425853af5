"""Exception handlers of Starlette: each tells the operation what was raised."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from semel.operation import note_raised
from semel.web.asgi.endpoints import is_async, layers_of
from semel.web.asgi.messages import OPERATION, ASGIScope

Handlers = Mapping[Any, Callable[..., Any]]


def noting(handlers: Handlers) -> dict[Any, Callable[..., Any]]:
    """Return Starlette's exception handlers so that each tells the operation what was raised."""
    return {kind: _noted(handler) for kind, handler in handlers.items()}


def _noted(handler: Callable[..., Any]) -> Callable[..., Any]:
    if getattr(handler, "__semel_noted__", False):
        return handler
    noted: Any
    if is_async(handler):

        @functools.wraps(handler)
        async def noted(connection: Any, error: Exception) -> Any:
            _note(connection.scope, error)
            return await handler(connection, error)

    else:

        @functools.wraps(handler)
        def noted(connection: Any, error: Exception) -> Any:
            _note(connection.scope, error)
            return handler(connection, error)

    noted.__semel_noted__ = True
    return noted  # type: ignore[no-any-return]


def _note(scope: ASGIScope, error: Exception) -> None:
    if OPERATION in scope:  # else another request of the same task, as a test client's
        note_raised(error)


def note_within(app: Any) -> None:
    """Have the exception handlers of a Starlette application, whose middleware is built, note."""
    for layer in layers_of(app):
        for name in ("_exception_handlers", "_status_handlers"):
            handlers = getattr(layer, name, None)
            if isinstance(handlers, dict):
                handlers.update(noting(handlers))
