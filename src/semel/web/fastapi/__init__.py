"""FastAPI: the middleware, the operation as a dependency, and both in the OpenAPI document."""

from __future__ import annotations

try:
    import fastapi as _fastapi  # noqa: F401
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.web.fastapi needs FastAPI: pip install 'semel[fastapi]'") from error

from semel.web.fastapi.dependencies import (
    AsyncOp,
    Op,
    async_operation,
    operation,
    preconditions,
)
from semel.web.fastapi.responses import not_met, respond
from semel.web.fastapi.setup import init_app

__all__ = [
    "AsyncOp",
    "Op",
    "async_operation",
    "init_app",
    "not_met",
    "operation",
    "preconditions",
    "respond",
]
