"""One transaction for all tasks and threads of a handler that ask, and none after its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from semel import OperationOver
from semel.stores.base import StoreSetupError, Transaction
from semel.stores.postgres import PostgreSQLStore
from semel.stores.sqlite import SQLiteStore
from tests.operation.services import (
    Database,
    postgresql,
    serving,
    sqlalchemy_async,
    sqlalchemy_sync,
    sqlite,
)

Make = Callable[[Path], Database]
ON_LOOPS: list[tuple[Make, str | None]] = [
    (sqlite, None),
    (postgresql, None),
    (postgresql, "atomic"),
    (sqlalchemy_async, None),
]
ON_THREADS: list[tuple[Make, str, str | None]] = [
    (sqlite, "thread", None),
    (sqlite, "beside", None),
    (postgresql, "thread", None),
    (postgresql, "beside", None),
    (postgresql, "thread", "atomic"),
    (postgresql, "beside", "atomic"),
]


@pytest.mark.parametrize("how", ["gather", "group"])
@pytest.mark.parametrize(("make", "guarantee"), ON_LOOPS)
def test_tasks_that_ask_at_once_share_it(
    make: Make, guarantee: str | None, how: str, tmp_path: Path
) -> None:
    database = make(tmp_path)

    async def handle(op: Any) -> int:
        if how == "gather":
            await asyncio.gather(*(database.write(op) for _ in range(3)))
        else:
            async with asyncio.TaskGroup() as group:
                for _ in range(3):
                    group.create_task(database.write(op))
        return 201

    with serving(database, "loop", handle, guarantee=guarantee) as service:
        told = [service.post(f"k{n}").status for n in range(8)]
    assert told == [201] * 8
    assert database.rows() == 24


@pytest.mark.parametrize(("make", "kind", "guarantee"), ON_THREADS)
def test_threads_that_ask_at_once_share_it(
    make: Make, kind: str, guarantee: str | None, tmp_path: Path
) -> None:
    database = make(tmp_path)

    def handle(op: Any) -> int:
        lock, together = threading.Lock(), threading.Barrier(3)

        def write(_: int) -> Any:
            together.wait()
            connection = op.connection()
            with lock:
                connection.execute("insert into ledger values ('written')")
            return connection

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(write, range(3)))
        return 201

    with serving(database, kind, handle, guarantee=guarantee) as service:
        told = [service.post(f"k{n}").status for n in range(8)]
    assert told == [201] * 8
    assert database.rows() == 24


def test_sessions_asked_for_at_once_are_one(tmp_path: Path) -> None:
    database = sqlalchemy_async(tmp_path)

    async def handle(op: Any) -> int:
        sessions = await asyncio.gather(*(op.session() for _ in range(5)))
        assert len(set(map(id, sessions))) == 1
        return 201

    with serving(database, "loop", handle) as service:
        assert service.post().status == 201


def test_sessions_asked_for_on_threads_are_one(tmp_path: Path) -> None:
    database = sqlalchemy_sync(tmp_path)

    def handle(op: Any) -> int:
        with ThreadPoolExecutor(5) as pool:
            sessions = list(pool.map(lambda _: op.session(), range(5)))
        assert len(set(map(id, sessions))) == 1
        return 201

    with serving(database, "thread", handle) as service:
        assert service.post().status == 201


@pytest.mark.parametrize(("make", "guarantee"), ON_LOOPS)
def test_whoever_asks_late_is_told_and_the_pool_stays_whole(
    make: Make, guarantee: str | None, tmp_path: Path
) -> None:
    """A task that nobody waits for: it begins as the handler returns, or after that."""
    database = make(tmp_path)
    errors: list[BaseException] = []
    tasks: list[asyncio.Task[None]] = []

    async def write(op: Any, wait: float) -> None:
        await asyncio.sleep(wait)
        try:
            await database.write(op)
        except Exception as error:
            errors.append(error)

    async def handle(op: Any) -> int:
        if guarantee == "atomic":  # which has to be asked for
            await op.connection()
        tasks.append(asyncio.create_task(write(op, 0)))
        tasks.append(asyncio.create_task(write(op, 0.3)))
        await asyncio.sleep(0)
        return 201

    async def crowd(service: Any) -> list[int]:
        told = [(await service.apost(f"k{n}")).status for n in range(10)]
        await asyncio.wait(tasks)
        told.append((await service.apost("last")).status)
        await asyncio.wait(tasks)
        return told

    with serving(database, "loop", handle, guarantee=guarantee) as service:
        told = service.run(crowd(service))
    assert told == [201] * 11
    # One that asks while its operation runs may still be in time; the others are told.
    assert len(errors) + database.rows() == len(tasks)
    assert sum(isinstance(error, OperationOver) for error in errors) >= 11


class Slow(SQLiteStore):
    """A store whose transactions take their time to begin."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.begun: list[Transaction] = []
        self.failures = 0

    async def abegin(self) -> Any:
        await asyncio.sleep(0.05)
        if self.failures:
            self.failures -= 1
            raise StoreSetupError("not now")
        self.begun.append(await super().abegin())
        return self.begun[-1]


