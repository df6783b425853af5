"""A server that answers, swallows and cuts as it is told, and the three clients of one face."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx
import requests

from semel.client import AsyncRetryTransport, RetryAdapter, RetryTransport


class Seen(NamedTuple):
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str | None:
        return self.headers.get("idempotency-key")


def answer(status: int = 201, body: bytes = b"charged", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


SWALLOW = b""
"""The request is read, and the connection reset."""
RESET_AFTER_HEADERS = b"HTTP/1.1 201 x\r\nContent-Length: 7\r\n\r\n"
HALF_A_BODY = RESET_AFTER_HEADERS + b"cha"


@dataclass
class Wire:
    """Serves one request a connection from a script; the last of it again and again."""

    script: list[bytes | Callable[[Seen], bytes]]
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/charges"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(OSError):
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        file = connection.makefile("rb")
        method, path, _ = file.readline().decode().split()
        headers = {}
        while line := file.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        seen = Seen(method, path, headers, file.read(int(headers.get("content-length", 0))))
        self.seen.append(seen)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        data = step(seen) if callable(step) else step
        whole = len(data.partition(b"\r\n\r\n")[2]) >= 7 and data != HALF_A_BODY
        connection.sendall(data.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        if not whole and b"Content-Length: 0" not in data:
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            file.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Answer(NamedTuple):
    status: int
    body: bytes
    key: str | None


class Caller:
    """A client of one kind: httpx, async, requests."""

    def __init__(self, kind: str, **how: Any) -> None:
        self.slept: list[float] = []
        self._runner = asyncio.Runner()
        self.client: Any
        if kind == "requests":
            self.client = requests.Session()
            self.client.mount("http://", RetryAdapter(sleep=self.slept.append, **how))
        elif kind == "httpx":
            transport = RetryTransport(sleep=self.slept.append, **how)
            self.client = httpx.Client(transport=transport)
        else:
            self.client = httpx.AsyncClient(
                transport=AsyncRetryTransport(sleep=self._asleep, **how)
            )
        self._kind = kind

    async def _asleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def send(
        self,
        url: str,
        *,
        method: str = "POST",
        body: Iterable[bytes] | bytes | None = b"{}",
        headers: dict[str, str] | None = None,
    ) -> Answer:
        if self._kind == "async":
            content = body if body is None or isinstance(body, bytes) else _lazily(body)
            asked = self.client.request(method, url, content=content, headers=headers)
            response = self._runner.run(asked)
        elif self._kind == "httpx":
            response = self.client.request(method, url, content=body, headers=headers)
        else:
            response = self.client.request(method, url, data=body, headers=headers)
        key = response.request.headers.get("Idempotency-Key")
        return Answer(response.status_code, response.content, key)

    def resume(self, journal: Any) -> Any:
        if self._kind == "async":
            return self._runner.run(journal.aresume(self.client))
        return journal.resume(self.client)

    def close(self) -> None:
        if self._kind == "async":
            self._runner.run(self.client.aclose())
        else:
            self.client.close()
        self._runner.close()


async def _lazily(body: Iterable[bytes]) -> Any:
    for chunk in body:
        yield chunk
