"""Flask: `init_app` puts the middleware in place and takes over the rules of marked views."""

from __future__ import annotations

import logging
import re
from typing import Any

try:
    from flask import Flask
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.web.flask needs Flask: pip install 'semel[flask]'") from error

import dataclasses

from semel.core import problems
from semel.core.commands import StoreError
from semel.core.problems import Problem
from semel.idempotency import POLICY_ATTRIBUTE, Idempotency
from semel.operation import NoOperation, SyncOperation, current_sync_operation
from semel.web.wsgi import WSGIMiddleware

log = logging.getLogger("semel")

_CONVERTER = re.compile(r"<(?:([a-zA-Z_]\w*)(?:\([^)]*\))?:)?([a-zA-Z_]\w*)>")


def operation() -> SyncOperation:
    """Return the operation of the present view. A view that takes it needs a key."""
    return current_sync_operation()


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

    def refuse(problem: Problem) -> Any:
        status, fields, body = problem.response(idempotency.problem_base)
        headers = [(name.decode(), value.decode()) for name, value in fields]
        return app.response_class(body, status, headers)

    @app.errorhandler(NoOperation)
    def needs_a_key(error: NoOperation) -> Any:
        return refuse(problems.KEY_MISSING)

    @app.errorhandler(StoreError)
    def store_failed(error: StoreError) -> Any:  # in `op.connection()`
        log.warning("%s", error)
        return refuse(problems.OUTCOME_UNRECORDED)


def _pattern(rule: str) -> str:
    kinds = {"path": ":path", "int": ":int", "float": ":float", "uuid": ":uuid"}
    return _CONVERTER.sub(lambda m: f"{{{m.group(2)}{kinds.get(m.group(1) or '', '')}}}", rule)
