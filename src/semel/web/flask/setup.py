"""`init_app`: puts Semel into a Flask application."""

from __future__ import annotations

from flask import Flask

from semel.idempotency import Idempotency
from semel.web.flask.callers import Ask
from semel.web.flask.guard import FlaskGuard
from semel.web.http.callers import one_way_to_ask, there_already

__all__ = ["init_app"]


def init_app(app: Flask, idempotency: Idempotency, *, caller: Ask | None = None) -> None:
    """Protect an application, before or after its views and blueprints are declared.

    `caller` is a function without parameters that finds out who sends the present request, such as
    `lambda: current_user`; see `semel.web.http.callers.named_caller` for what it may return. It is
    called within the request's context, once the `before_request` functions have let the request
    through and before a key is looked up. What it raises (`abort(401)`) or returns as a response
    goes out instead: no claim, no replay. Without it the caller is the server's authenticated user
    (`REMOTE_USER`), Flask-Login's, whom the session names, the session that the server keeps, or
    the request's credentials, in this order.

    A second call with the same objects does nothing. Raises `PolicyError` where it names another
    caller or `Idempotency`, and where `Idempotency(scope=…)` names the caller already.
    """
    one_way_to_ask(idempotency, caller)
    if not there_already(app.extensions.get("semel"), idempotency, caller):
        app.extensions["semel"] = FlaskGuard(app, idempotency, caller)
