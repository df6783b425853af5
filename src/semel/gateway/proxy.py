"""The proxy: an ASGI application that hands each request to the service behind it.

Within an operation (`current`) it also says what an unknown outcome means for the key.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable
from typing import Final

from aiohttp import ClientError, ClientResponse

from semel.core import problems
from semel.core.problems import Problem
from semel.failpoints import failpoint
from semel.gateway import headers
from semel.gateway.settings import GatewayPolicy, GatewaySettings
from semel.gateway.upstream import NotSent, Unknown, UpstreamClient, unknown
from semel.gateway.websockets import pass_through
from semel.idempotency import Idempotency
from semel.operation import AsyncOperation, current, current_async_operation
from semel.web.asgi.exchange import StreamAborted
from semel.web.asgi.messages import ASGIScope, Message, Receive, Send
from semel.web.asgi.timeouts import timeout_if_suspended

log = logging.getLogger("semel.gateway")

_HELD: Final = 64 * 1024
"""A response of a known length up to this is sent on when it is whole: should it break off, the
client gets a problem and not half of it."""
_RESEND_PAUSE: Final = 0.2
"""Seconds before an unknown outcome is sent again; twice as long each time."""


class ReverseProxy:
    """Hands HTTP requests and WebSockets to the service."""

    def __init__(
        self, settings: GatewaySettings, idempotency: Idempotency, client: UpstreamClient
    ) -> None:
        self._settings = settings
        self._idempotency = idempotency
        self._client = client
        self._rules = headers.Rules(
            settings.upstream.preserve_host,
            settings.callers.behind_proxy,
            (settings.callers.header or "").lower().encode(),
        )

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            url = self._client.url(scope["raw_path"], scope["query_string"])
            fields = self._fields(scope, None)
            await pass_through(self._client.session, url, fields, scope, receive, send)
        else:
            await _lifespan(receive, send)

    async def _http(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        operation = current_async_operation() if current.get() is not None else None
        body = _Body(scope["headers"], receive, self._settings)
        try:
            await self._forward(scope, body, operation, receive, send)
        except _Refused as refused:
            await self._refuse(refused.problem, operation, send)
        except _Gone:
            return
        except NotSent as error:
            log.warning("%s %s was not sent: %s", scope["method"], scope["path"], error)
            await self._refuse(problems.UPSTREAM_UNAVAILABLE, operation, send)
        except Unknown as error:
            if body.refused is not None:  # it is our own doing
                await self._refuse(body.refused, operation, send)
            elif not body.gone:
                await self._unknown(error, scope, body, operation, send)

    async def _forward(
        self,
        scope: ASGIScope,
        body: _Body,
        operation: AsyncOperation | None,
        receive: Receive,
        send: Send,
    ) -> None:
        """Send a request to the service, again where that is safe, and its response to the client.

        Raises `_Refused` and `_Gone`, `NotSent`, and `Unknown` where one attempt may have arrived.
        """
        key, resend = self._key(scope, operation)
        fields = self._fields(scope, key)
        data = await body.read()
        url = self._client.url(scope["raw_path"], scope["query_string"])
        before: Unknown | None = None
        for left in range(resend, -1, -1):
            try:
                response = await self._client.send(scope["method"], url, fields, data)
                with contextlib.closing(response):
                    await self._answer(response, body, operation, receive, send)
                return
            except NotSent:
                if before is None:
                    raise
            except Unknown as error:
                before = error
            if not left or body.streams or body.sending_on:
                raise before
            log.warning("sending again under the same key: %s", before)
            await asyncio.sleep(_RESEND_PAUSE * 2 ** (resend - left))

    def _key(self, scope: ASGIScope, operation: AsyncOperation | None) -> tuple[bytes | None, int]:
        """Return the key that the service gets, and how often an unknown outcome is sent again."""
        if operation is None:
            return _client_key(scope["headers"]), 0
        policy = self._idempotency.routes.find(scope["method"], scope["path"])
        if not isinstance(policy, GatewayPolicy) or not policy.forward_key:
            return None, 0
        resend = 0 if policy.guarantee == "at-most-once" else self._settings.upstream.resend
        return _client_key(scope["headers"]) or operation.derive("gateway").encode(), resend

    def _fields(self, scope: ASGIScope, key: bytes | None) -> list[tuple[str, str]]:
        client = scope.get("client")
        return headers.request(
            scope["headers"],
            self._rules,
            client[0].encode() if client else b"unknown",
            b"https" if scope["scheme"] in ("https", "wss") else b"http",
            scope.get("http_version", "1.1").encode(),
            key,
        )

    async def _answer(
        self,
        response: ClientResponse,
        body: _Body,
        operation: AsyncOperation | None,
        receive: Receive,
        send: Send,
    ) -> None:
        """Send the service's response on: whole where it is short, else as it comes."""
        version = response.version
        fields = headers.response(
            response.raw_headers, response.status, b"%d.%d" % version if version else b"1.1"
        )
        start: Message = {
            "type": "http.response.start",
            "status": response.status,
            "headers": fields,
        }
        content = response.content
        try:
            chunk = await content.readany()
            length = response.content_length
            if length is not None and length <= _HELD:
                while not content.at_eof():
                    chunk += await content.readany()
            if content.at_eof():
                failpoint("upstream_read")
                body.sending_on = True
                await send(start)
                await send({"type": "http.response.body", "body": chunk})
                return
            protocol = response.connection.protocol if response.connection else None
            if response.content_type == "text/event-stream" and protocol is not None:
                protocol.read_timeout = None
                protocol.start_timeout()
            body.sending_on = True
            await send(start)
            async with _watching(None if operation is not None else body, receive, response):
                while chunk:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    chunk = await content.readany()
        except (ClientError, OSError) as error:
            raise unknown(error) from error
        failpoint("upstream_read")
        await send({"type": "http.response.body", "body": b""})

    async def _unknown(
        self,
        error: Unknown,
        scope: ASGIScope,
        body: _Body,
        operation: AsyncOperation | None,
        send: Send,
    ) -> None:
        """Handle an unknown outcome: park the key, or tell the client."""
        log.warning("%s %s has an unknown outcome: %s", scope["method"], scope["path"], error)
        if operation is not None:
            policy = self._idempotency.routes.find(scope["method"], scope["path"])
            if policy is None or policy.guarantee == "at-most-once":
                operation.park(f"the service gave no complete response: {error}")
            operation.release()
        if body.sending_on:
            raise StreamAborted("the service's response broke off") from error
        problem = problems.UPSTREAM_TIMEOUT if error.late else problems.UPSTREAM_FAILED
        await self._refuse(problem, operation, send)

    async def _refuse(self, problem: Problem, operation: AsyncOperation | None, send: Send) -> None:
        """Respond in the gateway's own name; a key that came with it is free again."""
        if operation is not None:
            operation.release()
        answer = problem.response(self._idempotency.problem_base)
        told = answer.body or b""
        fields = [*answer.headers, (b"content-length", b"%d" % len(told))]
        await send({"type": "http.response.start", "status": problem.status, "headers": fields})
        await send({"type": "http.response.body", "body": told})


