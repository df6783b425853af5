"""The connections to the service: each request is sent once, and a failure is one of two kinds.

`NotSent`: no byte of the request has left. `Unknown`: perhaps some have, so nobody can say what the
service did. Nothing in between, and in doubt the second.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

from semel.failpoints import failpoint
from semel.gateway.settings import GatewayLimits, Upstream
from semel.gateway.values import SettingsError

try:
    import aiohttp
    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse
    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.connector import Connection
    from multidict import CIMultiDict
    from yarl import URL
except ImportError as missing:  # pragma: no cover
    raise ImportError(
        f"the gateway needs its extra: pip install 'semel[gateway]' ({missing})"
    ) from missing

_RETRIED: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""What aiohttp may send again by itself, over a kept connection that turned out to be closed."""
_NOTHING_ADDED: Final[CIMultiDict[None]] = CIMultiDict({"Content-Type": None})
_READ_AHEAD: Final = 64 * 1024
WS_MESSAGE: Final = 16 * 1024 * 1024
"""Bytes of the longest WebSocket message, uvicorn's default."""


class NotSent(Exception):
    """No connection could be had: the service certainly did nothing."""


class Unknown(Exception):
    """The request was sent, perhaps in part, and no complete response came."""

    def __init__(self, reason: str, *, late: bool) -> None:
        super().__init__(reason)
        self.late = late
        """It is the response that did not come in time."""


class _Request(ClientRequest):
    def update_auto_headers(self, skip_auto_headers: Iterable[str] | None) -> None:
        """Add no header of the library's own."""
        self._skip_auto_headers = _NOTHING_ADDED

    async def write_bytes(
        self, writer: AbstractStreamWriter, conn: Connection, content_length: int | None = None
    ) -> None:
        await super().write_bytes(writer, conn, content_length)
        failpoint("upstream_sent")


async def _once(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """Keep aiohttp from sending anything twice: it knows what to repeat by the error's class."""
    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise Unknown(_said(error), late=False) from error


class UpstreamClient:
    """The connections of one worker to the service. `start` and `close` on its event loop."""

    def __init__(self, settings: Upstream, limits: GatewayLimits) -> None:
        self._settings = settings
        self._limits = limits
        self._base = settings.url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        try:
            self._ssl = settings.ssl()
        except OSError as error:
            raise SettingsError(f"[upstream] ca: {settings.ca}: {error}") from error

    def start(self) -> None:
        """Open the pool."""
        settings = self._settings
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=settings.connections,
                keepalive_timeout=settings.keep_alive.total_seconds(),
                ssl=self._ssl,
            ),
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=settings.connect_timeout.total_seconds(),
                sock_read=settings.timeout.total_seconds(),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            request_class=_Request,
            read_bufsize=_READ_AHEAD,
            max_line_size=self._limits.head,
            max_field_size=self._limits.head,
        )

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open pool."""
        assert self._session is not None, "the gateway was not started: serve it with lifespan on"
        return self._session

    def url(self, raw_path: bytes, query: bytes) -> URL:
        """Return the address of a target, byte by byte as the client wrote it."""
        target = f"{self._base}{raw_path.decode('ascii')}"
        return URL(f"{target}?{query.decode('ascii')}" if query else target, encoded=True)

    async def send(
        self,
        method: str,
        url: URL,
        headers: list[tuple[str, str]],
        body: bytes | AsyncIterator[bytes] | None,
    ) -> ClientResponse:
        """Send a request and return the head of its response.

        Raises `NotSent` and `Unknown`.
        """
        options: dict[str, Any] = {}
        if method not in _RETRIED or body:
            options["middlewares"] = (_once,)
        failpoint("before_upstream")
        try:
            response = await self.session.request(
                method,
                url,
                headers=CIMultiDict(headers),
                data=body,
                allow_redirects=False,
                **options,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotSent(_said(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise unknown(error) from error
        failpoint("upstream_answered")
        if not 200 <= response.status <= 599:
            response.close()
            raise Unknown(f"its response has the status {response.status}", late=False)
        return response


def unknown(error: Exception) -> Unknown:
    """Return what a failure after the first byte means."""
    return Unknown(_said(error), late=isinstance(error, asyncio.TimeoutError))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
