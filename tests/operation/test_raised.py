"""What was raised is rolled back, and its response kept: on each store, by each kind of handler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semel import failpoints
from semel.operation import note_raised
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
KINDS: list[tuple[Make, str, str | None]] = [
    *[(sqlite, kind, None) for kind in ("loop", "beside", "thread")],
    *[(postgresql, kind, None) for kind in ("loop", "beside", "thread")],
    *[(postgresql, kind, "atomic") for kind in ("loop", "beside", "thread")],
    *[(sqlalchemy_sync, kind, None) for kind in ("beside", "thread")],
    (sqlalchemy_async, "loop", None),
    (sqlalchemy_async, "loop", "atomic"),
]


def _name(case: Any) -> str:
    make, kind, guarantee = case
    return f"{make.__name__}-{kind}-{guarantee}"


@pytest.fixture(params=KINDS, ids=_name)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Database, str, str | None]:
    make, kind, guarantee = request.param
    return make(tmp_path), kind, guarantee


def handler(kind: str, before: Callable[[Any], Any], after: Callable[[], int]) -> Any:
    """A handler that writes, and then decides what becomes of it."""

    async def on_loop(op: Any) -> int:
        await before(op)
        return after()

    def on_thread(op: Any) -> int:
        before(op)
        return after()

    return on_loop if kind == "loop" else on_thread


def raised(status: int = 402) -> Callable[[], int]:
    def after() -> int:
        note_raised(LookupError("declined"))
        note_raised(LookupError("declined"))
        return status

    return after


@pytest.mark.parametrize("status", [400, 402, 422])
def test_a_raised_4xx_leaves_nothing_and_is_replayed(case: Any, status: int) -> None:
    database, kind, guarantee = case
    handle = handler(kind, database.write, raised(status))
    with serving(database, kind, handle, guarantee=guarantee) as service:
        assert service.post() == (status, "run 1", False)
        assert service.post() == (status, "run 1", True)
        assert service.runs == 1
    assert database.rows() == 0


def test_a_returned_4xx_commits_what_was_written(case: Any) -> None:
    database, kind, guarantee = case
    handle = handler(kind, database.write, lambda: 402)
    with serving(database, kind, handle, guarantee=guarantee) as service:
        assert service.post() == (402, "run 1", False)
        assert service.post() == (402, "run 1", True)
    assert database.rows() == 1


@pytest.mark.parametrize("status", [401, 409, 429, 503])
def test_what_is_not_kept_is_released_as_ever(case: Any, status: int) -> None:
    database, kind, guarantee = case
    handle = handler(kind, database.write, raised(status))
    with serving(database, kind, handle, guarantee=guarantee) as service:
        assert service.post() == (status, "run 1", False)
        assert service.post() == (status, "run 2", False)
    assert database.rows() == 0


def test_a_raised_redirect_is_no_error_and_commits(case: Any) -> None:
    """Bottle's redirect(), Pyramid's HTTPFound: raised, after all went well."""
    database, kind, guarantee = case
    handle = handler(kind, database.write, raised(303))
    with serving(database, kind, handle, guarantee=guarantee) as service:
        assert service.post() == (303, "run 1", False)
        assert service.post() == (303, "run 1", True)
    assert database.rows() == 1


def test_a_raise_before_the_first_write_needs_no_connection(case: Any) -> None:
    database, kind, guarantee = case

    async def nothing() -> None:
        return None

    def before(op: Any) -> Any:
        return nothing() if kind == "loop" else None

    handle = handler(kind, before, raised(404))
    with serving(database, kind, handle, guarantee=guarantee) as service:
        assert service.post() == (404, "run 1", False)
        assert service.post() == (404, "run 1", True)


def test_the_steps_before_it_stay_recorded(case: Any) -> None:
    database, kind, guarantee = case
    calls: list[str] = []

    def call(derived: str) -> int:
        calls.append(derived)
        return 1

    async def on_loop(op: Any) -> int:
        await database.write(op)
        await op.step("charge", call)
        return raised()()

    def on_thread(op: Any) -> int:
        if not isinstance(database.store, SQLiteStore):
            database.write(op)
        op.step("charge", call)
        return raised()()

    handle = on_loop if kind == "loop" else on_thread
    with serving(database, kind, handle, guarantee=guarantee) as service:
        assert service.post() == (402, "run 1", False)
        assert service.post() == (402, "run 1", True)
    assert len(calls) == 1
    assert database.rows() == 0


def test_the_connections_of_those_that_raised_are_there_for_the_next(case: Any) -> None:
    database, kind, guarantee = case
    handle = handler(kind, database.write, raised())
    with serving(database, kind, handle, guarantee=guarantee) as service:
        assert [service.post(f"k{n}").status for n in range(12)] == [402] * 12
        size = {"loop": 12, "beside": 2, "thread": 0}[kind]  # no more than there are threads
        told = service.run(_crowd(service, size))
        assert [each.status for each in told] == [402] * size
    assert database.rows() == 0


async def _crowd(service: Any, size: int) -> Any:
    return await asyncio.gather(*(service.apost(f"c{n}") for n in range(size)))


def test_repeats_that_come_at_once_get_the_same(case: Any) -> None:
    database, kind, guarantee = case
    if kind == "thread":
        pytest.skip("not applicable: at once: on an event loop")
    handle = handler(kind, database.write, raised())
    with serving(database, kind, handle, guarantee=guarantee) as service:

        async def both() -> Any:
            return await asyncio.gather(*(service.apost() for _ in range(6)))

        told = service.run(both())
        assert {each.status for each in told} == {402}
        assert len({each.body for each in told}) == 1
        # Where the transaction was the claim, another may have had the key, and run, before the
        # response was recorded: nothing of the first is left, and everybody is told of the other.
        assert service.runs == 1 or database.store.opens
    assert database.rows() == 0


@pytest.mark.parametrize("point", ["before_undo", "after_undo", "before_complete"])
def test_what_fails_between_undo_and_record_leaves_no_effect(case: Any, point: str) -> None:
    """The next request gets the response; whether the first is told so depends on the store."""
    database, kind, guarantee = case
    handle = handler(kind, database.write, raised())
    with serving(database, kind, handle, guarantee=guarantee) as service:
        failpoints.arm(f"{point}=raise")
        try:
            told = service.post()
        finally:
            failpoints.arm("")
        assert told.status in (402, 503)
        assert service.post().status == 402
    assert database.rows() == 0
