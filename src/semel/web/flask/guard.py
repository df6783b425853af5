"""Semel within a Flask application: between its `before_request` functions and its views."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Final

from flask import Flask, Response, after_this_request, request
from werkzeug.exceptions import HTTPException

from semel.applications import Endpoint
from semel.core import problems
from semel.core.commands import StoreError
from semel.core.record import Response as Answer
from semel.idempotency import Idempotency
from semel.web.conditional import NotMet
from semel.web.flask.callers import Ask, FlaskView, ask
from semel.web.flask.exchange import FlaskExchange
from semel.web.flask.views import respond
from semel.web.wsgi.endpoints import flask_endpoints
from semel.web.wsgi.inside import InsideMiddleware, exchange_of
from semel.web.wsgi.messages import Environ, StartResponse

log = logging.getLogger("semel")

KEYS_ENDPOINT: Final = "semel_keys"
"""The endpoint of the route that issues keys."""

Call = Callable[..., Any]


class FlaskGuard(InsideMiddleware):
    """Protects one Flask application, from within.

    A key is looked up once Flask's `before_request` functions have let the request through, in the
    place of the view. Replays and refusals are what a view returns: they pass through the
    `after_request` functions. The record is written outside, where the response leaves Flask,
    after its teardown functions.
    """

    def __init__(self, app: Flask, idempotency: Idempotency, caller: Ask | None) -> None:
        who = None if caller is None else lambda environ: ask(app, caller)
        super().__init__(app.wsgi_app, idempotency, who)
        self._flask = app
        self.caller = caller
        if self._keys_path is not None:
            app.add_url_rule(self._keys_path, KEYS_ENDPOINT, self._issue_keys, methods=["POST"])
        # Bound to the instance, as Flask-RESTful does it; Flask 3.2 hands its context on to each.
        app.preprocess_request = functools.partial(self._preprocess, app.preprocess_request)  # type: ignore[method-assign]
        app.dispatch_request = functools.partial(self._answered, app.dispatch_request)  # type: ignore[method-assign]
        app.finalize_request = functools.partial(self._finalize, app.finalize_request)  # type: ignore[method-assign]
        app.wsgi_app = self  # type: ignore[method-assign]

    def _exchange(self, start_response: StartResponse) -> FlaskExchange:
        return FlaskExchange(self.app, self.problem_base, start_response)

    def _view(self, environ: Environ) -> FlaskView:
        return FlaskView(self._flask, environ)

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints of the application."""
        app = self._flask
        known = (
            self.identified
            or getattr(app, "login_manager", None) is not None
            or app.secret_key is not None  # its sessions say whose they are
        )
        found = flask_endpoints(app, leave_out=KEYS_ENDPOINT)
        return [each._replace(identified=known) for each in found]

    def _preprocess(self, preprocess: Call, *args: Any) -> Any:
        """Run the functions that come before the view, and then enter the operation.

        What Flask answers by itself passes untouched: no route, another method, a redirect to the
        path with a slash.
        """
        returned = self._answered(preprocess, *args)
        if returned is not None or request.routing_exception is not None:
            return returned
        answer = self.enter(request.environ)
        return None if answer is None else respond(answer)

    def _answered(self, call: Call, *args: Any) -> Any:
        """Answer what Semel's own functions raise, before an error handler sees it."""
        try:
            return call(*args)
        except Exception as error:
            self._note(error)
            answer = self._own_answer(error)
            if answer is None:
                raise
            return respond(answer)

    def _note(self, error: Exception) -> None:
        exchange = exchange_of(request.environ)
        if exchange is None:
            return
        status = None
        if isinstance(error, HTTPException):
            status = error.code if error.response is None else error.response.status_code
        exchange.note(status)

    def _own_answer(self, error: Exception) -> Answer | None:
        base = self.problem_base
        if isinstance(error, NotMet):
            return error.response(base)
        if isinstance(error, StoreError):  # in `op.connection()`
            log.warning("%s", error)
            return problems.OUTCOME_UNRECORDED.response(base)
        return self.missing_key(request.environ, error)

    def _finalize(self, finalize: Call, *args: Any, **named: Any) -> Any:
        """Make the response, and run the functions that come after each request."""
        exchange = exchange_of(request.environ)
        if isinstance(exchange, FlaskExchange) and exchange.begun:
            exchange.forget()
            after_this_request(exchange.took)
        try:
            return finalize(*args, **named)
        except Exception as error:
            self._note(error)
            raise

    def _issue_keys(self) -> Response:
        return respond(self.issue_keys(request.environ))
