"""A raw HTTP client that controls every byte: cases send what ordinary clients refuse to send.

Standard library only: a socket for each request, written by hand, and a response read by
`http.client`.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from urllib.parse import urlsplit

from semel.checker.exchange import Manner, WireRequest, WireResponse

LARGEST: Final = 8 * 1024 * 1024
"""Bytes of a response that are read; what is longer counts as no response."""
_PIECES = 10


class Wire:
    """Sends requests to one server. `timeout`: seconds for one request, from first to last byte."""

    def __init__(self, url: str, timeout: float) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self._netloc = parts.netloc
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._timeout = timeout

    def send(self, request: WireRequest, sent: threading.Event | None = None) -> WireResponse:
        """Send a request and read its response. `sent` is set when it is about to be written."""
        return self._exchange(request, time.monotonic() + self._timeout, None, sent)

    def together(self, requests: Sequence[WireRequest]) -> list[WireResponse]:
        """Send all at once: connect first, then write at the same moment."""
        ready = threading.Barrier(len(requests))
        end = time.monotonic() + self._timeout
        with ThreadPoolExecutor(len(requests)) as pool:
            waiting = [pool.submit(self._exchange, one, end, ready) for one in requests]
            return [one.result() for one in waiting]

    def listens(self) -> bool:
        """Return whether the port accepts connections."""
        try:
            with socket.create_connection((self.host, self.port), timeout=1):
                return True
        except OSError:
            return False

    def _exchange(
        self,
        request: WireRequest,
        end: float,
        ready: threading.Barrier | None,
        sent: threading.Event | None = None,
    ) -> WireResponse:
        started = time.monotonic()
        try:
            try:
                connection = self._connect()
            finally:
                if ready is not None:
                    ready.wait(self._timeout)
            with connection:
                if request.after:
                    time.sleep(request.after)
                if sent is not None:
                    sent.set()
                started = time.monotonic()
                self._write(connection, request)
                if request.manner in (Manner.CUT, Manner.HALF):
                    time.sleep(request.hold)
                    return WireResponse(0, failure="we cut the connection")
                answer = _read(connection, request.method, end)
        except TimeoutError:
            return WireResponse(0, failure="timed out", seconds=time.monotonic() - started)
        except ConnectionRefusedError:
            return WireResponse(0, failure="connection refused")
        except (OSError, http.client.HTTPException, ValueError) as error:
            said = str(error) or type(error).__name__
            return WireResponse(0, failure=said[:200], seconds=time.monotonic() - started)
        status, headers, body = answer
        return WireResponse(status, headers, body, seconds=time.monotonic() - started)

    def _connect(self) -> socket.socket:
        plain = socket.create_connection((self.host, self.port), timeout=self._timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is None:
            return plain
        return self._tls.wrap_socket(plain, server_hostname=self.host)

    def _write(self, connection: socket.socket, request: WireRequest) -> None:
        head, body = self.head(request), request.body
        try:
            if request.manner is Manner.HALF:
                connection.sendall(head + body[: len(body) // 2])
            elif request.manner is Manner.SLOW:
                connection.sendall(head)
                step = -(-len(body) // _PIECES)
                for start in range(0, len(body), step):
                    time.sleep(1 / _PIECES)
                    connection.sendall(body[start : start + step])
            else:
                connection.sendall(head + body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # answered and closed in mid-request: the response may be there to read

    def head(self, request: WireRequest) -> bytes:
        """Return the request line and headers as they are sent."""
        named = {name.lower() for name, _ in request.headers}
        lines = [f"{request.method} {request.path} HTTP/1.1".encode()]
        own = [("Host", self._netloc), ("Connection", "close"), ("User-Agent", "semel-check")]
        if request.body:
            own.append(("Content-Type", "application/json"))
        if request.body or request.method not in ("GET", "HEAD"):
            own.append(("Content-Length", str(len(request.body))))
        lines += [f"{name}: {value}".encode() for name, value in own if name.lower() not in named]
        lines += [name.encode() + b": " + value for name, value in request.headers]
        return b"\r\n".join(lines) + b"\r\n\r\n"


def _read(
    connection: socket.socket, method: str, end: float
) -> tuple[int, tuple[tuple[str, str], ...], bytes]:
    connection.settimeout(max(end - time.monotonic(), 0.001))
    response = http.client.HTTPResponse(connection, method=method)
    try:
        response.begin()
        body = b""
        while chunk := response.read1(65536):
            body += chunk
            if len(body) > LARGEST:
                raise ValueError(f"the response is longer than {LARGEST} bytes")
            if time.monotonic() > end:
                raise TimeoutError
        if response.length:
            raise http.client.IncompleteRead(body, response.length)
        return response.status, tuple(response.getheaders()), body
    finally:
        response.close()
