"""Flask: `init_app` puts the middleware in place and takes over the rules of marked views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    import flask as _flask  # noqa: F401
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.web.flask needs Flask: pip install 'semel[flask]'") from error

from semel.web.flask.setup import init_app
from semel.web.flask.views import not_met, operation, preconditions, respond

if TYPE_CHECKING:
    from semel.web.flask.sessions import join_flask_sqlalchemy

__all__ = [
    "init_app",
    "join_flask_sqlalchemy",
    "not_met",
    "operation",
    "preconditions",
    "respond",
]


def __getattr__(name: str) -> Any:
    """Import what needs SQLAlchemy when it is asked for."""
    if name != "join_flask_sqlalchemy":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from semel.web.flask.sessions import join_flask_sqlalchemy

    return join_flask_sqlalchemy
