"""Callers of a Flask application: Flask-Login's user, or whom the session names."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from flask import Flask, abort, request, session
from werkzeug.local import LocalProxy
from werkzeug.wrappers import Response

from semel.web.http.callers import ANONYMOUS, Caller, name_of, session_user
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
        try:
            return _name(importlib.import_module("flask_login").current_user)
        except TypeError:  # it was found, not asked for
            return None


def ask(app: Flask, caller: Ask) -> Caller:
    """Return whom the service's own function names, by its result. Raises what it raises.

    A response that it returns is sent as the refusal.
    """
    found = app.ensure_sync(caller)()
    if isinstance(found, Response):
        abort(found)
    name = _name(found)
    return ANONYMOUS if name is None else f"user:{name}"


def _name(user: object) -> str | None:
    if isinstance(user, LocalProxy):
        user = user._get_current_object()
    try:
        return name_of(user)
    except TypeError:
        get_id = getattr(user, "get_id", None)  # Flask-Login's contract
        if get_id is None:
            raise
        return name_of(get_id())
