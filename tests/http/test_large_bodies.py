"""A 1 GB upload and a 100 MB answer in constant memory, and a body that means to be a bomb."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http.harness import Client

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024


class Large(Client):
    database: Path

    def memory(self) -> int:
        """Return the most that any of the server's processes has held, in MiB."""
        peaks = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):
                if f"LARGE_DB={self.database}".encode() in (entry / "environ").read_bytes():
                    status = (entry / "status").read_text()
                    peaks.append(int(status.split("VmHWM:")[1].split()[0]) // 1024)
        return max(peaks)

    def effects(self) -> int:
        connection = sqlite3.connect(self.database)
        try:
            return int(connection.execute("select count(*) from charges").fetchone()[0])
        finally:
            connection.close()


@pytest.fixture(params=["asgi", "wsgi"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Large]:
    database = tmp_path / "large.db"
    connection = sqlite3.connect(database)
    connection.execute("create table charges (name)")
    connection.commit()
    connection.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = f"tests.http.large_app:{request.param}"
    command = {
        "asgi": ["uvicorn", app, "--port", str(port), "--log-level", "critical"],
        "wsgi": ["gunicorn", app, "--bind", f"127.0.0.1:{port}", "--threads", "4"],
    }[request.param]
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "LARGE_DB": str(database)},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.05)
        made = Large(port)
        made.database = database
        yield made
    finally:
        process.terminate()
        process.wait(20)


def upload(server: Large, size: int) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.putrequest("POST", "/upload")
    connection.putheader("Content-Length", str(size))
    connection.putheader("Idempotency-Key", "upload")
    connection.endheaders()
    chunk = bytes(MIB)
    for _ in range(size // MIB):
        connection.send(chunk)
    return connection.getresponse()


@pytest.mark.slow
def test_a_gigabyte_up_and_a_hundred_megabytes_down_take_no_memory(server: Large) -> None:
    assert server.send("/upload", "small", timeout=60).status == 201
    idle = server.memory()
    for replayed in (None, "true"):  # the repeat, too, is read to its end and gets its answer
        answer = upload(server, 1024 * MIB)
        assert (answer.status, answer.read()) == (201, str(1024 * MIB).encode())
        assert answer.getheader("Idempotent-Replayed") == replayed
    first = server.send("/download", "download", timeout=60)
    assert len(first.body) == 100 * MIB
    assert server.send("/download", "download").problem == "response-not-kept"
    assert server.effects() == 3
    assert server.memory() - idle < 64


def test_a_compressed_bomb_is_never_inflated(server: Large) -> None:
    bomb = gzip.compress(bytes(200 * MIB))
    assert server.send("/upload", "small").status == 201
    idle = server.memory()
    headers = [("Content-Encoding", "gzip")]
    first = server.send("/upload", "bomb", bomb, headers=headers)
    assert (first.status, first.body) == (201, str(len(bomb)).encode())
    assert server.send("/upload", "bomb", bomb, headers=headers).replayed
    assert server.memory() - idle < 32