class _Refused(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.title)
        self.problem = problem


class _Gone(Exception):
    """The client has gone before its request was whole."""


class _Body:
    """A request's body on its way to the service: at once where it is short, else as it comes."""

    def __init__(
        self, fields: Iterable[tuple[bytes, bytes]], receive: Receive, settings: GatewaySettings
    ) -> None:
        self._receive = receive
        self._limit = settings.limits.body
        self._patience = settings.limits.client_timeout.total_seconds()
        self._length: int | None = None
        self._size = 0
        self._first = b""
        for name, value in fields:
            if name == b"content-length" and value.isdigit():
                self._length = int(value)
            elif name == b"transfer-encoding":
                self._length = -1
        self.streams = False
        """It is sent as it comes, so it cannot be sent again."""
        self.ended = False
        self.refused: Problem | None = None
        self.gone = False
        self.sending_on = False
        """The response's beginning has been handed on."""

    async def read(self) -> bytes | AsyncIterator[bytes] | None:
        """Return what to send. Raises `_Refused` and `_Gone`."""
        bounded = current.get() is None  # else the middleware has read and bounded it
        if bounded and self._length is not None and self._length > self._limit:
            raise _Refused(problems.request_too_large(self._limit))
        if not bounded:
            self._limit = 1 << 62
        self._first, more = await self._next()
        if not more:
            return self._first if self._length is not None else None
        self.streams = True
        return self._rest()

    async def _rest(self) -> AsyncIterator[bytes]:
        try:
            if self._first:
                yield self._first
                self._first = b""
            more = True
            while more:
                chunk, more = await self._next()
                if chunk:
                    yield chunk
        except _Refused as error:
            self.refused = error.problem
            raise
        except _Gone:
            self.gone = True
            raise

    async def _next(self) -> tuple[bytes, bool]:
        try:
            message = await timeout_if_suspended(self._patience, self._receive())
        except TimeoutError:
            raise _Refused(problems.BODY_TIMEOUT) from None
        if message["type"] == "http.disconnect":
            raise _Gone
        chunk: bytes = message.get("body", b"")
        self._size += len(chunk)
        if self._size > self._limit:
            raise _Refused(problems.request_too_large(self._limit))
        self.ended = not message.get("more_body", False)
        return chunk, not self.ended


@contextlib.asynccontextmanager
async def _watching(
    body: _Body | None, receive: Receive, response: ClientResponse
) -> AsyncIterator[None]:
    """Break a stream off when its client has gone: nobody else will, an event stream has no end."""
    if body is None or not body.ended:
        yield
        return

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        body.gone = True
        response.close()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


def _client_key(fields: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    for name, value in fields:
        if name == headers.KEY:
            return value
    return None


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
