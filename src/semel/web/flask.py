"""Flask: `init_app` puts the middleware in place and takes over the rules of marked views."""

from __future__ import annotations

import logging
import re

try:
    from flask import Flask, Response, current_app, request
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.web.flask needs Flask: pip install 'semel[flask]'") from error

import dataclasses

from semel.core import problems
from semel.core.commands import StoreError
from semel.core.record import Response as Answer
from semel.idempotency import POLICY_ATTRIBUTE, Idempotency
from semel.operation import NoOperation, Operation, current_operation
from semel.web.conditional import NotMet, Preconditions
from semel.web.wsgi.middleware import WSGIMiddleware

__all__ = ["init_app", "not_met", "operation", "preconditions", "respond"]

log = logging.getLogger("semel")

_CONVERTER = re.compile(r"<(?:([a-zA-Z_]\w*)(?:\([^)]*\))?:)?([a-zA-Z_]\w*)>")


def operation() -> Operation:
    """Return the operation of the present view. A view that takes it needs a key."""
    return current_operation()


def preconditions() -> Preconditions:
    """Return what the present request asks for.

    Its `require(…)` refuses with 304, 412 or 428; see `semel.web.conditional`.
    """
    return Preconditions.from_environ(request.environ)


def respond(answer: Answer) -> Response:
    """Return an answer of `semel.web.conditional` as what a view returns."""
    response = current_app.response_class(answer.body, answer.status)
    response.headers.clear()  # a page's Content-Type, and the length of a HEAD's empty body
    for name, value in answer.headers:
        response.headers.add(name.decode("latin-1"), value.decode("latin-1"))
    return response


def not_met(error: NotMet) -> Response:
    """Answer `NotMet` without `init_app`: `app.register_error_handler(NotMet, not_met)`."""
    return respond(error.response())


def init_app(app: Flask, idempotency: Idempotency) -> None:
    """Protect an application. Call it after its views are defined."""
    for rule in app.url_map.iter_rules():
        view = app.view_functions.get(rule.endpoint)
        policy = getattr(view, POLICY_ATTRIBUTE, None)
        if policy is None:
            continue
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS", "GET"}):
            own = policy
            if method not in own.methods:
                own = dataclasses.replace(own, methods=(*own.methods, method))
            idempotency.routes.add(f"{method} {_pattern(rule.rule)}", own)
    app.extensions["semel"] = idempotency
    app.wsgi_app = WSGIMiddleware(app.wsgi_app, idempotency)  # type: ignore[method-assign]

    base = idempotency.problem_base

    @app.errorhandler(NoOperation)
    def needs_a_key(error: NoOperation) -> Response:
        return respond(problems.KEY_MISSING.response(base))

    @app.errorhandler(StoreError)
    def store_failed(error: StoreError) -> Response:  # in `op.connection()`
        log.warning("%s", error)
        return respond(problems.OUTCOME_UNRECORDED.response(base))

    @app.errorhandler(NotMet)
    def refuse(error: NotMet) -> Response:
        return respond(error.response(base))


def _pattern(rule: str) -> str:
    kinds = {"path": ":path", "int": ":int", "float": ":float", "uuid": ":uuid"}
    return _CONVERTER.sub(lambda m: f"{{{m.group(2)}{kinds.get(m.group(1) or '', '')}}}", rule)
