"""Callers of a Flask application: Flask-Login's user, or whom the session names."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from flask import Flask, abort, request, session
from werkzeug.local import LocalProxy
from werkzeug.wrappers import Response

from semel.web.http.callers import ANONYMOUS, Caller, named_caller, session_user
from semel.web.wsgi.messages import Environ, WSGIView

Ask = Callable[[], object]
"""Finds out who has sent the present request; called within its context."""


class FlaskView(WSGIView):
    """A request to Flask, as a `scope` or `key` function and the way in see it."""

    def __init__(self, app: Flask, environ: Environ) -> None:
        super().__init__(environ)
        self._app = app

    def user(self) -> str | None:
        """Return the server's authenticated user, Flask-Login's, or whom the session names."""
        return super().user() or self._logged_in() or session_user(session)

    def session(self, cookie: str | None) -> bytes:
        """Return the id of a session that the server keeps.

        Flask's own cookie carries what the session holds: its value changes with each flash
        message, and says no more of the caller than `user` does.
        """
        own = self._app.config["SESSION_COOKIE_NAME"]
        if cookie is not None and cookie != own:
            return super().session(cookie)
        sid = getattr(session, "sid", None)
        if isinstance(sid, bytes):
            sid = sid.decode("latin-1")
        # A session that begins with this request has an id that no retry can know.
        return sid.encode() if sid and sid in request.cookies.get(own, "") else b""

    def _logged_in(self) -> str | None:
        if getattr(self._app, "login_manager", None) is None:
            return None
        return _name(importlib.import_module("flask_login").current_user)


def ask(app: Flask, caller: Ask) -> Caller:
    """Return whom the service's own function names, by its result. Raises what it raises.

    A response that it returns is sent as the refusal.
    """
    found = app.ensure_sync(caller)()
    if isinstance(found, Response):
        abort(found)
    return _named(found)


def _named(user: object) -> str:
    if isinstance(user, LocalProxy):
        user = user._get_current_object()
    try:
        return named_caller(user)
    except TypeError:
        get_id = getattr(user, "get_id", None)  # Flask-Login's contract
        if get_id is None:
            raise
        return named_caller(get_id())


def _name(user: object) -> str | None:
    """Return the name of a user that was found, not asked for."""
    try:
        name = _named(user)
    except TypeError:
        return None
    return None if name == ANONYMOUS else name.removeprefix("user:")
