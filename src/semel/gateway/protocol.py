"""The checks before a request is one: bounds on heads, and refusal of whatever two parsers could
read in two ways (request smuggling).

uvicorn's parser (llhttp, strict) refuses much of it; the rest is refused here. RFC 9112 sections
3.2, 5 and 6.
"""

from __future__ import annotations

import asyncio
import http
import re
from typing import Any, Final, NoReturn, cast

from semel.gateway.settings import GatewayLimits

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError as missing:  # pragma: no cover
    raise ImportError(
        f"the gateway needs its extra: pip install 'semel[gateway]' ({missing})"
    ) from missing

_LINE: Final = 4
"""Bytes of a header line beside its name and value."""
_HOST: Final = re.compile(rb"[A-Za-z0-9._~%!$&'()*+;=:\-\[\]]+")


class RejectedRequest(Exception):
    """The request is refused with this status; the connection is closed."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class GatewayProtocol(HttpToolsProtocol):
    """uvicorn's protocol, strict. The bounds are `app.limits` of the application it serves."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits: GatewayLimits = self.config.loaded_app.limits
        self._patience = self._limits.client_timeout.total_seconds()
        self._in_head = True
        self._unparsed = 0  # bytes of a head that is not complete
        self._refused: RejectedRequest | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer = self.loop.call_later(self._patience, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.parser is None or self._refused is not None:
            return
        super().data_received(data)
        if not self._in_head:
            self._unparsed = 0
            return
        self._unparsed += len(data)
        if self._unparsed > self._limits.head + len(data):
            self._refused = RejectedRequest(431, "The request's head is too large.")
            self.send_400_response("")
        elif self._timer is None:
            self._timer = self.loop.call_later(self._patience, self._too_slow)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else a trailer: uvicorn would add it to headers that have been checked
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unparsed = 0
        self._stop_timer()
        self._check_target()
        self._check_headers()
        super().on_headers_complete()
        cycle = self.cycle
        if cycle is None or cycle.transport is not self.transport:
            return  # another protocol takes over
        if cycle.scope["method"] != "HEAD":
            cycle.transport = cast(asyncio.Transport, _Together(self.transport, self.loop))

    def _check_target(self) -> None:
        url = self.url
        if len(url) > self._limits.head:
            self._refuse(414, "The request's target is too long.")
        if not url.startswith(b"/") or self.parser.get_method() == b"CONNECT":
            self._refuse(400, "The request's target has to be a path: this is no open proxy.")
        if b"#" in url or not url.isascii():
            self._refuse(400, "The request's target is not valid.")

    def _check_headers(self) -> None:
        size = hosts = lengths = 0
        codings: list[bytes] = []
        for name, value in self.headers:
            size += len(name) + len(value)
            if not value.isascii() and not _is_utf8(value):
                self._refuse(400, "A header's value is not UTF-8.")
            if name == b"host":
                hosts += 1
                if _HOST.fullmatch(value) is None:
                    self._refuse(400, "Host is not valid.")
            elif name == b"content-length":
                lengths += 1
                if not value.isdigit():
                    self._refuse(400, "Content-Length is not a number.")
            elif name == b"transfer-encoding":
                codings.append(value.strip().lower())
        size += _LINE * len(self.headers)
        if size > self._limits.head or len(self.headers) > self._limits.headers:
            self._refuse(431, "The request's head is too large.")
        self._check_framing(hosts, lengths, codings)

    def _check_framing(self, hosts: int, lengths: int, codings: list[bytes]) -> None:
        """Refuse what leaves open which host is meant, or where the body ends."""
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._refuse(505, "This version of HTTP is not spoken here.")
        if hosts > 1 or (not hosts and version == "1.1"):
            self._refuse(400, "There has to be one Host.")
        if lengths > 1 or (lengths and codings):
            self._refuse(400, "The body's length is given twice.")
        if codings and (codings != [b"chunked"] or version != "1.1"):
            self._refuse(400, "Transfer-Encoding has to be chunked, and nothing else.")

    def _refuse(self, status: int, reason: str) -> NoReturn:
        """Raises `RejectedRequest` through the parser, which ends in `send_400_response`."""
        self._refused = RejectedRequest(status, reason)
        raise self._refused

    def send_400_response(self, msg: str) -> None:
        """Send the refusal, unless it would be taken for the response to another request."""
        refused = self._refused or RejectedRequest(400, msg)
        self._refused = refused
        self._stop_timer()
        cycle = self.cycle
        if (
            cycle is None
            or cycle.response_complete
            or (cycle.more_body and not cycle.response_started)
        ):
            told = str(refused).encode()
            phrase = http.HTTPStatus(refused.status).phrase.encode()
            self.transport.write(
                b"HTTP/1.1 %d %b\r\nContent-Type: text/plain; charset=utf-8\r\n"
                b"Content-Length: %d\r\nConnection: close\r\n\r\n%b"
                % (refused.status, phrase, len(told), told)
            )
        self.transport.close()

    def _too_slow(self) -> None:
        self._timer = None
        if self._in_head and not self.transport.is_closing():
            self._refused = RejectedRequest(408, "The request's head did not arrive in time.")
            self.send_400_response("")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Together:
    """Writes a response's head with the body that follows at once: one system call, one packet.

    A head that nothing follows goes out a tick later, before the client could miss it.
    """

    __slots__ = ("_begun", "_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""
        self._begun = False

    def write(self, data: bytes) -> None:
        if self._begun:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        else:
            self._begun = True
            self._head = data
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()
