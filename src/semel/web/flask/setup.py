"""`init_app`: puts Semel into a Flask application."""

from __future__ import annotations

import dataclasses
import logging
import re

from flask import Flask, Response

from semel.applications import POLICY_ATTRIBUTE
from semel.core import problems
from semel.core.commands import StoreError
from semel.idempotency import Idempotency
from semel.operation import NoOperation
from semel.web.conditional import NotMet
from semel.web.flask.views import respond
from semel.web.wsgi.middleware import WSGIMiddleware

__all__ = ["init_app"]

log = logging.getLogger("semel")

_CONVERTER = re.compile(r"<(?:([a-zA-Z_]\w*)(?:\([^)]*\))?:)?([a-zA-Z_]\w*)>")


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
