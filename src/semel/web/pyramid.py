"""Pyramid: `make_wsgi_app` puts Semel between the permissions of an application and its views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

try:
    from pyramid.exceptions import ConfigurationError
    from pyramid.httpexceptions import default_exceptionresponse_view
    from pyramid.response import Response
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.web.pyramid needs Pyramid: pip install pyramid") from error

from semel.core.record import Response as Answer
from semel.idempotency import Idempotency
from semel.web.http.callers import named_caller
from semel.web.wsgi.inside import InsideMiddleware, exchange_of

__all__ = ["make_wsgi_app"]

_REQUEST: Final = "semel.pyramid.request"


def make_wsgi_app(
    config: Any, idempotency: Idempotency, *, caller: Callable[[Any], object] | None = None
) -> InsideMiddleware:
    """Make the WSGI application, protected: in the place of `config.make_wsgi_app()`.

    A key is looked up where the view would be called, after permissions and CSRF checks; tweens and
    response callbacks run for replays too. `caller` is given the request, and finds out who sends
    it (`lambda request: request.authenticated_userid`); see `semel.web.http.callers.named_caller`
    for what it may return. What it raises (`HTTPUnauthorized`) goes out instead: no claim, no
    replay. Raises `ConfigurationError` where views are committed already, and `PolicyError` where
    `Idempotency(scope=…)` names the caller already.
    """
    views = config.introspector.get_category("views") or ()
    callables = {view["introspectable"]["callable"] for view in views}
    if callables - {default_exceptionresponse_view}:  # a Configurator's own
        raise ConfigurationError(
            "semel: views are committed already, and could not be protected; call make_wsgi_app"
            " without config.commit() before it"
        )
    who = None if caller is None else lambda environ: named_caller(caller(environ[_REQUEST]))
    around = InsideMiddleware(_unmade, idempotency, who)

    def inside(view: Any, info: Any) -> Any:
        if info.exception_only:
            return view

        def entered(context: Any, request: Any) -> Any:
            request.environ[_REQUEST] = request
            answer = around.enter(request.environ)
            return view(context, request) if answer is None else _response(answer)

        return entered

    config.add_view_deriver(inside, name="semel")
    config.add_tween("semel.web.pyramid.noting")
    if idempotency.issuer is not None:

        def issue_keys(request: Any) -> Response:
            return _response(around.issue_keys(request.environ))

        config.add_route("semel_keys", idempotency.issuer.path)
        config.add_view(issue_keys, route_name="semel_keys", require_csrf=False)
    around.app = config.make_wsgi_app()
    return around


def noting(handler: Callable[[Any], Any], registry: object) -> Callable[[Any], Any]:
    """Make the tween that notes which responses are exceptions', outside of exception views."""

    def tween(request: Any) -> Any:
        response = handler(request)
        error, exchange = getattr(request, "exception", None), exchange_of(request.environ)
        if error is not None and exchange is not None:
            exchange.note(error.status_int if isinstance(error, Response) else None)
        return response

    return tween


def _response(answer: Answer) -> Response:
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.headers]
    body = answer.body or b""
    if not any(name.lower() == "content-length" for name, _ in headers):
        headers.append(("Content-Length", str(len(body))))
    return Response(status=answer.status, headerlist=headers, app_iter=[body])


def _unmade(environ: object, start_response: object) -> Any:
    raise AssertionError("the application is made below")
