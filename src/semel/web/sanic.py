"""Sanic: `init_app` puts Semel into an application, under Sanic's own server or an ASGI server."""

from __future__ import annotations

import functools
import inspect
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

try:
    from sanic import HTTPResponse, Request, Sanic
    from sanic.http import Stage
    from sanic.response import ResponseStream
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.web.sanic needs Sanic: pip install sanic") from error

from semel.applications import Endpoint
from semel.idempotency import Idempotency
from semel.web.asgi.inside import (
    HandlerCall,
    HandlerMiddleware,
    Received,
    ask,
    parameter,
    rules_beside,
    send_body,
)
from semel.web.asgi.messages import ASGIScope, Send
from semel.web.http.callers import there_already
from semel.web.wsgi.endpoints import handlers_of

__all__ = ["init_app"]

log = logging.getLogger("semel")

Caller = Callable[[Request], object]


def init_app(
    app: Sanic[Any, Any], idempotency: Idempotency, *, caller: Caller | None = None
) -> None:
    """Protect an application: its handlers run under their requests' keys.

    Semel stands inside the application's request and response middleware, whatever the order of the
    calls. Routes may come before or after this call, until the server starts. A handler gets its
    operation from `semel.current_async_operation()`. Handlers that read their request as a stream
    (`stream=True`) are left alone, and a mark on one of them keeps the service from starting.

    `caller` says who has sent a request: a plain or async function of it that returns the user or
    the user's id (`lambda request: request.ctx.user`), and raises
    `sanic.exceptions.Unauthorized` where it is nobody. It is asked before a
    claim and before a replay.

    A second call with the same objects does nothing. Raises `PolicyError` where it names others,
    and where `Idempotency(scope=…)` names the caller, too.
    """
    if there_already(getattr(app.ctx, "semel", None), idempotency, caller):
        return
    found: list[Endpoint] = []
    middleware = HandlerMiddleware(idempotency, who=caller, endpoints=lambda: found)
    app.ctx.semel = middleware
    issuer = idempotency.issuer

    def wrap(handler: Any) -> Any:
        @functools.wraps(handler)
        async def around(request: Request, *args: Any, **kwargs: Any) -> Any:
            run = functools.partial(handler, request, *args, **kwargs)
            call = SanicCall(app, request, run, caller)
            for _, marked in handlers_of(handler, [request.method]):
                call.policy = rules_beside(marked, request.method)
            if handler is issue:
                return await middleware.issue(call)
            return await middleware.around(call)

        return around

    async def issue(request: Request) -> HTTPResponse:
        """Have a place among the routes; `wrap` answers."""
        return HTTPResponse(status=404)

    async def start(app: Sanic[Any, Any]) -> None:
        for route in _routes_with_keys(app):
            path = "/" + _PARAMETER.sub(lambda part: parameter(*part.groups()), route.path)
            for methods, marked in handlers_of(route.handler, sorted(route.methods)):
                found.append(Endpoint(methods, path, marked, identified=caller is not None))
            route.handler = wrap(route.handler)
        await middleware.begin()

    if issuer is not None and issuer.path is not None:
        app.add_route(issue, issuer.path, methods=["POST"], name="semel_keys")
    app.before_server_start(start)
    app.after_server_stop(middleware.end)


def _routes_with_keys(app: Sanic[Any, Any]) -> Iterator[Any]:
    """The routes that are wrapped."""
    for route in app.router.routes:
        if hasattr(route.handler, "is_websocket"):
            continue
        if hasattr(route.handler, "is_stream"):
            log.warning("/%s reads its request as a stream: left alone", route.path)
            continue
        yield route


class SanicCall(HandlerCall[Any]):
    """A request at its handler."""

    def __init__(
        self,
        app: Sanic[Any, Any],
        request: Request,
        handler: Callable[[], Any],
        caller: Caller | None,
    ) -> None:
        self.scope = _scope(request)
        self.path = request.path
        self._app = app
        self._request = request
        self._handler = handler
        self._caller = caller

    async def read(self) -> bytes:
        return self._request.body or b""

    async def who(self) -> object:
        assert self._caller is not None
        return await ask(self._caller, self._request)

    async def handle(self) -> Any:
        if self.sending is None:
            return await _awaited(self._handler())
        stream = _HandlerStream(self._request, self.sending)
        try:
            response = await _awaited(self._handler())
            if stream.response is not None:  # the handler has called `request.respond`
                await stream.end()
                return None
        finally:
            stream.give_back()
        return response

    async def failed(self, error: Exception) -> Any:
        app, request = self._app, self._request
        await app.dispatch("server.exception.report", context={"exception": error})
        context = {"request": request, "exception": error}
        await app.dispatch("http.lifecycle.exception", inline=True, context=context)
        return await _awaited(
            app.error_handler.response(request, error)  # type: ignore[no-untyped-call]
        )

    async def send(self, response: Any, send: Send) -> None:
        if response is None:
            return
        if isinstance(response, ResponseStream):  # file_stream
            stream = _HandlerStream(self._request, send)
            try:
                await response(self._request)
                await stream.end()
            finally:
                stream.give_back()
            return
        headers = [(name.lower(), value) for name, value in response.processed_headers]
        await send_body(response.status, headers, response.body or b"", send)

    def respond(self, received: Received) -> Any:
        response: Any
        kind = dict(received.fields()).get("content-type", "application/octet-stream")
        body = received.body
        if isinstance(body, bytes):
            response = HTTPResponse(body, received.status, content_type=kind)
        else:
            chunks = body

            async def streaming(response: Any) -> None:
                async for chunk in chunks:
                    await response.write(chunk)

            response = ResponseStream(streaming, received.status, content_type=kind)
        for name, value in received.fields(b"content-type", b"content-length"):
            response.headers.add(name, value)
        return response


class _HandlerStream:
    """What a handler sends its response on, in the place of the connection."""

    def __init__(self, request: Request, send: Send) -> None:
        self.response: Any = None
        self.stage = Stage.HANDLER
        self._request = request
        self._connection = request.stream
        self._send = send
        request.stream = self  # type: ignore[assignment]
        request._response_middleware_started = True  # it runs outside, on what goes out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def respond(self, response: Any) -> Any:
        self.response, response.stream = response, self
        return response

    async def send(self, data: Any = b"", end_stream: bool = False) -> None:
        if self.stage is Stage.IDLE:
            return
        data = data.encode() if isinstance(data, str) else bytes(data or b"")
        if self.stage is Stage.HANDLER:
            self.give_back()
            response = self.response
            headers = [(name.lower(), value) for name, value in response.processed_headers]
            start = {"type": "http.response.start", "status": response.status, "headers": headers}
            await self._send(start)
            data = (getattr(response, "body", None) or b"") + data
        self.stage = Stage.IDLE if end_stream else Stage.RESPONSE
        await self._send({"type": "http.response.body", "body": data, "more_body": not end_stream})

    async def end(self) -> None:
        await self.send(end_stream=True)

    def give_back(self) -> None:
        """Let the request have its connection again, and be responded to."""
        current: Any = self._request.stream
        if current is self:
            self._request.stream = self._connection
            self._request._response_middleware_started = False
            self._request.responded = False


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _scope(request: Request) -> ASGIScope:
    native: ASGIScope | None = getattr(request.transport, "scope", None)
    if native is not None:
        return native
    headers = request.headers.items()
    return {
        "type": "http",
        "http_version": request.version,
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "raw_path": request.raw_url.partition(b"?")[0],
        "query_string": request.query_string.encode(),
        "headers": [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers],
    }


_PARAMETER = re.compile(r"<(\w+)(?::([^<>]*))?>")
