"""Flask: `init_app` puts the middleware in place and takes over the rules of marked views."""

from __future__ import annotations

try:
    import flask as _flask  # noqa: F401
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.web.flask needs Flask: pip install 'semel[flask]'") from error

from semel.web.flask.setup import init_app
from semel.web.flask.views import not_met, operation, preconditions, respond

__all__ = ["init_app", "not_met", "operation", "preconditions", "respond"]
