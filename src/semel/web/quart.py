"""Quart: `init_app` puts Semel into an application, between its hooks and its views."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

try:
    from quart import Quart, Request, Response, request, session
    from werkzeug.datastructures import Headers
    from werkzeug.wrappers import Response as PlainResponse
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.web.quart needs Quart: pip install 'semel[quart]'") from error

from semel.applications import Endpoint
from semel.idempotency import Idempotency
from semel.operation import AsyncOperation, Operation, current_async_operation, current_operation
from semel.web.asgi.inside import (
    UNKNOWN,
    HandlerCall,
    HandlerMiddleware,
    Received,
    ask,
    rules_beside,
    send_body,
)
from semel.web.asgi.messages import ASGIScope, Send
from semel.web.conditional import Preconditions
from semel.web.http.callers import session_user, there_already
from semel.web.wsgi.endpoints import flask_endpoints, handlers_of

__all__ = ["async_operation", "init_app", "operation", "preconditions"]

Caller = Callable[[], object]


def init_app(app: Quart, idempotency: Idempotency, *, caller: Caller | None = None) -> None:
    """Protect an application: its views run under their requests' keys.

    Semel stands between the application's hooks and its views, whatever the order of the calls: a
    request comes to it after `before_request`, and a replay goes out through `after_request`, where
    quart-cors and the session are. Views may come before or after this call.

    `caller` says who has sent the request: a function within the request's context, plain or async,
    that returns the user or the user's id (`lambda: current_user.auth_id`), and aborts with 401 or
    403 where it is nobody. It is asked before a claim and before a replay. Without it: whom the
    session names, else the request's credentials.

    A second call with the same objects does nothing. Raises `PolicyError` where it names others,
    and where `Idempotency(scope=…)` names the caller, too.
    """
    if there_already(app.extensions.get("semel"), idempotency, caller):
        return

    def endpoints() -> list[Endpoint]:
        known = caller is not None or app.secret_key is not None  # its sessions say whose they are
        found = flask_endpoints(app, leave_out=_ISSUING)
        return [each._replace(identified=known) for each in found]

    middleware = HandlerMiddleware(
        idempotency, who=caller, endpoints=endpoints, asks=idempotency.scope is None
    )
    app.extensions["semel"] = middleware
    middleware.complete_through(app)  # type: ignore[arg-type]
    issuer = idempotency.issuer
    dispatch = app.dispatch_request
    with_context = "ctx" in inspect.signature(app.handle_user_exception).parameters  # Quart 0.23

    async def dispatch_request(context: Any = None) -> Any:
        asked: Request = context.request if context is not None else request
        rule = asked.url_rule
        if asked.routing_exception is not None or rule is None:
            return await dispatch(context)
        if asked.method == "OPTIONS" and rule.provide_automatic_options:
            return await dispatch(context)
        handle: Callable[..., Any] = app.handle_user_exception
        if with_context:
            handle = functools.partial(handle, context)
        call = QuartCall(app, asked, lambda: dispatch(context), handle, caller)
        if issuer is not None and rule.endpoint == _ISSUING:
            return await middleware.issue(call)
        return await middleware.around(call)

    async def issue() -> str:
        """Have a place in the URL map; `dispatch_request` answers."""
        return ""

    if issuer is not None and issuer.path is not None:
        app.add_url_rule(issuer.path, _ISSUING, issue, methods=["POST"])
    app.dispatch_request = dispatch_request  # type: ignore[method-assign,assignment]

    app.before_serving(middleware.begin)
    app.after_serving(middleware.end)


class QuartCall(HandlerCall[Any]):
    """A request at its view."""

    def __init__(
        self,
        app: Quart,
        asked: Request,
        dispatch: Callable[[], Any],
        handle: Callable[..., Any],
        caller: Caller | None,
    ) -> None:
        assert asked.url_rule is not None
        self.scope = cast(ASGIScope, asked.scope)
        self.path = asked.path
        view = app.view_functions.get(asked.url_rule.endpoint)
        for _, handler in handlers_of(view, [asked.method]):
            self.policy = rules_beside(handler, asked.method)
        self._app = app
        self._request = asked
        self._dispatch = dispatch
        self._handle_error = handle
        self._caller = caller

    async def read(self) -> bytes:
        asked = self._request
        body = cast(bytes, await asked.get_data(cache=False))
        asked.body = asked.body_class(len(body), None)
        asked.body.set_result(body)
        return body

    async def who(self) -> object:
        if self._caller is not None:
            return await ask(self._caller)
        return session_user(session) or UNKNOWN

    async def handle(self) -> Any:
        return await self._app.make_response(await self._dispatch())

    async def failed(self, error: Exception) -> Any:
        return await self._app.make_response(await self._handle_error(error))

    async def send(self, response: Any, send: Send) -> None:
        headers = [(k.lower().encode(), v.encode()) for k, v in response.headers.items()]
        body: bytes | AsyncIterator[bytes] = _chunks(response)
        if isinstance(response, PlainResponse):
            body = response.get_data()
        elif isinstance(response.response, Response.data_body_class):
            body = await response.get_data(as_text=False)
        await send_body(response.status_code, headers, body, send)

    def respond(self, received: Received) -> Any:
        response = self._app.response_class(received.body, received.status)
        response.headers = Headers(received.fields())
        if self.response is not None and not isinstance(self.response, PlainResponse):
            response.timeout = self.response.timeout
        return response


def operation() -> Operation:
    """Return the operation of the present view, a plain `def`. A view that takes it needs a key."""
    return current_operation()


def async_operation() -> AsyncOperation:
    """Return the operation of the present async view. A view that takes it needs a key."""
    return current_async_operation()


def preconditions() -> Preconditions:
    """Return what the present request asks for.

    Its `require(…)` refuses with 304, 412 or 428; see `semel.web.conditional`.
    """
    return Preconditions.from_headers(request.method, request.scope["headers"])


_ISSUING = "semel_keys"


async def _chunks(response: Response) -> AsyncIterator[bytes]:
    async with response.response as chunks:
        async for chunk in chunks:
            yield chunk.encode() if isinstance(chunk, str) else bytes(chunk)
