"""Connections that are cut, at any byte, and requests that meet at one upload."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from semel.uploads import DiskStorage, Uploads
from tests.uploads.harness import Process, Service, Tus, eventually, service
from tests.uploads.test_protocol import checksum

MIB = 1024 * 1024
Make = Callable[..., Process]


@pytest.fixture
def tus(tmp_path: Path) -> Iterator[Service]:
    uploads = Uploads(DiskStorage(tmp_path / "objects"), tmp_path / "uploads", sweep_every=None)
    with service("asgi", uploads) as made:
        yield made


@pytest.fixture(params=["uvicorn", "gunicorn"])
def server(request: pytest.FixtureRequest, process: Make) -> Process:
    made = process(kind="asgi" if request.param == "uvicorn" else "wsgi")
    made.start()
    return made


def stored(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in (folder / "objects").rglob("*") if path.is_file()]


def test_a_cut_at_every_byte_is_resumed(server: Process) -> None:
    data = os.urandom(40)
    head = len(server.request("/" + "0" * 32, 0, data)) - len(data)
    for cut in (*range(1, head, 8), *range(head, head + len(data))):
        url = server.begin(len(data))
        request = server.request(url, 0, data)
        server.cut(request[:cut])
        sent = max(0, cut - (len(request) - len(data)))
        assert server.offset(url) <= sent
        server.persist(url, data)
        assert server.offset(url) == len(data)
    assert stored(server.folder) == [data]
    assert server.partial() == []


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_cuts_at_random_bytes_of_a_large_file_resume(server: Process, how: str) -> None:
    rng = random.Random(7)
    data = rng.randbytes(20 * MIB)
    url = server.begin(len(data))
    for _ in range(12):
        offset = server.offset(url)
        request = server.request(url, offset, data[offset:])
        with server.connect() as connection:
            connection.sendall(request[: rng.randrange(len(request) // 3)])
            if how == "reset":
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    server.persist(url, data)
    assert stored(server.folder) == [data]


def test_what_came_before_a_cut_is_kept(server: Process) -> None:
    data = os.urandom(3 * MIB + 5)
    url = server.begin(len(data))
    request = server.request(url, 0, data)
    server.cut(request[:-7])
    lost = 128 * 1024  # what uvicorn has read and not handed over when it notices the cut
    eventually(lambda: len(data) - 7 - lost <= server.offset(url) <= len(data) - 7)


def test_a_piece_with_a_checksum_is_kept_whole_or_not_at_all(tus: Service) -> None:
    data = os.urandom(1000)
    url = tus.begin(len(data))
    name, value = checksum(data)
    request = tus.request(url, 0, data).replace(b"Host: x", f"Host: x\r\n{name}: {value}".encode())
    tus.cut(request[:-1])
    eventually(lambda: tus.patch(url, 0, data, [(name, value)]).status == 204)
    assert tus.content(url) == data


def test_of_two_requests_to_one_upload_one_wins(tus: Service) -> None:
    data = os.urandom(1000)
    url = tus.begin(len(data))
    request = tus.request(url, 0, data)
    with tus.holding(url, request[:-1]) as connection:
        locked = tus.patch(url, 0, data)
        assert (locked.problem, locked.header("Retry-After")) == ("upload-locked", "1")
        assert tus.ask("DELETE", url, [("Tus-Resumable", "1.0.0")]).problem == "upload-locked"
        assert tus.head(url).status == 200
        connection.sendall(request[-1:])
        assert b" 204 " in connection.recv(4096).split(b"\r\n")[0]
    assert tus.patch(url, 0, data).problem == "offset-conflict"
    assert tus.content(url) == data


def test_many_writers_at_once_make_one_whole_file(server: Process) -> None:
    data = os.urandom(300_000)
    url = server.begin(len(data))
    threads = [threading.Thread(target=server.persist, args=(url, data, 10_000)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored(server.folder) == [data]


def test_creations_at_once_under_one_key_make_one_upload(tus: Service) -> None:
    urls: set[str] = set()

    def create() -> None:
        while True:
            answer = tus.create(1000, [("Idempotency-Key", "k")])
            if answer.status == 201:
                urls.add(answer.header("Location") or "")
                return
            assert answer.problem == "upload-locked"

    threads = [threading.Thread(target=create) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(urls) == 1


def test_worker_processes_share_an_upload(process: Make) -> None:
    server = process(kind="asgi")
    server.start(workers=2)
    data = os.urandom(400_000)
    url = server.begin(len(data))
    server.persist(url, data, 10_000)
    assert stored(server.folder) == [data]


def test_a_client_that_falls_silent_loses_the_lock_and_keeps_its_bytes(tmp_path: Path) -> None:
    uploads = Uploads(DiskStorage(tmp_path / "o"), tmp_path / "u", idle=timedelta(milliseconds=200))
    data = os.urandom(1000)
    with service("asgi", uploads) as tus:
        url = tus.begin(len(data))
        with tus.connect() as connection:
            connection.sendall(tus.request(url, 0, data)[:-100])
            assert b" 408 " in connection.recv(4096).split(b"\r\n")[0]
        assert tus.offset(url) == 900
        assert tus.patch(url, 900, data[900:]).status == 204
        assert tus.content(url) == data


def test_a_plain_upload_that_is_cut_leaves_nothing(server: Process) -> None:
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + bytes(999)
    with server.connect() as connection:
        connection.sendall(request)
        eventually(lambda: len(server.partial()) == 1)
    eventually(lambda: server.partial() == [])
    assert stored(server.folder) == []


def test_a_refused_client_in_mid_upload_gets_its_answer(tus: Service) -> None:
    assert tus.patch("/" + "0" * 32, 0, bytes(8 * MIB)).problem == "upload-not-found"


def test_a_server_that_stops_keeps_what_came(tmp_path: Path) -> None:
    uploads = Uploads(DiskStorage(tmp_path / "o"), tmp_path / "u")
    data = os.urandom(MIB)
    with service("asgi", uploads) as first:
        url = first.begin(len(data))
        with first.holding(url, first.request(url, 0, data)[:-5000]):
            pass
    with service("asgi", uploads) as second:
        assert 0 < second.offset(url) <= MIB - 5000
        second.persist(url, data)
        assert second.content(url) == data


def test_the_harness_notices_an_upload_that_cannot_be_completed(tus: Tus) -> None:
    with pytest.raises(AssertionError):
        tus.persist("/" + "0" * 32, b"x")
