"""Requests that end in mid-air: cancelled at any await, or failed by the server they came over."""

from __future__ import annotations

import asyncio
import gc
import os
import types
from collections.abc import Coroutine, Generator
from pathlib import Path
from typing import Any

import pytest

from semel import failpoints
from semel.core.record import Response
from semel.uploads import DiskStorage, Uploads
from semel.uploads.asgi import AT_ONCE
from semel.uploads.intake import UploadIntake
from semel.uploads.protocol import UploadRequest

DATA = os.urandom(2 * AT_ONCE + 1000)
PIECES = [DATA[:AT_ONCE], DATA[AT_ONCE : 2 * AT_ONCE], DATA[2 * AT_ONCE :]]
TUS = {"tus-resumable": "1.0.0", "content-type": "application/offset+octet-stream"}


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(DiskStorage(tmp_path / "o"), tmp_path / "u", scope=lambda _: "anonymous")


def begin(uploads: Uploads) -> str:
    """Return the path of a new upload."""
    made = uploads.begin(
        UploadRequest("POST", "/", {"tus-resumable": "1.0.0", "upload-length": str(len(DATA))}),
        *("anonymous", ""),
    )
    assert isinstance(made, Response)
    return dict(made.headers)[b"location"].decode()


def finish(uploads: Uploads, path: str) -> int:
    """Go on from where it stands, to the end; return where it stood."""
    found = uploads.find("anonymous", path)
    assert found is not None
    headers = TUS | {"upload-offset": str(found.offset)}
    intake = uploads.begin(UploadRequest("PATCH", path, headers), "anonymous", "")
    if isinstance(intake, UploadIntake):
        assert intake.write([DATA[found.offset :]]) is None
        intake = intake.end()
    assert intake.status == 204, "somebody holds it still"
    whole = uploads.find("anonymous", path)
    assert whole is not None
    assert whole.digest is not None
    with uploads.storage.open(whole.digest) as file:
        assert file.read() == DATA
    return found.offset


async def request(
    uploads: Uploads, method: str, path: str, *, at_last: BaseException | None = None
) -> None:
    """Send the data in three pieces; with `at_last`, two of them and then this, as a server may."""
    fields = (
        {"content-length": str(len(DATA))} if method == "POST" else TUS | {"upload-offset": "0"}
    )
    headers = [(name.encode(), value.encode()) for name, value in fields.items()]
    left = list(PIECES)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.0001)
        if at_last is not None and len(left) == 1:
            raise at_last
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(_: dict[str, Any]) -> None:
        await asyncio.sleep(0.0001)

    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    await uploads.asgi(scope, receive, send)


@types.coroutine
def cancelling(begun: Coroutine[Any, Any, None], at: int, times: int) -> Generator[Any, Any, int]:
    """Await, and cancel the task at its n-th wait and at the waits after it; return how many."""
    task = asyncio.current_task()
    assert task is not None
    waits = 0
    step: Any = begun.send
    value: Any = None
    while True:
        try:
            waited_for = step(value)
        except StopIteration:
            return waits
        waits += 1
        if at <= waits < at + times:
            task.cancel()
        try:
            value = yield waited_for
            step = begun.send
        except BaseException as error:  # the request's, to do with what it likes
            value, step = error, begun.throw


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_cancel_at_any_await_lets_go_of_the_upload(uploads: Uploads, times: int) -> None:
    async def cancelled(path: str, at: int) -> bool:
        try:
            return await cancelling(request(uploads, "PATCH", path), at, times) >= at
        except asyncio.CancelledError:
            return True

    at = 1
    stood = []
    while asyncio.run(cancelled(path := begin(uploads), at)):
        stood.append(finish(uploads, path))
        at += 1
    assert at > 8
    assert stood[0] == 0
    assert sorted(stood) == stood, "what came before the cancel is kept"
    assert {AT_ONCE, 2 * AT_ONCE, len(DATA)} <= set(stood)


def test_a_cancel_at_any_await_of_a_plain_upload_leaves_nothing_half(
    uploads: Uploads, tmp_path: Path
) -> None:
    async def cancelled(at: int) -> bool:
        try:
            return await cancelling(request(uploads, "POST", "/"), at, 2) >= at
        except asyncio.CancelledError:
            return True

    at = 1
    while asyncio.run(cancelled(at)):
        assert list((tmp_path / "u" / "partial").iterdir()) == []
        at += 1
    assert at > 8


@pytest.mark.parametrize("error", [RuntimeError("the server's"), OSError("gone"), SystemExit()])
def test_an_error_of_the_server_lets_go_of_the_upload(
    uploads: Uploads, error: BaseException
) -> None:
    path = begin(uploads)

    async def sent() -> None:
        with pytest.raises(type(error)):
            await request(uploads, "PATCH", path, at_last=error)

    asyncio.run(sent())
    assert finish(uploads, path) == 2 * AT_ONCE


def test_an_error_while_it_is_written_lets_go_of_the_upload(uploads: Uploads) -> None:
    path = begin(uploads)
    failpoints.arm("upload_written:2=raise")
    try:
        with pytest.raises(failpoints.Failpoint):
            asyncio.run(request(uploads, "PATCH", path))
    finally:
        failpoints.arm("")
    finish(uploads, path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_event_loop_that_ends_before_its_request_lets_go_of_the_upload(
    uploads: Uploads,
) -> None:
    path = begin(uploads)
    loop = asyncio.new_event_loop()
    task = loop.create_task(request(uploads, "PATCH", path))
    partial = uploads._spool._partial
    while not any(file.stat().st_blocks for file in partial.iterdir()):  # the first piece is there
        loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.to_thread(lambda: None))
    uploads.asgi._threads.shutdown()  # type: ignore[union-attr]
    loop.close()
    task.get_coro().close()  # type: ignore[union-attr]
    del task, loop
    gc.collect()
    finish(uploads, path)


def test_a_second_cut_changes_nothing(uploads: Uploads) -> None:
    path = begin(uploads)
    intake = uploads.begin(
        UploadRequest("PATCH", path, TUS | {"upload-offset": "0"}), "anonymous", ""
    )
    assert isinstance(intake, UploadIntake)
    assert intake.write([DATA[:10]]) is None
    intake.cut()
    assert finish(uploads, path) == 10
    before = uploads.find("anonymous", path)
    intake.cut([DATA[:20]])
    assert uploads.find("anonymous", path) == before
