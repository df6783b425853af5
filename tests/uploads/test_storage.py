"""Where finished files are kept: one contract, on disk and on an S3 server."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import pytest

from semel.testing.servers import S3
from semel.uploads import DiskStorage, Storage, StorageError
from semel.uploads.s3 import PART_SIZE, S3Storage
from tests import servers

DATA = random.Random(4).randbytes(3000)
NAME = hashlib.sha256(DATA).hexdigest()


def s3_client(server: S3) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=botocore.config.Config(
            connect_timeout=2, read_timeout=20, retries={"total_max_attempts": 1}
        ),
    )


def s3_storage(server: S3, prefix: str = "") -> S3Storage:
    return S3Storage(s3_client(server), server.bucket, prefix)


@pytest.fixture(params=["disk", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "disk":
        return DiskStorage(tmp_path / "objects")
    return s3_storage(servers.s3(), f"{tmp_path.name}/")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return path


def test_an_object_is_stored_once(storage: Storage, file: Path) -> None:
    assert storage.size(NAME) is None
    assert storage.put(NAME, file) is True
    assert storage.put(NAME, file) is False
    assert storage.size(NAME) == 3000
    with storage.open(NAME) as stored:
        assert stored.read() == DATA
    assert file.read_bytes() == DATA


def test_an_object_of_a_wrong_size_is_replaced(storage: Storage, file: Path) -> None:
    damaged = file.with_name("damaged")
    damaged.write_bytes(DATA[:-1])
    storage.put(NAME, damaged)
    assert storage.put(NAME, file) is True
    with storage.open(NAME) as stored:
        assert stored.read() == DATA


def test_many_copies_at_once_are_one_object(storage: Storage, file: Path) -> None:
    new: list[bool] = []
    threads = [
        threading.Thread(target=lambda: new.append(storage.put(NAME, file))) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(new), new.count(True)) == (16, 1)
    if isinstance(storage, DiskStorage):
        assert [p.name for p in storage.folder.rglob("*") if p.is_file()] == [NAME]
    with storage.open(NAME) as stored:
        assert stored.read() == DATA


def test_a_large_object_passes_in_parts(storage: Storage, tmp_path: Path) -> None:
    path = tmp_path / "large"
    chunk = os.urandom(1024 * 1024)
    with path.open("wb") as large:
        for _ in range(2 * PART_SIZE // len(chunk) + 1):
            large.write(chunk)
    with path.open("rb") as large:
        name = hashlib.file_digest(large, "sha256").hexdigest()
    assert storage.put(name, path) is True
    assert storage.size(name) == path.stat().st_size
    with storage.open(name) as stored:
        running = hashlib.sha256()
        while part := stored.read(1024 * 1024):
            running.update(part)
    assert running.hexdigest() == name


def test_an_object_can_be_removed(storage: Storage, file: Path) -> None:
    storage.put(NAME, file)
    storage.remove(NAME)
    storage.remove(NAME)
    assert storage.size(NAME) is None
    with pytest.raises(FileNotFoundError):
        storage.open(NAME)


@pytest.mark.parametrize("name", ["", "../" * 21 + "x", "/etc/passwd", NAME.upper(), NAME + "\n"])
def test_nothing_but_a_digest_names_an_object(storage: Storage, file: Path, name: str) -> None:
    for call in (
        *(lambda: storage.put(name, file), lambda: storage.open(name)),
        *(lambda: storage.size(name), lambda: storage.remove(name)),
    ):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            call()


def test_across_file_systems_the_file_is_copied(tmp_path: Path, file: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system only")
    source = elsewhere / f"semel-{os.getpid()}"
    source.write_bytes(DATA)
    try:
        storage = DiskStorage(tmp_path / "objects")
        assert storage.put(NAME, source) is True
        with storage.open(NAME) as stored:
            assert stored.read() == DATA
    finally:
        source.unlink()


def test_drafts_that_a_crash_left_are_cleared_away(tmp_path: Path, file: Path) -> None:
    storage = DiskStorage(tmp_path / "objects")
    storage.put(NAME, file)
    draft = storage.folder / NAME[:2] / f"{NAME}.0123.tmp"
    draft.write_bytes(b"half")
    assert storage.sweep(3600) == 0
    assert storage.sweep(-1) == 1
    assert storage.size(NAME) == 3000


def test_multipart_uploads_that_a_crash_left_are_aborted(tmp_path: Path) -> None:
    server = servers.s3()
    storage, client = s3_storage(server, "mine/"), s3_client(server)
    begun = client.create_multipart_upload(Bucket=server.bucket, Key=f"mine/{NAME}")
    client.upload_part(
        Bucket=server.bucket,
        Key=f"mine/{NAME}",
        UploadId=begun["UploadId"],
        PartNumber=1,
        Body=bytes(5 * 1024 * 1024),
    )
    assert storage.sweep(3600) == 0
    assert storage.sweep(-60) == 1
    assert storage.sweep(-60) == 0
    assert storage.size(NAME) is None


def test_a_bucket_that_is_not_there_is_an_error_and_not_a_missing_object(file: Path) -> None:
    storage = S3Storage(s3_client(servers.s3()), "no-such-bucket")
    with pytest.raises(StorageError):
        storage.put(NAME, file)
    with pytest.raises(StorageError):
        storage.sweep(0)
