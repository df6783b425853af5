"""The gateway as one ASGI application: health, idempotency keys, and behind them the proxy."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Final

from semel.core.commands import Lookup, StoreError
from semel.core.policy import RequestView
from semel.core.record import UnreadableRecord
from semel.gateway.proxy import ReverseProxy
from semel.gateway.settings import GatewayLimits, GatewaySettings
from semel.gateway.upstream import UpstreamClient
from semel.idempotency import Idempotency, Scope
from semel.web.asgi.messages import ASGIScope, Message, Receive, Send
from semel.web.asgi.middleware import ASGIMiddleware
from semel.web.http.callers import KNOWN_CREDENTIALS, scope_name

_NOBODYS: Final = bytes(16)
"""A key that no record has, to see whether the store responds."""


class Gateway:
    """Serve it with lifespan on. Raises `SettingsError` and `StoreSetupError`."""

    def __init__(self, settings: GatewaySettings) -> None:
        callers = settings.callers
        self.idempotency = Idempotency(
            settings.store,
            policy=settings.policy,
            routes=settings.routes,
            scope=_named_by(callers.header) if callers.header is not None else None,
            session_cookie=callers.session_cookie,
            issuer=settings.make_issuer(),
        )
        self._client = UpstreamClient(settings.upstream, settings.limits)
        proxy = ReverseProxy(settings, self.idempotency, self._client)
        self._covered = ASGIMiddleware(proxy, self.idempotency)
        self.limits: GatewayLimits = settings.limits
        """What the server's protocol bounds."""
        self._health = settings.health
        self._dated = 0
        self._date = b""

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http":
            path = scope["path"]
            if path == self._health.live:
                await _say(204, send)
            elif path == self._health.ready:
                await _say(204 if await self._ready() else 503, send)
            else:
                await self._covered(scope, receive, self._dating(send))
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await self._covered(scope, receive, send)

    async def _ready(self) -> bool:
        try:
            if not self.idempotency.ready():
                return False
            await self.idempotency.store.aexecute(Lookup(_NOBODYS))
        except (StoreError, UnreadableRecord):
            return False
        return True

    def _dating(self, send: Send) -> Send:
        """Date responses that the service has not dated: RFC 9110 section 6.6.1."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                if not any(name == b"date" for name, _ in headers):
                    message = {**message, "headers": [*headers, (b"date", self._now())]}
            await send(message)

        return sending

    def _now(self) -> bytes:
        now = int(time.time())
        if now != self._dated:
            self._dated = now
            self._date = formatdate(now, usegmt=True).encode()
        return self._date

    async def _lifespan(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Open the pool first, and close it last: operations end before the middleware does."""

        async def sending(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown"):
                await self._client.close()
            await send(message)

        self._client.start()
        await self._covered(scope, receive, sending)


def _named_by(header: str) -> Scope:
    """Return who the caller is by that header; where it is missing, the credentials say."""

    def scope(request: RequestView) -> str:
        named = request.header(header)
        if named:
            return f"caller:{named}"
        found = ((name, request.header(name.decode())) for name in KNOWN_CREDENTIALS)
        return scope_name((None, tuple((n, v.encode("latin-1")) for n, v in found if v)))

    return scope


async def _say(status: int, send: Send) -> None:
    fields = [(b"cache-control", b"no-store"), (b"content-length", b"0")]
    await send(
        {"type": "http.response.start", "status": status, "headers": fields[: 1 + (status != 204)]}
    )
    await send({"type": "http.response.body", "body": b""})
