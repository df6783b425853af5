"""`op.on_commit`: calls that are made once all is committed, and only then."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semel import Idempotency, OutcomeUnknown, current_operation, idempotent
from semel.core.commands import Release
from semel.operation import note_raised
from semel.stores.memory import MemoryStore
from tests.operation.services import Database, postgresql, serving, sqlalchemy_sync, sqlite

KINDS = ["loop", "beside", "thread"]
Make = Callable[[Path], Database]


def handler(kind: str, work: Callable[[Any], Any], write: Any = None) -> Any:
    async def on_loop(op: Any) -> int:
        if write is not None:
            await write(op)
        status = work(op)
        return int(await status if asyncio.iscoroutine(status) else status)

    def on_thread(op: Any) -> int:
        if write is not None:
            write(op)
        return int(work(op))

    return on_loop if kind == "loop" else on_thread


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("make", "guarantee"), [(sqlite, None), (postgresql, None), (postgresql, "atomic")]
)
def test_they_see_what_was_committed_in_order_before_the_response(
    make: Make, kind: str, guarantee: str | None, tmp_path: Path
) -> None:
    database = make(tmp_path)
    told: list[Any] = []

    def work(op: Any) -> int:
        op.on_commit(lambda: told.append(("first", database.rows())))
        op.on_commit(lambda: told.append(("second", database.rows())))
        assert not told
        return 201

    handle = handler(kind, work, database.write)
    with serving(database, kind, handle, guarantee=guarantee) as service:
        assert service.post().status == 201
        assert told == [("first", 1), ("second", 1)]
        assert service.post().replayed
    assert len(told) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_transaction_they_come_after_the_record(kind: str, tmp_path: Path) -> None:
    database = sqlite(tmp_path)
    told: list[int] = []

    def work(op: Any) -> int:
        op.on_commit(lambda: told.append(1))
        return 201

    with serving(database, kind, handler(kind, work)) as service:
        service.post()
    assert told == [1]


def test_async_calls_are_awaited(tmp_path: Path) -> None:
    database = sqlite(tmp_path)
    told: list[str] = []

    async def later(what: str) -> None:
        await asyncio.sleep(0.01)
        told.append(what)

    def work(op: Any) -> int:
        op.on_commit(lambda: later("one"))
        op.on_commit(lambda: told.append("two"))
        return 201

    with serving(database, "loop", handler("loop", work, database.write)) as service:
        service.post()
        assert told == ["one", "two"]


def test_a_plain_handlers_calls_do_not_block_the_event_loop(tmp_path: Path) -> None:
    database = sqlite(tmp_path)
    threads: list[int] = []

    def work(op: Any) -> int:
        op.on_commit(lambda: threads.append(threading.get_ident()))
        with pytest.raises(TypeError, match="AsyncOperation"):
            op.on_commit(nothing)
        return 201

    with serving(database, "beside", handler("beside", work)) as service:
        assert service.post().status == 201
    assert threads
    assert threads[0] != threading.get_ident()


async def nothing() -> None:
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_what_they_raise_is_logged_and_changes_nothing(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = sqlite(tmp_path)
    told: list[int] = []

    def work(op: Any) -> int:
        op.on_commit(lambda: told.append(1 // 0))
        op.on_commit(lambda: told.append(1))
        return 201

    caplog.set_level(logging.ERROR, "semel")
    with serving(database, kind, handler(kind, work, database.write)) as service:
        assert service.post() == (201, "run 1", False)
        assert service.post() == (201, "run 1", True)
    assert told == [1]
    assert "on_commit" in caplog.text
    assert database.rows() == 1


def raises(op: Any) -> int:
    raise ValueError


def declines(op: Any) -> int:
    note_raised(ValueError())
    return 402


def releases(op: Any) -> int:
    op.release()
    return 201


def parks(op: Any) -> int:
    with contextlib.suppress(OutcomeUnknown):
        op.park("who knows")
    return 201


def fails(op: Any) -> int:
    return 500


def is_taken_over(op: Any) -> int:
    op._driver.runtime.store.execute(Release(op.key_hash, op.token))
    return 201


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [sqlite, postgresql])
@pytest.mark.parametrize("ends", [raises, declines, releases, parks, fails])
def test_they_are_not_called_where_nothing_is_committed(
    make: Make, kind: str, ends: Callable[[Any], int], tmp_path: Path
) -> None:
    database = make(tmp_path)
    told: list[int] = []

    def work(op: Any) -> int:
        op.on_commit(lambda: told.append(1))
        return ends(op)

    handle = handler(kind, work, database.write)
    with serving(database, kind, handle) as service, contextlib.suppress(ValueError):
        service.post()
    assert not told
    assert database.rows() == 0


def test_they_are_not_called_by_one_that_was_fenced(tmp_path: Path) -> None:
    database = postgresql(tmp_path)
    told: list[int] = []

    def work(op: Any) -> int:
        op.on_commit(lambda: told.append(1))
        return is_taken_over(op)

    with serving(database, "thread", handler("thread", work, database.write)) as service:
        assert service.post().status == 503
    assert not told


def test_a_returned_4xx_commits_and_calls(tmp_path: Path) -> None:
    database = sqlalchemy_sync(tmp_path)
    told: list[int] = []

    def work(op: Any) -> int:
        op.on_commit(lambda: told.append(1))
        return 402

    with serving(database, "thread", handler("thread", work, database.write)) as service:
        service.post()
    assert told == [1]


@pytest.mark.parametrize("kind", ["loop", "thread"])
def test_commit_calls_them_before_it_returns(kind: str, tmp_path: Path) -> None:
    database = sqlite(tmp_path)
    told: list[int] = []

    async def commits(op: Any) -> int:
        op.on_commit(lambda: told.append(database.rows()))
        await op.commit()
        assert told == [1]
        return 201

    def commits_on_thread(op: Any) -> int:
        op.on_commit(lambda: told.append(database.rows()))
        op.commit()
        assert told == [1]
        return 201

    work = commits if kind == "loop" else commits_on_thread
    with serving(database, kind, handler(kind, work, database.write)) as service:
        assert service.post().status == 201
    assert told == [1]


def test_functions_have_them_too() -> None:
    keys = Idempotency(MemoryStore())
    told: list[str] = []

    @idempotent(keys, key="order")
    def charge(order: str) -> str:
        current_operation().on_commit(lambda: told.append(order))
        return order

    assert [charge("o1"), charge("o1"), charge("o2")] == ["o1", "o1", "o2"]
    assert told == ["o1", "o2"]
