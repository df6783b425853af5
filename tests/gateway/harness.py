"""A service that is told byte by byte what to do, and the gateway in front of it."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from semel.gateway import serving
from semel.gateway.settings import settings
from tests.http.harness import Answer, Client

OK = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Received:
    """A request as it arrived."""

    head: bytes
    body: bytes = b""

    @property
    def line(self) -> str:
        return self.head.split(b"\r\n", 1)[0].decode()

    def all(self, name: str) -> list[str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        pairs = [line.split(": ", 1) for line in lines if ": " in line]
        return [value for found, value in pairs if found.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        values = self.all(name)
        return values[0] if values else None


@dataclass
class Service:
    """A server on raw sockets: `behave` is given the connection and each request."""

    behave: Callable[[socket.socket, Received], Any] = lambda connection, request: (
        connection.sendall(OK)
    )
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[Service]:
        with socket.create_server(("127.0.0.1", self.port)) as listening:
            self.port = listening.getsockname()[1]
            thread = threading.Thread(target=self._accept, args=(listening,), daemon=True)
            thread.start()
            try:
                yield self
            finally:
                with contextlib.suppress(OSError):
                    listening.shutdown(socket.SHUT_RDWR)
                thread.join(5)

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while (request := read_request(connection)) is not None:
                self.requests.append(request)
                if self.behave(connection, request) == "close":
                    return


def read_request(connection: socket.socket) -> Received | None:
    """Read one request, its body by length or in chunks."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            return None
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    request = Received(head)
    if "chunked" in (request.header("transfer-encoding") or ""):
        while not body.endswith(b"0\r\n\r\n"):
            chunk = connection.recv(65536)
            if not chunk:
                return None
            body += chunk
        request.body = b"".join(re.findall(rb"[0-9a-f]+\r\n(.*?)\r\n", body, re.DOTALL))
    else:
        length = int(request.header("content-length") or 0)
        while len(body) < length:
            chunk = connection.recv(65536)
            if not chunk:
                return None
            body += chunk
        request.body = body
    return request


@dataclass
class Gateway(Client):
    server: Any

    def get(self, path: str = "/", **request: Any) -> Answer:
        return self.send(path, key=None, method="GET", body=b"", **request)


@contextlib.contextmanager
def gateway(service_port: int, **document: Any) -> Iterator[Gateway]:
    """Run a gateway in a thread of this process; `document`: the tables of its TOML file."""
    document.setdefault("store", "memory://")
    document["upstream"] = {
        "url": f"http://127.0.0.1:{service_port}",
        **document.get("upstream", {}),
    }
    made = settings({**document, "listen": "127.0.0.1:0"})
    with serving.listen(made) as listening:
        server = uvicorn.Server(serving.config(made))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the gateway did not start"
            time.sleep(0.005)
        try:
            yield Gateway(listening.getsockname()[1], server)
        finally:
            server.should_exit = True
            thread.join(15)
