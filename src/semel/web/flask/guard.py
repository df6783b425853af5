"""Semel within a Flask application: between its `before_request` functions and its views."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

from flask import Flask, Response, after_this_request, request

from semel.applications import Endpoint
from semel.core import problems
from semel.core.commands import StoreError
from semel.core.policy import Policy
from semel.core.record import Response as Answer
from semel.idempotency import Idempotency
from semel.operation import NoOperation
from semel.runtime.drivers import ThreadDriver
from semel.web.conditional import NotMet
from semel.web.flask.callers import Ask, FlaskView, ask
from semel.web.flask.exchange import EXCHANGE, FlaskExchange, TappedInput, Untouched
from semel.web.flask.views import respond
from semel.web.http.body import Body, Input
from semel.web.http.callers import Caller, scope_name
from semel.web.wsgi.endpoints import flask_endpoints
from semel.web.wsgi.messages import Environ, Headers, StartResponse
from semel.web.wsgi.middleware import WSGIMiddleware

log = logging.getLogger("semel")

KEYS_ENDPOINT: Final = "semel_keys"
"""The endpoint of the route that issues keys."""

_GO_ON: Final[list[bytes]] = []
"""Stands for the response of a view that is to run now."""

Call = Callable[..., Any]


class FlaskGuard(WSGIMiddleware):
    """Protects one Flask application, from within.

    A key is looked up once Flask's `before_request` functions have let the request through, in the
    place of the view. Replays and refusals are what a view returns: they pass through the
    `after_request` functions. The record is written outside, where the response leaves Flask,
    after its teardown functions.
    """

    def __init__(self, app: Flask, idempotency: Idempotency, caller: Ask | None) -> None:
        super().__init__(app.wsgi_app, idempotency)
        self._caller = caller
        self._flask = app
        if self._keys_path is not None:
            app.add_url_rule(self._keys_path, KEYS_ENDPOINT, self._issue_keys, methods=["POST"])
        # Bound to the instance, as Flask-RESTful does it; Flask 3.2 hands its context on to each.
        app.preprocess_request = functools.partial(self._preprocess, app.preprocess_request)  # type: ignore[method-assign]
        app.dispatch_request = functools.partial(self._dispatch, app.dispatch_request)  # type: ignore[method-assign]
        app.finalize_request = functools.partial(self._finalize, app.finalize_request)  # type: ignore[method-assign]
        app.wsgi_app = self  # type: ignore[method-assign]

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        self._meet()
        return self._exchange(start_response).run(environ)

    def _exchange(self, start_response: StartResponse) -> FlaskExchange:
        return FlaskExchange(self.app, self.problem_base, start_response)

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints of the application."""
        app = self._flask
        known = (
            self._caller is not None
            or getattr(app, "login_manager", None) is not None
            or app.secret_key is not None  # its sessions say whose they are
        )
        found = flask_endpoints(app, leave_out=KEYS_ENDPOINT)
        return [each._replace(identified=known) for each in found]

    def same(self, idempotency: Idempotency, caller: Ask | None) -> bool:
        """Say whether the application is protected by these."""
        return idempotency is self._idempotency and caller in (None, self._caller)

    # --- the hooks ---------------------------------------------------------------------------

    def _preprocess(self, preprocess: Call, *args: Any) -> Any:
        """Run the functions that come before the view, and then enter the operation."""
        exchange = request.environ.get(EXCHANGE)
        policy = None
        if exchange is None or not exchange.begun:  # begun: by the completer
            policy = self._policy()
        if policy is None:
            return self._answered(preprocess, *args)
        if exchange is None:
            if not policy.required and "HTTP_IDEMPOTENCY_KEY" not in request.environ:
                return self._answered(preprocess, *args)
            raise RuntimeError(
                f"{self._flask.name}: the request has not come through app.wsgi_app, which Semel"
                " needs: wrap app.wsgi_app instead of replacing it"
            )
        exchange.policy = policy
        request.environ["wsgi.input"] = TappedInput(request.environ["wsgi.input"])
        returned = self._answered(preprocess, *args)
        return self._enter(policy) if returned is None else returned

    def _policy(self) -> Policy | None:
        """Return the rules of the present request, or None where it passes untouched.

        What Flask answers by itself does: no route, another method, a redirect to the path with a
        slash.
        """
        if request.routing_exception is not None or request.endpoint == KEYS_ENDPOINT:
            return None
        path = request.environ.get("PATH_INFO", "")
        return self._idempotency.routes.find(request.method, path)

    def _dispatch(self, dispatch: Call, *args: Any) -> Any:
        """Run the view."""
        return self._answered(dispatch, *args)

    def _answered(self, call: Call, *args: Any) -> Any:
        """Answer what Semel's own functions raise, before an error handler sees it."""
        exchange = request.environ.get(EXCHANGE)
        try:
            return call(*args)
        except Exception as error:
            if exchange is not None:
                exchange.note(error)
            answer = self._own_answer(error, unkeyed=exchange is not None and exchange.unkeyed)
            if answer is None:
                raise
            return respond(answer)

    def _own_answer(self, error: Exception, *, unkeyed: bool) -> Answer | None:
        base = self.problem_base
        if isinstance(error, NotMet):
            return error.response(base)
        if isinstance(error, NoOperation) and unkeyed:
            return problems.KEY_MISSING.response(base)
        if isinstance(error, StoreError):  # in `op.connection()`
            log.warning("%s", error)
            return problems.OUTCOME_UNRECORDED.response(base)
        return None

    def _finalize(self, finalize: Call, *args: Any, **named: Any) -> Any:
        """Make the response, and run the functions that come after each request."""
        exchange = request.environ.get(EXCHANGE)
        if exchange is None:
            return finalize(*args, **named)
        if exchange.begun:
            exchange.forget()
            after_this_request(exchange.took)
        try:
            response = finalize(*args, **named)
        except Exception as error:
            exchange.note(error)
            raise
        if exchange.hands_out_to is not None:
            issuer = self._idempotency.issuer
            assert issuer is not None
            (key,) = issuer.issue(scope_name(exchange.hands_out_to)).keys
            response.headers.add("Idempotency-Key", key)
        return response

    # --- the way in, in the place of the view ------------------------------------------------

    def _enter(self, policy: Policy) -> Response | None:
        """Return a replay or a refusal. None: the view is to run."""
        sent = _Sent()
        body = self._covered(policy, self._untouched(), sent)
        return None if body is _GO_ON else sent.response(body)

    def _untouched(self) -> Environ:
        """Return the request with its body as if nobody had read of it."""
        return {**request.environ, "wsgi.input": Untouched(request.environ["wsgi.input"])}

    def _view(self, environ: Environ) -> FlaskView:
        return FlaskView(self._flask, environ)

    def _known(self, request_view: Any) -> Caller:
        policy = _present().policy
        if self._caller is None or (policy is not None and policy.shared):
            return super()._known(request_view)
        return ask(self._flask, self._caller)

    def _operate(
        self, driver: ThreadDriver, body: Body, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        self._bypass(environ, start_response)
        _present().begin(driver, body)
        return _GO_ON

    def _unprotected(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        _present().unkeyed = True
        return self._bypass(environ, start_response)

    def _bypass(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if isinstance(environ["wsgi.input"], Input):
            request.environ["wsgi.input"].replace(environ["wsgi.input"])
        return _GO_ON

    def _handing_out(self, caller: Caller, start_response: StartResponse) -> StartResponse:
        _present().hands_out_to = caller
        return start_response

    def _issue_keys(self) -> Response:
        sent = _Sent()
        return sent.response(self._issue(request.environ, sent))


def _present() -> FlaskExchange:
    exchange: FlaskExchange = request.environ[EXCHANGE]
    return exchange


class _Sent:
    """A `start_response` that keeps what it is told, for a view to return."""

    def __call__(self, status: str, headers: Headers, exc_info: Any = None) -> Any:
        self._status, self._headers = status, headers
        return None

    def response(self, body: Iterable[bytes]) -> Response:
        """Return it as Flask's response."""
        fields = tuple((n.encode("latin-1"), v.encode("latin-1")) for n, v in self._headers)
        return respond(Answer(int(self._status.split(" ", 1)[0]), fields, b"".join(body)))
