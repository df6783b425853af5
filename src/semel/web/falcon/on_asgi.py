"""Semel inside an ASGI application, round each responder."""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from falcon import MEDIA_JSON, HTTPNotFound
from falcon.asgi import App, Request, Response, SSEvent
from falcon.asgi.stream import BoundedStream

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
from semel.web.asgi.messages import Send
from semel.web.http.callers import there_already

Caller = Callable[[Request], object]


def protect(app: App[Any, Any], idempotency: Idempotency, caller: Caller | None) -> None:
    """Put Semel round the responders of an application."""
    there = getattr(app._router_search, "semel", None)
    if there_already(there, idempotency, caller):
        return

    middleware = HandlerMiddleware(
        idempotency, who=caller, endpoints=functools.partial(_endpoints, app, caller is not None)
    )
    middleware.complete_through(app)  # type: ignore[arg-type]
    issuer = idempotency.issuer

    @functools.cache
    def wrap(responder: Any, method: str) -> Any:
        policy = rules_beside(responder, method)
        issues = isinstance(getattr(responder, "__self__", None), _Issuing)
        run = middleware.issue if issues else middleware.around

        @functools.wraps(responder)
        async def around(req: Request, resp: Response, **params: Any) -> None:
            call = FalconCall(app, req, resp, functools.partial(responder, **params), caller)
            call.params = params
            call.policy = policy
            await run(call)

        return around

    app._router_search = _Search(app._router_search, wrap, middleware)
    if issuer is not None and issuer.path is not None:
        app.add_route(issuer.path, _Issuing())
    app.add_middleware(_Life(middleware))


class _Search:
    """Finds the route of a request, with its responder wrapped."""

    def __init__(self, find: Any, wrap: Any, middleware: HandlerMiddleware) -> None:
        self._find = find
        self._wrap = wrap
        self.semel = middleware

    def __call__(self, uri: str, req: Any = None) -> Any:
        found = self._find(uri, req=req)
        if not found or found[0] is None or req is None or req.is_websocket:
            return found
        resource, methods, *rest = found
        responder = methods.get(req.method)
        if responder is None:
            return found
        return (resource, {**methods, req.method: self._wrap(responder, req.method)}, *rest)


def _endpoints(app: App[Any, Any], identified: bool) -> Iterator[Endpoint]:
    """The endpoints of an application's own router; those of another router are unknown."""
    nodes = list(getattr(app._router, "_roots", ()))
    for node in nodes:  # it grows meanwhile
        nodes += node.children
        if node.resource is None or isinstance(node.resource, _Issuing):
            continue
        path = _PARAMETER.sub(lambda found: parameter(*found.groups()), node.uri_template)
        for method, responder in node.method_map.items():
            if getattr(responder, "__self__", None) is node.resource:
                yield Endpoint((method,), path, responder, identified=identified)


class _Issuing:
    """A place among the routes; the middleware answers."""

    async def on_post(self, req: Request, resp: Response) -> None:
        raise HTTPNotFound


class _Life:
    """A component that opens and closes the store."""

    def __init__(self, middleware: HandlerMiddleware) -> None:
        self._middleware = middleware

    async def process_startup(self, scope: Any, event: Any) -> None:
        await self._middleware.begin()

    async def process_shutdown(self, scope: Any, event: Any) -> None:
        await self._middleware.end()


class FalconCall(HandlerCall[Response]):
    """A request at its responder."""

    params: dict[str, Any]

    def __init__(
        self,
        app: App[Any, Any],
        req: Request,
        resp: Response,
        responder: Callable[[Request, Response], Any],
        caller: Caller | None,
    ) -> None:
        self.scope = req.scope
        if not isinstance(req.scope["headers"], (list, tuple)):  # Falcon has read the iterator
            fields = req.headers.items()
            headers = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in fields]
            self.scope = {**req.scope, "headers": headers}
        self.path = req.path
        self._app = app
        self._req = req
        self._resp = resp
        self._responder = responder
        self._caller = caller
        self._before = dict(resp._headers), list(resp._extra_headers or ()), resp._cookies

    async def read(self) -> bytes:
        req = self._req
        body = await req.stream.read()

        async def receive() -> Any:
            return await req._receive()

        first = {"type": "http.request", "body": body, "more_body": False}
        req._stream = BoundedStream(receive, first_event=first, content_length=len(body))
        return bytes(body)

    async def who(self) -> object:
        assert self._caller is not None
        return await ask(self._caller, self._req)

    async def handle(self) -> Response:
        await self._responder(self._req, self._resp)
        return self._resp

    async def failed(self, error: Exception) -> Response:
        if not await self._app._handle_exception(self._req, self._resp, error, self.params):
            raise error
        return self._resp

    async def send(self, response: Response, send: Send) -> None:
        body: bytes | AsyncIterator[bytes] = await response.render_body() or b""
        kind: str | None = self._app.resp_options.default_media_type
        if response.sse:
            kind, body = "text/event-stream", self._events(response.sse)
        elif not body and response.stream:
            body = _stream(response.stream)
        if response.status_code in (204, 304):
            kind = None
        headers = response._asgi_headers(kind)
        await send_body(response.status_code, headers, body, send)

    async def _events(self, emitter: Any) -> AsyncIterator[bytes]:
        handler, _, _ = self._app.resp_options.media_handlers._resolve(
            MEDIA_JSON, MEDIA_JSON, raise_not_found=False
        )
        async for event in emitter:
            yield (event or SSEvent()).serialize(handler)

    def respond(self, received: Received) -> Response:
        resp = self._resp
        headers, extra, resp._cookies = self._before
        resp._headers, resp._extra_headers = dict(headers), list(extra)
        resp.status = received.status
        for kind in ("text", "media", "data", "stream", "sse"):
            setattr(resp, kind, None)
        seen = set()
        for name, value in received.fields(b"content-length"):
            if name in seen or name == "set-cookie":
                resp.append_header(name, value)
            else:
                resp.set_header(name, value)
            seen.add(name)
        if isinstance(received.body, bytes):
            resp.data = received.body
        else:
            resp.stream = received.body
        return resp


async def _stream(stream: Any) -> AsyncIterator[bytes]:
    if not hasattr(stream, "read"):
        async for chunk in stream:
            if chunk is None:
                return
            yield bytes(chunk)
        return
    try:
        while chunk := await stream.read(_BLOCK):
            yield bytes(chunk)
    finally:
        if hasattr(stream, "close"):
            await stream.close()


_BLOCK = 8192
_PARAMETER = re.compile(r"\{(\w+)(?::(\w+)[^{}]*)?\}")
