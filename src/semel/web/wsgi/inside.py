"""The middleware in two halves: one in the handler's place, one where the response leaves.

A framework's adapter calls `enter` where its handler would be called: whatever authenticates has
run by then, and what runs after each request runs for replays too. The record is written outside,
once the framework is done with the request.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

from semel.core import problems
from semel.core.policy import Policy
from semel.core.record import Response
from semel.idempotency import Idempotency
from semel.operation import NoOperation, unkeyed
from semel.runtime.drivers import ThreadDriver
from semel.web.http.body import Body, Input
from semel.web.http.callers import ANONYMOUS, Caller, one_way_to_ask
from semel.web.wsgi.exchange import WSGIExchange
from semel.web.wsgi.messages import (
    Environ,
    Headers,
    HeldStart,
    StartResponse,
    WSGIApp,
    WSGIView,
    send_problem,
)
from semel.web.wsgi.middleware import WSGIMiddleware
from semel.web.wsgi.tapped import TappedInput, Untouched

_EXCHANGE: Final = "semel.exchange"
_GO_ON: Final[list[bytes]] = []
"""Stands for the response of a handler that is to run now."""


class InsideExchange(WSGIExchange):
    """One request to an application that Semel stands inside of."""

    policy: Policy | None = None
    """The rules of the request, where it is covered."""
    unkeyed = False
    """Whether its handler runs without a key."""

    _held: HeldStart | None = None
    """The beginning of a response without a key, which may turn out to have needed one."""

    def run(self, environ: Environ) -> Iterable[bytes]:
        """Call the application; return what the server is to send."""
        environ[_EXCHANGE] = self
        asked: list[NoOperation] = []
        before = unkeyed.set(asked)
        try:
            answer = super().run(environ)
        except NoOperation:
            if not self.unkeyed or (self._held is not None and self._held.begun):
                raise
            return send_problem(problems.KEY_MISSING, self._problem_base, self._start_response)
        finally:
            unkeyed.reset(before)
        if self._held is None:
            return answer
        if asked and self._held.failed:
            self.close()
            return send_problem(problems.KEY_MISSING, self._problem_base, self._start_response)
        self._held.begin()
        return answer

    def _started(
        self, status: str, headers: Headers, exc_info: Any = None
    ) -> Callable[[bytes], object]:
        if not self.unkeyed:
            return super()._started(status, headers, exc_info)
        if self._held is None:
            self._held = HeldStart(self._start_response)
        return self._held(status, headers, exc_info)

    def note(self, status: int | None = None) -> None:
        """Note that an exception has left the handler.

        `status` is that of an exception that is a response in itself: a redirect that was raised is
        the end of a success.
        """
        if status is None or status >= 400:
            self.raised = True

    def begin_with(self, around: Callable[[StartResponse], StartResponse]) -> None:
        """Have the response begin by what `around` makes of the server's `start_response`."""
        self._start_response = around(self._start_response)


def exchange_of(environ: Environ) -> InsideExchange | None:
    """Return the exchange of a request, or None where it has not come through the middleware."""
    return cast("InsideExchange | None", environ.get(_EXCHANGE))


class InsideMiddleware(WSGIMiddleware):
    """The outer half around an application, whose adapter calls `enter`.

    `who` finds out who has sent a request. It is called within `enter`, before the body is read.
    """

    def __init__(
        self, app: WSGIApp, idempotency: Idempotency, who: Callable[[Environ], Caller] | None
    ) -> None:
        one_way_to_ask(idempotency, who)
        super().__init__(app, idempotency)
        self.identified = who is not None
        self._who = who

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        self._meet()
        environ["wsgi.input"] = TappedInput(environ["wsgi.input"])
        return self._exchange(start_response).run(environ)

    def _exchange(self, start_response: StartResponse) -> InsideExchange:
        return InsideExchange(self.app, self.problem_base, start_response)

    def enter(self, environ: Environ) -> Response | None:
        """Return what is sent in place of the handler's response. None: the handler is to run.

        Called where whatever authenticates the request has let it through. Raises what `who` does.
        """
        exchange, path = exchange_of(environ), environ.get("PATH_INFO", "")
        policy = self.idempotency.routes.find(environ["REQUEST_METHOD"], path)
        if policy is None or path == self._keys_path:
            return None
        if exchange is None:
            if not policy.required and "HTTP_IDEMPOTENCY_KEY" not in environ:
                return None
            raise RuntimeError(
                "the request has not come through Semel's middleware, which writes its record:"
                " wrap the WSGI application (app.wsgi_app) instead of replacing it"
            )
        if exchange.begun:  # by the completer
            return None
        exchange.policy = policy
        if not isinstance(environ["wsgi.input"], TappedInput):  # another wrapper has its own
            environ["wsgi.input"] = TappedInput(environ["wsgi.input"])
        tapped = environ["wsgi.input"]
        sent = _Sent(exchange, tapped)
        body = self._covered(policy, {**environ, "wsgi.input": Untouched(tapped)}, sent)
        return None if body is _GO_ON else sent.response(body)

    def missing_key(self, environ: Environ, error: Exception) -> Response | None:
        """Return the refusal where a handler asked in vain for the operation, else None."""
        exchange = exchange_of(environ)
        if isinstance(error, NoOperation) and exchange is not None and exchange.unkeyed:
            return problems.KEY_MISSING.response(self.problem_base)
        return None

    def issue_keys(self, environ: Environ) -> Response:
        """Answer a request for keys."""
        sent = _Sent()
        return sent.response(self._issue(environ, sent))

    def _known(self, request: WSGIView) -> Caller:
        exchange = exchange_of(request.native)
        policy = exchange.policy if exchange is not None else None
        if self._who is not None and not (policy is not None and policy.shared):
            caller = self._who(request.native)
            if caller != ANONYMOUS:
                return caller
        return super()._known(request)

    def _operate(
        self, driver: ThreadDriver, body: Body, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        _sent(start_response).exchange.begin(driver, body)
        return self._bypass(environ, start_response)

    def _unprotected(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        _sent(start_response).exchange.unkeyed = True
        return self._bypass(environ, start_response)

    def _bypass(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if isinstance(environ["wsgi.input"], Input):  # the body has been read
            _sent(start_response).tapped.replace(environ["wsgi.input"])
        return _GO_ON

    def _handing_out(self, caller: Caller, start_response: StartResponse) -> StartResponse:
        _sent(start_response).exchange.begin_with(functools.partial(super()._handing_out, caller))
        return start_response


class _Sent:
    """A `start_response` that keeps what it is told, for a framework to send."""

    exchange: InsideExchange
    tapped: TappedInput

    def __init__(self, *of: Any) -> None:
        if of:
            self.exchange, self.tapped = of

    def __call__(self, status: str, headers: Headers, exc_info: Any = None) -> Any:
        self._status, self._headers = status, headers
        return None

    def response(self, body: Iterable[bytes]) -> Response:
        """Return the response."""
        fields = tuple((n.encode("latin-1"), v.encode("latin-1")) for n, v in self._headers)
        return Response(int(self._status.split(" ", 1)[0]), fields, b"".join(body))


def _sent(start_response: StartResponse) -> _Sent:
    return cast("_Sent", start_response)
