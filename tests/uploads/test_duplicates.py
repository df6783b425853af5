"""A hundred clients that send the same file at once: one object, one answer, little memory.

`SEMEL_UPLOAD_MB=50` is the full size (5 GB pass); CI sends less.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable

import pytest

from tests.uploads.harness import Process

CLIENTS = 100
SIZE = int(os.environ.get("SEMEL_UPLOAD_MB", "10")) * 1000 * 1000
Make = Callable[..., Process]


def peak(pid: int) -> int:
    """Return the most memory that a process has held, in MiB."""
    with open(f"/proc/{pid}/status") as status:
        return int(status.read().split("VmHWM:")[1].split()[0]) // 1024


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_copies_at_once_are_one_object_with_one_answer_in_little_memory(
    process: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    server = process()
    server.start()
    assert server.ask("POST", "/", [], b"warm").status == 201
    idle = peak(server.pid)
    data = random.Random(2).randbytes(SIZE)  # one buffer, which all clients send
    answers: list[bytes] = []
    ready = threading.Barrier(CLIENTS)
    head = f"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {SIZE}\r\n\r\n"

    def send() -> None:
        with server.connect() as connection:
            connection.settimeout(300)
            ready.wait()
            connection.sendall(head.encode())
            connection.sendall(data)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
            answers.append(received)

    threads = [threading.Thread(target=send) for _ in range(CLIENTS)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - started
    grown = peak(server.pid) - idle
    with capsys.disabled():
        print(f"\n{CLIENTS} x {SIZE // 10**6} MB: {seconds:.1f} s, {grown} MiB more memory")
    assert len(answers) == CLIENTS
    same = {tuple(line for line in a.split(b"\r\n") if b"date:" not in line) for a in answers}
    assert len(same) == 1
    assert next(iter(same))[0] == b"HTTP/1.1 201 Created"
    name = hashlib.sha256(data).hexdigest()
    assert sorted(p.stat().st_size for p in server.objects()) == [4, SIZE]
    stored = next(p for p in server.objects() if p.stat().st_size == SIZE)
    assert stored.name == name
    with stored.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == name
    assert server.partial() == []
    assert grown < 100
