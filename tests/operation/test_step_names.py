"""A step's name is its own: taken once in an attempt, whoever takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from semel import Idempotency, NotDone, current_operation, idempotent
from semel.stores.memory import MemoryStore
from tests.operation.services import Database, postgresql, serving, sqlite

Make = Callable[[Path], Database]
ITEMS = ("tea", "milk", "bread")


@pytest.mark.parametrize("make", [sqlite, postgresql])
@pytest.mark.parametrize("kind", ["loop", "beside", "thread"])
def test_the_second_of_a_name_is_an_error_that_says_what_to_do(
    make: Make, kind: str, tmp_path: Path
) -> None:
    calls: list[str] = []
    errors: list[str] = []

    async def on_loop(op: Any) -> int:
        for item in ITEMS:
            try:
                await op.step("charge", lambda key, item=item: calls.append(item))
            except ValueError as error:
                errors.append(str(error))
        return 201

    def on_thread(op: Any) -> int:
        for item in ITEMS:
            try:
                op.step("charge", lambda key, item=item: calls.append(item))
            except ValueError as error:
                errors.append(str(error))
        return 201

    handle = on_loop if kind == "loop" else on_thread
    with serving(make(tmp_path), kind, handle) as service:
        assert service.post().status == 201
    assert calls == ["tea"]
    assert len(errors) == 2
    assert "'charge'" in errors[0]
    assert "item.id" in errors[0]


def test_so_it_is_in_tasks_at_once(tmp_path: Path) -> None:
    calls: list[str] = []

    async def charge(key: str) -> str:
        await asyncio.sleep(0.01)
        calls.append(key)
        return key

    async def handle(op: Any) -> int:
        told = await asyncio.gather(
            *(op.step("charge", charge) for _ in range(3)), return_exceptions=True
        )
        assert [type(each) for each in told] == [str, ValueError, ValueError]
        return 201

    with serving(sqlite(tmp_path), "loop", handle) as service:
        assert service.post().status == 201
    assert len(calls) == 1


def test_so_it_is_in_threads_at_once(tmp_path: Path) -> None:
    calls: list[str] = []

    def handle(op: Any) -> int:
        def take(_: int) -> Any:
            try:
                return op.step("charge", lambda key: calls.append(key))
            except ValueError as error:
                return error

        with ThreadPoolExecutor(3) as pool:
            told = list(pool.map(take, range(3)))
        assert sum(isinstance(each, ValueError) for each in told) == 2
        return 201

    with serving(sqlite(tmp_path), "thread", handle) as service:
        assert service.post().status == 201
    assert len(calls) == 1


def test_one_that_failed_may_be_taken_again(tmp_path: Path) -> None:
    calls: list[str] = []

    def charge(key: str) -> str:
        calls.append(key)
        if len(calls) < 3:
            raise TimeoutError if len(calls) == 1 else NotDone
        return "charged"

    def handle(op: Any) -> int:
        for _ in range(3):
            try:
                assert op.step("charge", charge) == "charged"
            except (TimeoutError, NotDone):
                continue
        return 201

    with serving(sqlite(tmp_path), "thread", handle) as service:
        assert service.post().status == 201
    assert len(calls) == 3
    assert len(set(calls)) == 1


def test_the_next_attempt_takes_it_again_and_gets_what_was_recorded(tmp_path: Path) -> None:
    calls: list[str] = []

    def handle(op: Any) -> int:
        op.step("charge", lambda key: calls.append(key))
        return 503 if service.runs == 1 else 201

    with serving(sqlite(tmp_path), "thread", handle) as service:
        assert [service.post().status, service.post().status] == [503, 201]
    assert len(calls) == 1


def test_a_key_may_be_derived_as_often_as_one_likes(tmp_path: Path) -> None:
    def handle(op: Any) -> int:
        assert op.derive("charge") == op.derive("charge")
        return op.step("charge", lambda key: 201 if key == op.derive("charge") else 500)

    with serving(sqlite(tmp_path), "thread", handle) as service:
        assert service.post().status == 201


def test_functions_have_the_same_rule() -> None:
    calls: list[str] = []

    @idempotent(Idempotency(MemoryStore()), key="order")
    def charge(order: str) -> int:
        for item in ITEMS:
            current_operation().step("charge", lambda key, item=item: calls.append(item))
        return len(calls)

    with pytest.raises(ValueError, match="has been taken in this operation"):
        charge("o1")
    assert calls == ["tea"]
