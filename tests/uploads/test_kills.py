"""kill -9 at every point of an upload's way: it goes on from what was acknowledged or from more."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from semel import failpoints
from semel.core.record import Response
from semel.uploads import DiskStorage, Uploads
from semel.uploads.protocol import UploadRequest
from semel.uploads.s3 import PART_SIZE, S3Storage
from tests import servers
from tests.http.harness import Answer
from tests.uploads.harness import Process, eventually
from tests.uploads.test_storage import s3_client, s3_storage

pytestmark = pytest.mark.chaos

MIB = 1024 * 1024
DATA = os.urandom(5 * MIB + 1)
POINTS = (
    "upload_reserved",
    "upload_created",
    "upload_written",
    "upload_written:9",
    "upload_synced",
    "upload_synced:3",
    "upload_acknowledged",
    "upload_acknowledged:2",
    "upload_hashed",
    "upload_placing",
    "upload_placed",
    "upload_done",
)
Make = Callable[..., Process]


def asked(call: Callable[[], Answer]) -> Answer | None:
    """Return the answer, or None where the server died."""
    try:
        return call()
    except (OSError, http.client.HTTPException):
        return None


@pytest.mark.parametrize(
    ("point", "piece"),
    [
        *((point, len(DATA)) for point in POINTS),
        *((point, 2 * MIB) for point in ("upload_synced", "upload_acknowledged:2", "upload_done")),
    ],
)
def test_a_killed_server_goes_on_from_what_was_acknowledged(
    process: Make, point: str, piece: int
) -> None:
    server = process(UPLOADS_KEEP_EVERY=str(MIB))
    server.start(f"{point}=kill")
    create = partial(server.create, len(DATA), [("Idempotency-Key", "k")])
    made = asked(create) or asked_again(server, create)
    url = made.header("Location") or ""
    offset, deaths = 0, 0
    while offset < len(DATA):
        answer = asked(partial(server.patch, url, offset, DATA[offset : offset + piece]))
        if answer is None:
            deaths += 1
            server.wait_dead()
            server.start()
            acknowledged, offset = offset, server.offset(url)
            assert offset >= acknowledged
            if point in ("upload_acknowledged", "upload_done"):
                assert offset > acknowledged  # durable, if nobody heard of it
        else:
            assert answer.status == 204
            offset = int(answer.header("Upload-Offset") or "")
    assert deaths == (0 if point in ("upload_reserved", "upload_created") else 1)
    assert server.offset(url) == len(DATA)
    whole = [path for path in server.objects() if path.suffix != ".tmp"]
    assert [path.read_bytes() for path in whole] == [DATA]
    swept(server, url)


@pytest.mark.parametrize("point", ["upload_placing", "upload_placed"])
def test_other_bytes_after_a_kill_leave_the_stored_object_as_it_is(
    process: Make, point: str
) -> None:
    server = process(UPLOADS_KEEP_EVERY=str(MIB))
    server.start(f"{point}=kill")
    url = server.begin(len(DATA))
    assert asked(lambda: server.patch(url, 0, DATA)) is None
    offset, other = 0, os.urandom(len(DATA))
    for point_of_copy in ("upload_copied=kill", ""):  # the way out of it can be killed too
        server.wait_dead()
        server.start(point_of_copy)
        offset = server.offset(url)
        assert 0 < offset < len(DATA)
        answer = asked(partial(server.patch, url, offset, other[offset:]))
        assert (answer is None) == bool(point_of_copy)
    mixed = DATA[:offset] + other[offset:]
    expected = [mixed] if point == "upload_placing" else [DATA, mixed]
    whole = {path.name: path.read_bytes() for path in server.objects() if path.suffix != ".tmp"}
    assert whole == {hashlib.sha256(content).hexdigest(): content for content in expected}
    assert server.partial() == []


def test_a_new_upload_in_the_place_of_one_that_a_kill_left_leaves_the_stored_object_as_it_is(
    process: Make,
) -> None:
    server = process()
    server.start("upload_placed=kill")
    url = server.create(len(DATA), [("Idempotency-Key", "k")]).header("Location") or ""
    assert asked(lambda: server.patch(url, 0, DATA)) is None
    server.wait_dead()
    late = Uploads(DiskStorage(server.folder / "objects"), server.folder / "uploads", now=later)
    fields = {"tus-resumable": "1.0.0", "upload-length": "10", "idempotency-key": "k"}
    made = late.begin(UploadRequest("POST", "/", fields), "anonymous", "")
    assert isinstance(made, Response)
    assert made.status == 201
    assert [path.read_bytes() for path in server.objects()] == [DATA]
    assert [path.read_bytes() for path in server.partial()] == [bytes(10)]


def later() -> float:
    """When everything has expired."""
    return time.time() + 10**6


def asked_again(server: Process, call: Callable[[], Answer]) -> Answer:
    """Start a server that a failpoint has killed, and ask again."""
    server.wait_dead()
    server.start()
    return call()


def swept(server: Process, url: str) -> None:
    """What a crash left goes with a sweep, and what counts stays."""
    uploads = Uploads(DiskStorage(server.folder / "objects"), server.folder / "uploads")
    uploads.sweep()
    uploads.storage.sweep(-60)
    assert server.partial() == []
    assert len(server.objects()) == 1
    found = uploads.find("anonymous", url)
    assert found is not None
    assert found.complete


@pytest.mark.parametrize("point", [p for p in POINTS if "synced" not in p and "ack" not in p])
def test_a_plain_upload_that_a_kill_ended_is_sent_again_and_stored_once(
    process: Make, point: str
) -> None:
    if point == "upload_created":
        return  # a plain upload is not written down before it is complete
    server = process()
    server.start(f"{point}=kill")
    assert asked(lambda: server.ask("POST", "/", [], DATA)) is None
    server.wait_dead()
    server.start()
    answer = server.ask("POST", "/", [], DATA)
    assert answer.status == 201
    swept(server, answer.header("Location") or "")


def test_a_sweep_that_is_killed_is_finished_by_the_next(tmp_path: Path) -> None:
    uploads = Uploads(DiskStorage(tmp_path / "o"), tmp_path / "u")
    abandon(uploads)
    killed = get_context("fork").Process(target=sweep_and_die, args=(tmp_path,))
    killed.start()
    killed.join(30)
    assert killed.exitcode == -9
    late = Uploads(DiskStorage(tmp_path / "o"), tmp_path / "u", now=lambda: 1e12)
    left = list((tmp_path / "u" / "partial").iterdir())
    assert len(left) == 1
    assert late.sweep() == 1
    assert list((tmp_path / "u" / "partial").iterdir()) == []


def test_a_draft_that_a_kill_left_goes_once_it_is_surely_nobodys(tmp_path: Path) -> None:
    uploads = Uploads(DiskStorage(tmp_path / "o"), tmp_path / "u")
    for folder in ("partial", "state"):
        for name, age in (("young", 0), ("old", 4000)):
            draft = tmp_path / "u" / folder / f"{name}.tmp"
            draft.write_bytes(b"half")
            os.utime(draft, (time.time() - age,) * 2)
    uploads.sweep()
    assert sorted(path.name for path in (tmp_path / "u").glob("*/*")) == ["young.tmp"] * 2


def abandon(uploads: Uploads) -> None:
    wish = UploadRequest("POST", "/", {"tus-resumable": "1.0.0", "upload-length": "10"})
    assert isinstance(uploads.begin(wish, "anonymous", ""), Response)


def sweep_and_die(folder: Path) -> None:

    failpoints.arm("upload_in_sweep=kill")
    Uploads(DiskStorage(folder / "o"), folder / "u", now=lambda: 1e12).sweep()


@pytest.mark.parametrize("point", ["upload_hashed", "upload_placed", "upload_done"])
def test_a_kill_around_the_way_to_s3_leaves_one_object(
    process: Make, tmp_path: Path, point: str
) -> None:
    s3, prefix = servers.s3(), f"{tmp_path.name}/"
    server = process(UPLOADS_S3=s3.url, UPLOADS_PREFIX=prefix, UPLOADS_KEEP_EVERY=str(MIB))
    server.start(f"{point}=kill")
    url = server.begin(len(DATA))
    assert asked(lambda: server.patch(url, 0, DATA)) is None
    server.wait_dead()
    server.start()
    server.persist(url, DATA)
    found = s3_client(s3).list_objects_v2(Bucket=s3.bucket, Prefix=prefix)["Contents"]
    assert [entry["Size"] for entry in found] == [len(DATA)]


def unfinished(storage: S3Storage) -> int:
    try:
        return len(list(storage._unfinished()))
    except ClientError:  # rclone's answer while an upload is just being begun
        return 0


def test_a_kill_on_the_way_to_s3_leaves_parts_that_a_sweep_aborts(
    process: Make, tmp_path: Path
) -> None:
    s3, prefix = servers.s3(), f"{tmp_path.name}/"
    server = process(UPLOADS_S3=s3.url, UPLOADS_PREFIX=prefix)
    server.start()
    size = 5 * PART_SIZE
    storage = s3_storage(s3, prefix)
    data = os.urandom(size)
    url = server.begin(size)
    with server.connect() as connection:
        connection.sendall(server.request(url, 0, data))
        eventually(lambda: unfinished(storage) == 1)
        server.kill()
    assert unfinished(storage) == 1
    assert storage.sweep(-60) == 1
    server.start()
    assert server.offset(url) >= size - 8 * MIB - 256 * 1024
    server.persist(url, data)
    found = s3_client(s3).list_objects_v2(Bucket=s3.bucket, Prefix=prefix)["Contents"]
    assert [entry["Size"] for entry in found] == [size]
