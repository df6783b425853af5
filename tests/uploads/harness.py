"""A tus client that shows everything, and servers to send to: in threads, and as processes."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from semel.uploads import Upload, Uploads
from tests.http.harness import Answer, Client, asgi_server, wsgi_server

ROOT = Path(__file__).parents[2]
TUS = ("Tus-Resumable", "1.0.0")
PIECE = ("Content-Type", "application/offset+octet-stream")
Headers = list[tuple[str, str]]


class Tus(Client):
    """One request a call."""

    def ask(
        self, method: str, path: str, headers: Headers | None = None, body: bytes = b""
    ) -> Answer:
        return self.send(path, None, body, method, headers, timeout=60)

    def create(self, length: int, headers: Headers | None = None, body: bytes = b"") -> Answer:
        fields = [TUS, ("Upload-Length", str(length)), *(headers or []), *([PIECE] if body else [])]
        return self.ask("POST", "/", fields, body)

    def head(self, url: str, headers: Headers | None = None) -> Answer:
        return self.ask("HEAD", url, [TUS, *(headers or [])])

    def patch(self, url: str, offset: int, body: bytes, headers: Headers | None = None) -> Answer:
        fields = [TUS, PIECE, ("Upload-Offset", str(offset)), *(headers or [])]
        return self.ask("PATCH", url, fields, body)

    def offset(self, url: str) -> int:
        return int(self.head(url).header("Upload-Offset") or "-1")

    def begin(self, length: int) -> str:
        answer = self.create(length)
        assert answer.status == 201, answer
        return answer.header("Location") or ""

    def request(self, url: str, offset: int, body: bytes) -> bytes:
        """Return the bytes of a PATCH."""
        head = (
            f"PATCH {urlsplit(url).path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\n"
            f"Content-Type: application/offset+octet-stream\r\nUpload-Offset: {offset}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def cut(self, data: bytes) -> None:
        """Send the start of a request, and hang up."""
        with self.connect() as connection:
            connection.sendall(data)

    @contextlib.contextmanager
    def holding(self, url: str, part: bytes) -> Iterator[socket.socket]:
        """Be in the middle of a PATCH that is `part`; it holds the upload."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with self.connect() as connection:
                connection.sendall(part)
                while not select.select([connection], [], [], 0.01)[0]:
                    if self.patch(url, 1, b"").status == 423:
                        yield connection
                        return
            # It was refused: our own look held the upload as it came.
        raise AssertionError("it did not come to hold the upload")

    def persist(self, url: str, data: bytes, piece: int | None = None) -> None:
        """Ask where it stands and go on from there, until it is complete."""
        for _ in range(400):
            try:
                answer = self.head(url)
                assert answer.status == 200, answer
                offset = int(answer.header("Upload-Offset") or "-1")
                if offset == len(data):
                    return
                end = len(data) if piece is None else offset + piece
                answer = self.patch(url, offset, data[offset:end])
                assert answer.status in (204, 409, 423, 503), answer
            except (OSError, http.client.HTTPException):
                time.sleep(0.02)  # the server is down: what a client would do
        raise AssertionError("it was never complete")


@dataclass
class Service(Tus):
    """A server in a thread, and the uploads behind it."""

    uploads: Uploads

    def found(self, url: str, scope: str = "anonymous") -> Upload:
        upload = self.uploads.find(scope, url)
        assert upload is not None
        return upload

    def content(self, url: str, scope: str = "anonymous") -> bytes:
        digest = self.found(url, scope).digest
        assert digest is not None
        with self.uploads.storage.open(digest) as file:
            return file.read()


@contextlib.contextmanager
def service(kind: str, uploads: Uploads) -> Iterator[Service]:
    serve = {"asgi": lambda: asgi_server(uploads.asgi), "wsgi": lambda: wsgi_server(uploads.wsgi)}
    with serve[kind]() as port:
        yield Service(port, uploads)


class Process(Tus):
    """A server process, to be killed and started anew on the same port."""

    def __init__(self, folder: Path, kind: str = "asgi", **environment: str) -> None:
        # Ours throughout, so that nobody gets the port while the server is dead.
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        super().__init__(self._listener.getsockname()[1])
        self.folder = folder
        self._kind = kind
        self._environment = {"UPLOADS_FOLDER": str(folder), **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, failpoint: str = "", workers: int = 1) -> None:
        """Start it. Requests may be sent at once; they wait until it is there."""
        fd = self._listener.fileno()
        command = {
            "asgi": ["uvicorn", "tests.uploads.app:asgi", "--fd", str(fd)],
            "wsgi": ["gunicorn", "tests.uploads.app:wsgi", "--bind", f"fd://{fd}"],
        }[self._kind]
        quiet = {"asgi": ["--log-level", "critical"], "wsgi": ["--threads", "4"]}[self._kind]
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command, "--workers", str(workers), *quiet],
            cwd=ROOT,
            env={**os.environ, **self._environment, "SEMEL_FAILPOINT": failpoint},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[fd],
        )

    def wait_dead(self, seconds: float = 60) -> None:
        """Wait until a failpoint has killed it."""
        assert self._process is not None
        assert self._process.wait(seconds) == -signal.SIGKILL

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(20)

    def close(self) -> None:
        self.kill()
        self._listener.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def objects(self) -> list[Path]:
        return sorted(p for p in (self.folder / "objects").rglob("*") if p.is_file())

    def partial(self) -> list[Path]:
        return sorted((self.folder / "uploads").glob("partial/*"))


def eventually(check: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something that happens in another thread or process has happened."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Have writes beyond a size end short, and the next ones with EFBIG: what a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # Python ignores SIGXFSZ
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