@pytest.fixture
def slow(tmp_path: Path) -> Any:
    database = sqlite(tmp_path)
    assert isinstance(database.store, SQLiteStore)
    return database._replace(store=Slow(database.store.file))


def test_a_begin_under_way_at_the_end_is_given_back(slow: Any) -> None:
    late: list[asyncio.Task[Any]] = []

    async def handle(op: Any) -> int:
        late.append(asyncio.create_task(slow.write(op)))
        await asyncio.sleep(0.01)
        return 201

    async def ask(service: Any) -> Any:
        told = await service.apost()
        return told, await asyncio.gather(*late, return_exceptions=True)

    with serving(slow, "loop", handle) as service:
        told, ended = service.run(ask(service))
        assert told.status == 201
        assert [type(error) for error in ended] == [OperationOver]
        assert len(slow.store.begun) == 1
        slow.store.begin().rollback()  # the one writer is free
    assert slow.rows() == 0


def test_one_that_is_cancelled_leaves_it_to_the_others(slow: Any) -> None:
    async def handle(op: Any) -> int:
        first = asyncio.create_task(op.connection())
        others = [asyncio.create_task(slow.write(op)) for _ in range(2)]
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.gather(*others)
        return 201

    with serving(slow, "loop", handle) as service:
        assert service.post().status == 201
    assert slow.rows() == 2


def test_a_begin_that_fails_fails_for_whoever_made_it(slow: Any) -> None:
    slow.store.failures = 1

    async def handle(op: Any) -> int:
        told = await asyncio.gather(*(slow.write(op) for _ in range(3)), return_exceptions=True)
        assert [type(each) for each in told].count(StoreSetupError) == 1
        return 201

    with serving(slow, "loop", handle) as service:
        assert service.post().status == 201
    assert slow.rows() == 2


def test_a_thread_that_asks_late_is_told(tmp_path: Path) -> None:
    database = postgresql(tmp_path)
    errors: list[BaseException] = []
    over = threading.Event()
    threads: list[threading.Thread] = []

    def handle(op: Any) -> int:
        def late() -> None:
            over.wait()
            try:
                op.connection()
            except Exception as error:
                errors.append(error)

        threads.append(threading.Thread(target=copy_context().run, args=(late,)))
        threads[-1].start()
        return 201

    with serving(database, "thread", handle) as service:
        assert [service.post(f"k{n}").status for n in range(6)] == [201] * 6
        over.set()
        for thread in threads:
            thread.join()
        assert isinstance(database.store, PostgreSQLStore)
        database.store.begin().rollback()
    assert [type(error) for error in errors] == [OperationOver] * 6


@pytest.mark.parametrize("ask", ["step", "park", "release", "commit", "on_commit"])
def test_all_the_rest_is_over_too(tmp_path: Path, ask: str) -> None:
    database = sqlite(tmp_path)
    kept: list[Any] = []

    def handle(op: Any) -> int:
        kept.append(op)
        return 201

    arguments: dict[str, tuple[Any, ...]] = {
        "step": ("charge", str),
        "park": ("why",),
        "on_commit": (print,),
    }
    with serving(database, "thread", handle) as service:
        service.post()
        with pytest.raises(OperationOver):
            getattr(kept[0], ask)(*arguments.get(ask, ()))
