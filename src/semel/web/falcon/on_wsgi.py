"""Semel around a WSGI application, and inside its other middleware."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import falcon

from semel.core.record import Response
from semel.idempotency import Idempotency
from semel.web.http.callers import named_caller
from semel.web.wsgi.inside import InsideMiddleware, exchange_of

_REQUEST: Final = "semel.falcon.request"

Caller = Callable[[falcon.Request], object]


def protect(app: Any, idempotency: Idempotency, caller: Caller | None) -> InsideMiddleware:
    """Put Semel around an application, and inside its other middleware."""
    who = None if caller is None else lambda environ: named_caller(caller(environ[_REQUEST]))
    around = InsideMiddleware(app, idempotency, who)
    app.add_middleware(FalconMiddleware(around))
    if idempotency.issuer is not None:
        app.add_route(idempotency.issuer.path, _Keys(around))
    return around


class FalconMiddleware:
    """The half of Semel that Falcon calls between its middleware and the responder."""

    def __init__(self, around: InsideMiddleware) -> None:
        self._around = around

    def process_resource(
        self, req: falcon.Request, resp: falcon.Response, resource: object, params: object
    ) -> None:
        """Look the key up, where the responder is to be called."""
        req.env[_REQUEST] = req
        answer = self._around.enter(req.env)
        if answer is not None:
            _send(answer, resp)
            resp.complete = True

    def process_response(
        self, req: falcon.Request, resp: falcon.Response, resource: object, req_succeeded: bool
    ) -> None:
        """Note whether an exception has left the responder."""
        exchange = exchange_of(req.env)
        if not req_succeeded and exchange is not None:
            exchange.note(resp.status_code)


class _Keys:
    """The resource that issues keys."""

    def __init__(self, around: InsideMiddleware) -> None:
        self._around = around

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        _send(self._around.issue_keys(req.env), resp)


def _send(answer: Response, resp: falcon.Response) -> None:
    resp.status = answer.status
    for name, value in answer.headers:
        resp.append_header(name.decode("latin-1"), value.decode("latin-1"))
    resp.data = answer.body or b""
