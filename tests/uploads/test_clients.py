"""Clients that others wrote: tuspy, and tus-js-client under node."""

from __future__ import annotations

import contextlib
import io
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tusclient.client import TusClient

from semel.testing.proxy import Proxy
from semel.uploads import DiskStorage, Uploads
from tests.uploads.conftest import Start
from tests.uploads.harness import Process, Service, service

MIB = 1024 * 1024


@pytest.fixture
def tus(tmp_path: Path) -> Iterator[Service]:
    uploads = Uploads(DiskStorage(tmp_path / "objects"), tmp_path / "uploads", sweep_every=None)
    with service("asgi", uploads) as made:
        yield made


@contextlib.contextmanager
def bad_network(port: int, cuts: int) -> Iterator[Proxy]:
    """A proxy that loses the answer to some requests, and cuts others in the middle."""
    proxy = Proxy(port)
    proxy.delay = 0.002
    rng = random.Random(3)
    over = threading.Event()

    def disturb() -> None:
        for number in range(cuts):
            if over.wait(rng.uniform(0.05, 0.3)):
                return
            if number % 2:
                proxy.cut_all()
            else:
                proxy.cut_answer_to = rng.choice([b"PATCH", b"HEAD"])

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield proxy
    finally:
        over.set()
        thread.join()
        proxy.close()


# --- tuspy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("checksums", [False, True])
def test_tuspy_uploads(start: Start, checksums: bool) -> None:
    tus = start()
    data = os.urandom(3 * MIB + 17)
    uploader = TusClient(f"http://127.0.0.1:{tus.port}/").uploader(
        file_stream=io.BytesIO(data),
        chunk_size=MIB,
        metadata={"filename": "übung.txt"},
        upload_checksum=checksums,
    )
    uploader.upload()
    assert tus.content(uploader.url) == data
    assert tus.found(uploader.url).describe() == {"filename": "übung.txt"}


def test_tuspy_goes_on_where_another_stopped(start: Start) -> None:
    tus = start()
    data = os.urandom(2 * MIB)
    client = TusClient(f"http://127.0.0.1:{tus.port}/")
    first = client.uploader(file_stream=io.BytesIO(data), chunk_size=300_000)
    first.upload_chunk()
    second = client.uploader(file_stream=io.BytesIO(data), chunk_size=300_000, url=first.url)
    assert second.offset == 300_000
    second.upload()
    assert tus.content(first.url) == data


# --- tus-js-client ------------------------------------------------------------------------------

Node = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def node(scripts: Path, tmp_path: Path) -> Iterator[Node]:
    started: list[subprocess.Popen[str]] = []

    def run(port: int, file: Path, chunk: int) -> subprocess.Popen[str]:
        arguments = (f"http://127.0.0.1:{port}/", str(file), str(chunk), str(tmp_path / "memory"))
        process = subprocess.Popen(
            ["node", "upload.cjs", *arguments],
            cwd=scripts,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def large(tmp_path: Path, size: int) -> Path:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(random.Random(1).randbytes(size))
    return path


def url_of(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.rsplit("url ", 1)[1].strip()


def test_tus_js_client_uploads(start: Start, node: Node, tmp_path: Path) -> None:
    tus = start()
    file = large(tmp_path, 3 * MIB + 1)
    url = url_of(node(tus.port, file, MIB))
    assert tus.content(url) == file.read_bytes()
    assert tus.found(url).describe() == {"filename": "holiday.jpg"}


def test_tus_js_client_gets_through_a_bad_network(tus: Service, node: Node, tmp_path: Path) -> None:
    file = large(tmp_path, 12 * MIB)
    with bad_network(tus.port, cuts=12) as proxy:
        url = url_of(node(proxy.port, file, 2 * MIB))
    assert proxy.cuts > 0
    assert tus.content(url) == file.read_bytes()
    assert len(list((tmp_path / "objects").glob("??/*"))) == 1


def test_tus_js_client_goes_on_after_its_own_end(tus: Service, node: Node, tmp_path: Path) -> None:
    file = large(tmp_path, 4 * MIB)
    proxy = Proxy(tus.port)
    try:
        first = node(proxy.port, file, MIB // 2)
        assert first.stdout is not None
        assert first.stdout.readline() == f"accepted {MIB // 2}\n"
        first.kill()
        again = node(proxy.port, file, MIB // 2)
        out, err = again.communicate(timeout=60)
    finally:
        proxy.close()
    assert again.returncode == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("resumed ")
    url = lines[0].removeprefix("resumed ")
    assert lines[-1] == f"url {url}"
    assert f"accepted {MIB // 2}" not in lines
    assert tus.content(url) == file.read_bytes()


@pytest.mark.chaos
def test_tus_js_client_goes_on_after_the_servers_end(
    process: Callable[..., Process], node: Node, tmp_path: Path
) -> None:
    server = process(UPLOADS_KEEP_EVERY=str(MIB))
    file = large(tmp_path, 6 * MIB)
    server.start("upload_acknowledged:3=kill")
    client = node(server.port, file, 6 * MIB)
    server.wait_dead()
    server.start("upload_placed=kill")
    server.wait_dead()
    server.start()
    url_of(client)
    assert [path.read_bytes() for path in server.objects()] == [file.read_bytes()]
