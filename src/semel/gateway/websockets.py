"""WebSocket pass-through: messages both ways, subprotocols, and close codes."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import aiohttp
from yarl import URL

from semel.gateway.upstream import WS_MESSAGE
from semel.web.asgi.messages import ASGIScope, Receive, Send

log = logging.getLogger("semel.gateway")

_HANDSHAKE: Final = frozenset(
    {
        "sec-websocket-key",
        "sec-websocket-version",
        "sec-websocket-extensions",
        "sec-websocket-protocol",
        "content-length",
    }
)
"""Of one connection: each side makes its own."""
_GONE: Final = 1001
_NOT_TO_BE_SENT: Final = frozenset({1005, 1006, 1015})


async def pass_through(
    session: aiohttp.ClientSession,
    url: URL,
    fields: list[tuple[str, str]],
    scope: ASGIScope,
    receive: Receive,
    send: Send,
) -> None:
    """Connect to the service, then accept the client; refuse it as the service does."""
    await receive()  # websocket.connect
    try:
        upstream = await session.ws_connect(
            url,
            headers=[field for field in fields if field[0] not in _HANDSHAKE],
            protocols=scope.get("subprotocols", ()),
            max_msg_size=WS_MESSAGE,
        )
    except aiohttp.WSServerHandshakeError as error:
        await _refuse(error.status if 400 <= error.status <= 599 else 502, scope, send)
        return
    except (aiohttp.ClientError, OSError) as error:
        log.warning("WebSocket %s was not connected: %s", scope["path"], error)
        await _refuse(503, scope, send)
        return
    async with upstream:
        await send({"type": "websocket.accept", "subprotocol": upstream.protocol})
        ways = [
            asyncio.create_task(_to_service(receive, upstream)),
            asyncio.create_task(_to_client(upstream, send)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def _to_service(receive: Receive, upstream: aiohttp.ClientWebSocketResponse) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            code = message.get("code") or _GONE
            await upstream.close(code=_GONE if code in _NOT_TO_BE_SENT else code)
            return
        text = message.get("text")
        if text is not None:
            await upstream.send_str(text)
        else:
            await upstream.send_bytes(message["bytes"])


async def _to_client(upstream: aiohttp.ClientWebSocketResponse, send: Send) -> None:
    reason = ""
    while True:
        message = await upstream.receive()
        if message.type is aiohttp.WSMsgType.TEXT:
            await send({"type": "websocket.send", "text": message.data})
        elif message.type is aiohttp.WSMsgType.BINARY:
            await send({"type": "websocket.send", "bytes": message.data})
        else:
            if message.type is aiohttp.WSMsgType.CLOSE:
                reason = message.extra or ""
            break
    code = upstream.close_code or _GONE
    code = 1011 if code == 1006 else 1000 if code in _NOT_TO_BE_SENT else code
    await send({"type": "websocket.close", "code": code, "reason": reason})


async def _refuse(status: int, scope: ASGIScope, send: Send) -> None:
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1011})
        return
    head = {"type": "websocket.http.response.start", "status": status}
    await send({**head, "headers": [(b"content-length", b"0")]})
    await send({"type": "websocket.http.response.body", "body": b""})
