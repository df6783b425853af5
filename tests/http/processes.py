"""Real servers as processes of their own, for what a process does as a whole."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from semel.testing.servers import free_port


def gunicorn(*options: str) -> tuple[str, ...]:
    """Return the server's module and options; its graceful end would take ten minutes."""
    return ("gunicorn", "application:app", "--graceful-timeout=600", *options)


UVICORN = ("uvicorn", "application:app")
HYPERCORN = ("hypercorn", "application:app")
WAITRESS = ("waitress", "--threads=4", "application:app")


@contextlib.contextmanager
def serving(
    folder: Path, source: str, server: tuple[str, ...], **settings: str
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run `application.py` behind a server; give its port and its process.

    The application finds its folder in `HERE`, and GET /health is answered once it is up.
    """
    (folder / "application.py").write_text(source)
    port = free_port()
    bind = {
        "uvicorn": f"--port={port}",
        "waitress": f"--listen=127.0.0.1:{port}",
    }.get(server[0], f"--bind=127.0.0.1:{port}")
    environment = {**os.environ, "HERE": str(folder), **settings}
    path = f"{folder}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", server[0], bind, *server[1:]],
            env={**environment, "PYTHONPATH": path},
            cwd=folder,
            stdout=log,
            stderr=log,
        )
        try:
            while True:
                with contextlib.suppress(OSError):
                    ask(port, "GET", "/health")
                    break
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.02)
            yield port, process
        finally:
            (folder / "go").touch()
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.wait()


def ask(port: int, method: str, path: str, key: str | None = None) -> int:
    """Return the status of a request's response, whose body is left unread."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=50)
    try:
        connection.request(method, path, b"", {"Idempotency-Key": key} if key else {})
        return connection.getresponse().status
    finally:
        connection.close()


def leave_after_a_chunk(port: int, path: str, key: str) -> None:
    """Send a POST, read the beginning of what it streams, and hang up."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: {key}\r\nContent-Length: 0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=50) as connection:
        connection.sendall(head.encode())
        received = b""
        while b"token" not in received:
            chunk = connection.recv(65536)
            assert chunk, received
            received += chunk


def noted(folder: Path) -> list[str]:
    """Return what the application has noted."""
    with contextlib.suppress(FileNotFoundError):
        return (folder / "notes").read_text().split()
    return []


def until_noted(folder: Path, *notes: str) -> None:
    """Wait until the application has noted just this."""
    deadline = time.monotonic() + 60
    while noted(folder) != list(notes):
        assert time.monotonic() < deadline, (noted(folder), (folder / "log").read_text())
        time.sleep(0.01)
