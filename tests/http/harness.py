"""Real servers in threads of this process, and a client that sees the bytes."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from waitress.server import create_server

from semel import ASGIMiddleware, Idempotency, WSGIMiddleware

BODY = b'{"amount": 5}'


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        values = self.all(name)
        return values[0] if values else None

    def all(self, name: str) -> list[str]:
        return [value for field_name, value in self.headers if field_name.lower() == name.lower()]

    @property
    def replayed(self) -> bool:
        return self.header("Idempotent-Replayed") == "true"

    @property
    def problem(self) -> str:
        assert self.header("Content-Type") == "application/problem+json", (self.status, self.body)
        return str(json.loads(self.body)["type"]).rsplit("/", 1)[1]


@dataclass
class Client:
    port: int

    def send(
        self,
        path: str = "/run",
        key: str | None = "k",
        body: bytes = BODY,
        method: str = "POST",
        headers: list[tuple[str, str]] | None = None,
        timeout: float = 20,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.putrequest(method, path)
            fields = [("Content-Length", str(len(body))), ("Content-Type", "application/json")]
            if key is not None:
                fields.append(("Idempotency-Key", key))
            given = {name.lower() for name, _ in headers or []}
            for name, value in [f for f in fields if f[0].lower() not in given] + (headers or []):
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def raw(self, data: bytes) -> bytes:
        """Send bytes as they are; return all that comes back."""
        with self.connect() as connection:
            connection.sendall(data)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
            return received

    def together(self, count: int, **request: Any) -> list[Answer]:
        answers: list[Answer] = []
        threads = [
            threading.Thread(target=lambda: answers.append(self.send(**request)))
            for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers


@dataclass
class Server(Client):
    idempotency: Idempotency


@contextlib.contextmanager
def asgi_server(app: Any) -> Iterator[int]:
    config = uvicorn.Config(app, port=0, log_level="critical", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("uvicorn did not start")
        time.sleep(0.005)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


@contextlib.contextmanager
def wsgi_server(app: Any) -> Iterator[int]:
    server = create_server(app, host="127.0.0.1", port=0, threads=16)

    server.adj.asyncore_loop_timeout = 0.02  # how long it takes to notice its end

    def run() -> None:
        with contextlib.suppress(OSError):  # its own way of ending: the socket has been closed
            server.run()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield server.effective_port
    finally:
        server.close()
        thread.join(5)


@dataclass
class Recorder:
    """The application under test: what it does is set by each test, how often it ran is counted.

    `behave(n, request)` is given the number of the run and returns (status, headers, chunks), or
    raises. A chunk that is callable is called in its place (to wait, to raise).
    """

    behave: Callable[[int, Request], tuple[int, list[tuple[str, str]], list[Any]]]
    runs: int = 0
    finished: int = 0
    disconnected: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> int:
        with self.lock:
            self.runs += 1
            return self.runs


@dataclass
class Request:
    method: str
    path: str
    body: bytes
    native: Any


def asgi_app(recorder: Recorder) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        number = recorder.begin()
        request = Request(scope["method"], scope["path"], body, scope)
        status, headers, chunks = await asyncio.to_thread(recorder.behave, number, request)
        fields = [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in headers]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        for index, chunk in enumerate(chunks):
            if callable(chunk):
                chunk = await asyncio.to_thread(chunk)
            last = index == len(chunks) - 1 and len(chunks) == 1
            await send({"type": "http.response.body", "body": chunk, "more_body": not last})
        if len(chunks) != 1:
            await send({"type": "http.response.body", "body": b""})
        recorder.finished += 1

    return app


def wsgi_app(recorder: Recorder) -> Any:
    def app(environ: Any, start_response: Any) -> Any:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        number = recorder.begin()
        request = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], body, environ)
        status, headers, chunks = recorder.behave(number, request)
        start_response(f"{status} Whatever", list(headers))
        if len(chunks) == 1 and not callable(chunks[0]):
            recorder.finished += 1
            return list(chunks)
        return stream(chunks)

    def stream(chunks: list[Any]) -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk() if callable(chunk) else chunk
        recorder.finished += 1

    return app


@contextlib.contextmanager
def serve(kind: str, recorder: Recorder, idempotency: Idempotency) -> Iterator[Server]:
    """Run the application behind a real server of this kind ("asgi" or "wsgi")."""
    if kind == "asgi":
        running = asgi_server(ASGIMiddleware(asgi_app(recorder), idempotency))
    else:
        running = wsgi_server(WSGIMiddleware(wsgi_app(recorder), idempotency))
    with running as port:
        try:
            yield Server(port, idempotency)
        finally:
            idempotency.stop()


def until(condition: Callable[[], bool], message: str = "it never happened") -> None:
    """Wait for something that is about to happen."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, message
        time.sleep(0.005)
