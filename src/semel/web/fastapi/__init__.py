"""FastAPI: the middleware, the operation as a dependency, and both in the OpenAPI document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    import fastapi as _fastapi  # noqa: F401
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.web.fastapi needs FastAPI: pip install 'semel[fastapi]'") from error

from semel.web.fastapi.dependencies import (
    AsyncOp,
    Op,
    OptionalAsyncOp,
    OptionalOp,
    async_operation,
    operation,
    optional_async_operation,
    optional_operation,
    preconditions,
)
from semel.web.fastapi.responses import not_met, respond
from semel.web.fastapi.setup import init_app

if TYPE_CHECKING:
    from semel.web.fastapi.sessions import joined

__all__ = [
    "AsyncOp",
    "Op",
    "OptionalAsyncOp",
    "OptionalOp",
    "async_operation",
    "init_app",
    "joined",
    "not_met",
    "operation",
    "optional_async_operation",
    "optional_operation",
    "preconditions",
    "respond",
]


def __getattr__(name: str) -> Any:
    """Import what needs SQLAlchemy when it is asked for."""
    if name != "joined":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from semel.web.fastapi.sessions import joined

    return joined
