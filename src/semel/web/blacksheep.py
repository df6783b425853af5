"""BlackSheep: `init_app` puts Semel into an application, inside its middlewares."""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

try:
    from blacksheep import Application, Content, Request, Response, StreamedContent
    from blacksheep.server.routing import Route
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.web.blacksheep needs BlackSheep: pip install blacksheep") from error

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
from semel.web.asgi.messages import ASGIScope, Send, route_path
from semel.web.http.callers import there_already

__all__ = ["init_app"]

Caller = Callable[[Request], object]
_Handler = Callable[[Request], Awaitable[Response]]


def init_app(app: Application, idempotency: Idempotency, *, caller: Caller | None = None) -> None:
    """Protect an application: its handlers run under their requests' keys.

    Semel stands inside the application's middlewares, CORS, authentication and authorization among
    them, whatever the order of the calls. Routes may come before or after this call, until the
    application starts. A handler gets its operation from `semel.current_async_operation()`.

    `caller` says who has sent a request: a plain or async function of it that returns the user or
    the user's id (`lambda request: request.user["sub"]`), and raises
    `blacksheep.exceptions.Unauthorized` where it is nobody. It is asked before a
    claim and before a replay.

    A second call with the same objects does nothing. Raises `PolicyError` where it names others,
    and where `Idempotency(scope=…)` names the caller, too.
    """
    if there_already(vars(app).get("semel"), idempotency, caller):
        return
    found: list[Endpoint] = []
    middleware = HandlerMiddleware(idempotency, who=caller, endpoints=lambda: found)
    vars(app)["semel"] = middleware
    middleware.complete_through(app)
    issuer = idempotency.issuer

    def wrap(method: str, route: Route, handler: Any) -> _Handler:
        if issuer is not None and getattr(handler, "root_fn", handler) is issue:

            async def issuing(request: Request) -> Response:
                return await middleware.issue(BlackSheepCall(app, request, handler, caller))

            return issuing
        root = getattr(handler, "root_fn", handler)
        policy = rules_beside(root, method)
        path = _PARAMETER.sub(_as_patterns_are, route.pattern.decode())
        found.append(Endpoint((method,), path, root, identified=caller is not None))

        @functools.wraps(handler)
        async def around(request: Request) -> Response:
            call = BlackSheepCall(app, request, handler, caller)
            call.policy = policy
            return await middleware.around(call)

        return around

    def wrap_all(app: Application) -> None:
        for method, route in app.router.iter_with_methods():  # type: ignore[no-untyped-call]
            if method != "GET_WS":
                route.handler = wrap(method, route, route.handler)

    async def issue(request: Request) -> Response:
        """Have a place among the routes; `wrap` answers."""
        return Response(404)

    if issuer is not None and issuer.path is not None:
        app.router.add_post(issuer.path, issue)

    app.on_middlewares_configuration += wrap_all  # type: ignore[misc]
    app.after_start += middleware.begin
    app.on_stop += middleware.end


class BlackSheepCall(HandlerCall[Response]):
    """A request at its handler."""

    def __init__(
        self, app: Application, request: Request, handler: _Handler, caller: Caller | None
    ) -> None:
        self.scope = cast(ASGIScope, request.scope)
        self.path = route_path(self.scope) if self.scope.get("root_path") else self.scope["path"]
        self._app = app
        self._request = request
        self._handler = handler
        self._caller = caller

    async def read(self) -> bytes:
        request = self._request
        body = await request.read() or b""
        request.content = _ReadContent(request.content_type() or b"", body)
        return body

    async def who(self) -> object:
        assert self._caller is not None
        return await ask(self._caller, self._request)

    async def handle(self) -> Response:
        return await self._handler(self._request) or Response(204)

    async def failed(self, error: Exception) -> Response:
        return await self._app.handle_request_handler_exception(self._request, error)

    async def send(self, response: Response, send: Send) -> None:
        headers = [(name.lower(), value) for name, value in response.headers]
        content = response.content
        body: bytes | AsyncIterator[bytes] = b""
        if content is not None:
            headers.append((b"content-type", content.type or b"application/octet-stream"))
            body = content.body
            if isinstance(content, StreamedContent) or content.length < 0:
                body = _parts(content)
        await send_body(response.status, headers, body, send)

    def respond(self, received: Received) -> Response:
        kept, kind = [], b"application/octet-stream"
        for name, value in received.headers:
            if name.lower() == b"content-type":
                kind = value
            elif name.lower() not in (b"content-length", b"transfer-encoding"):
                kept.append((name, value))
        body = received.body
        if not isinstance(body, bytes):
            chunks = body

            async def provide() -> AsyncIterator[bytes]:
                async for chunk in chunks:
                    yield chunk

            return Response(received.status, kept, StreamedContent(kind, provide))
        return Response(received.status, kept, Content(kind, body) if body else None)


class _ReadContent(Content):
    """A body that has been read, and can be read again or as a stream."""

    async def stream(self) -> AsyncIterator[bytes]:
        yield self.body
        yield b""


async def _parts(content: Any) -> AsyncIterator[bytes]:
    async for part in content.get_parts():
        if part:
            yield part


_PARAMETER = re.compile(r"/(?::(\w+)|\{(?:([a-z]+):)?(\w+)\})")


def _as_patterns_are(match: re.Match[str]) -> str:
    return "/" + parameter(match.group(1) or match.group(3), match.group(2))
