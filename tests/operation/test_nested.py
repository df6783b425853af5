"""An operation within another on the same store: refused at once where it would wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semel import Idempotency, NestedOperation, current_async_operation, current_operation
from semel.functions import idempotent
from semel.stores.postgres import PostgreSQLStore
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.stores.sqlite import SQLiteStore
from tests.operation.services import Database, postgresql, serving, sqlalchemy_sync, sqlite

Make = Callable[[Path], Database]


def other(store: Any) -> Any:
    """Another store on the same database."""
    if isinstance(store, SQLiteStore):
        return SQLiteStore(store.file.parent / "." / store.file.name, timeout=5)
    if isinstance(store, SQLAlchemyStore):
        return SQLAlchemyStore(store._engine)
    return PostgreSQLStore(store._url, timeout=5)


def inner_async(store: Any, guarantee: Any) -> Any:
    keys = Idempotency(store, sweep_every=None)
    keys.start()

    @idempotent(keys, key="k", guarantee=guarantee)
    async def inner(k: str) -> str:
        if guarantee == "atomic":
            await (await current_async_operation().connection()).execute("select 1")
        return k

    return inner


def inner_plain(store: Any, guarantee: Any) -> Any:
    keys = Idempotency(store, sweep_every=None)

    @idempotent(keys, key="k", guarantee=guarantee)
    def inner(k: str) -> str:
        if guarantee == "atomic":
            current_operation().connection()
        return k

    return inner


@pytest.mark.parametrize(
    ("make", "same", "guarantee"),
    [
        (sqlite, True, "atomic"),
        (sqlite, True, "at-least-once"),
        (sqlite, False, "at-least-once"),
        (postgresql, True, "atomic"),
    ],
)
def test_it_is_refused_with_words(make: Make, same: bool, guarantee: str, tmp_path: Path) -> None:
    database = make(tmp_path)
    inner = inner_async(database.store if same else other(database.store), guarantee)
    refused: list[NestedOperation] = []

    async def handle(op: Any) -> int:
        await database.write(op)
        try:
            await inner("o1")
        except NestedOperation as error:
            refused.append(error)
        return 201

    with serving(database, "loop", handle) as service:

        async def crowd() -> Any:
            return await asyncio.gather(*(service.apost(f"k{n}") for n in range(6)))

        assert [told.status for told in service.run(crowd())] == [201] * 6
    assert len(refused) == 6
    assert "op.on_commit()" in str(refused[0])
    assert database.rows() == 6


@pytest.mark.parametrize("make", [sqlite, sqlalchemy_sync, postgresql])
@pytest.mark.parametrize("kind", ["beside", "thread"])
def test_it_is_refused_on_threads_too(make: Make, kind: str, tmp_path: Path) -> None:
    database = make(tmp_path)
    inner = inner_plain(database.store, "atomic")
    refused: list[NestedOperation] = []

    def handle(op: Any) -> int:
        database.write(op)
        try:
            inner("o1")
        except NestedOperation as error:
            refused.append(error)
        return 201

    with serving(database, kind, handle) as service:
        assert service.post().status == 201
    assert len(refused) == 1


@pytest.mark.parametrize("make", [sqlite, sqlalchemy_sync, postgresql])
def test_it_runs_before_the_outer_one_takes_the_connection(make: Make, tmp_path: Path) -> None:
    database = make(tmp_path)
    inner = inner_plain(database.store, "atomic")

    def handle(op: Any) -> int:
        assert inner(op.key_hash.hex()) == op.key_hash.hex()
        database.write(op)
        return 201

    with serving(database, "thread", handle) as service:
        assert [service.post(f"k{n}").status for n in range(5)] == [201] * 5
    assert database.rows() == 5


@pytest.mark.parametrize("make", [sqlite, sqlalchemy_sync, postgresql])
def test_it_runs_once_the_outer_one_is_committed(make: Make, tmp_path: Path) -> None:
    database = make(tmp_path)
    inner = inner_plain(database.store, "atomic")
    done: list[str] = []

    def handle(op: Any) -> int:
        database.write(op)
        op.on_commit(lambda: done.append(inner("o1")))
        return 201

    with serving(database, "thread", handle) as service:
        assert service.post().status == 201
    assert done == ["o1"]


def test_where_several_may_write_a_claim_of_its_own_waits_for_nobody(tmp_path: Path) -> None:
    database = postgresql(tmp_path)
    inner = inner_async(database.store, "at-least-once")
    apart = inner_async(other(database.store), "atomic")

    async def handle(op: Any) -> int:
        await database.write(op)
        assert await inner("o1") == "o1"
        assert await apart("o2") == "o2"
        return 201

    with serving(database, "loop", handle) as service:
        assert service.post().status == 201


def test_what_is_recorded_already_is_had_from_within(tmp_path: Path) -> None:
    database = sqlite(tmp_path)
    inner = inner_plain(database.store, "at-least-once")
    assert inner("o1") == "o1"

    def handle(op: Any) -> int:
        database.write(op)
        assert inner("o1") == "o1"
        return 201

    with serving(database, "thread", handle) as service:
        assert service.post().status == 201


def test_two_levels_up_is_seen(tmp_path: Path) -> None:
    database = postgresql(tmp_path)
    innermost = inner_async(database.store, "atomic")
    keys = Idempotency(database.store, sweep_every=None)

    @idempotent(keys, key="k", guarantee="at-least-once")
    async def middle(k: str) -> str:
        with pytest.raises(NestedOperation):
            await innermost(k)
        return k

    async def handle(op: Any) -> int:
        await database.write(op)
        await middle("m")
        return 201

    with serving(database, "loop", handle) as service:
        assert service.post().status == 201
