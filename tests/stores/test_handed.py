"""What a handler does with `op.connection()`: alike in every store, sync and async."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import exc

from semel.core.commands import StoreError
from tests.stores.handed import KINDS, Place, Work, awaited

ERRORS = (psycopg.Error, sqlite3.Error, exc.SQLAlchemyError)


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(request.param, tmp_path)
    yield made
    await made.close()


# --- after the end -----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["completed", "rolled back"])
async def test_after_the_end_it_refuses_to_work(place: Place, ending: str) -> None:
    work = await place.begin()
    await work.write("first")
    again = await work.say("select name from charge") if place.engine is None else None
    if ending == "completed":
        assert await work.complete()
    else:
        await work.roll_back()
    stranger = await place.begin()
    await stranger.write("strangers")
    with pytest.raises(ERRORS, match="operation is over"):
        await work.write("late")
    with pytest.raises(ERRORS, match="operation is over"):
        await work.say("select 1")
    with pytest.raises(ERRORS, match="operation is over"):
        await work.call("rollback")
    if again is not None:  # a cursor made before
        with pytest.raises(ERRORS, match="operation is over"):
            await awaited(again.execute("insert into charge values ('late')"))
    assert await stranger.rows("select name from charge where name = 'strangers'")
    assert await stranger.complete()
    assert place.charges() == (["first"] if ending == "completed" else []) + ["strangers"]


async def test_the_pool_stays_whole(place: Place) -> None:
    kept: list[Work] = []
    for number in range(4):
        work = await place.begin()
        await work.write(f"n{number}")
        if number % 2:
            await work.roll_back()
        else:
            assert await work.complete()
        kept.append(work)
        for each in kept:
            with pytest.raises(ERRORS, match="operation is over"):
                await each.say("select 1")
    assert place.charges() == ["n0", "n2"]


# --- its own methods ---------------------------------------------------------------------------


async def test_a_rollback_undoes_what_was_written_and_the_operation_goes_on(place: Place) -> None:
    work = await place.begin()
    await work.write("undone")
    await work.call("rollback")
    assert await work.rows("select name from charge") == []
    await work.write("kept")
    assert await work.complete()
    assert place.charges() == ["kept"]


async def test_a_rollback_may_come_twice_and_last(place: Place) -> None:
    work = await place.begin()
    for name in ("a", "b"):
        await work.write(name)
        await work.call("rollback")
    assert await work.complete()
    assert place.charges() == []


async def test_a_close_does_nothing(place: Place) -> None:
    work = await place.begin()
    await work.write("before")
    await work.call("close")
    await work.write("after")
    assert await work.complete()
    assert place.charges() == ["after", "before"]


async def test_a_block_does_not_end_the_transaction(place: Place) -> None:
    work = await place.begin()
    await work.in_block(lambda: work.write("inside"))
    assert place.charges() == [] or place.database == "sqlite"
    await work.write("after")
    await work.roll_back()
    assert place.charges() == []
    work = await place.begin()
    await work.in_block(lambda: work.write("inside"))
    await work.write("after")
    assert await work.complete()
    assert place.charges() == ["after", "inside"]


@pytest.mark.parametrize("said", ["commit", "COMMIT", "/* now */ commit", "rollback", "begin"])
async def test_the_transaction_is_not_ended_by_a_statement(place: Place, said: str) -> None:
    work = await place.begin()
    await work.write("first")
    try:
        await work.say(said)
        await work.write("second")
        completed = await work.complete()
    except (*ERRORS, StoreError):
        await work.roll_back()
        completed = False
    assert place.charges() == (["first", "second"] if completed else [])
    assert not completed


async def test_a_refused_commit_leaves_the_operation_as_it_was(place: Place) -> None:
    work = await place.begin()
    await work.write("first")
    with pytest.raises(ERRORS, match="belongs to the operation"):
        await work.say("commit")
    await work.write("second")
    assert await work.complete()
    assert place.charges() == ["first", "second"]


# --- errors ------------------------------------------------------------------------------------


async def test_errors_are_of_the_classes_that_users_know(place: Place) -> None:
    work = await place.begin()
    await work.write("a")
    integrity = (sqlite3.IntegrityError, psycopg.IntegrityError, exc.IntegrityError)
    with pytest.raises(integrity):
        await work.write("a")
    await work.call("rollback")
    with pytest.raises(ERRORS):
        await work.say("select nothing from nowhere")
    await work.roll_back()


# --- several at once ---------------------------------------------------------------------------


async def test_two_statements_at_once_are_both_done_or_none(place: Place) -> None:
    work = await place.begin()
    try:
        await asyncio.gather(work.write("a"), work.write("b"))
        completed = await work.complete()
    except (*ERRORS, StoreError):
        await work.roll_back()
        completed = False
    await asyncio.sleep(0.1)
    assert place.charges() == (["a", "b"] if completed else [])


SLEEPS = {"postgresql": "select pg_sleep(20)", "mysql": "select sleep(20)"}


async def test_a_statement_that_is_cut_off_commits_no_half(place: Place) -> None:
    if not place.is_async or place.database == "sqlite":
        pytest.skip("not applicable: a statement that can be cancelled")
    work = await place.begin()
    await work.write("a")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await work.say(SLEEPS[place.database])
    with pytest.raises((StoreError, *ERRORS)):
        await work.write("b")
        await work.complete()
    await work.roll_back()
    following = await place.begin()
    await following.write("c")
    assert await following.complete()
    assert place.charges() == ["c"]


async def test_a_statement_still_under_way_at_the_end_commits_nothing(place: Place) -> None:
    if not place.is_async or place.database != "postgresql":
        pytest.skip("not applicable: a statement that takes its time beside the handler")
    work = await place.begin()
    await work.write("a")
    left = asyncio.create_task(work.say("insert into charge select 'late' from pg_sleep(20)"))
    await asyncio.sleep(0.2)
    with pytest.raises((StoreError, *ERRORS)):
        await work.complete()
    await work.roll_back()
    with pytest.raises((*ERRORS, asyncio.CancelledError)):
        async with asyncio.timeout(15):
            await left
    async with asyncio.timeout(15):
        following = await place.begin()
    await following.write("c")
    assert await following.complete()
    assert place.charges() == ["c"]


async def test_a_thread_that_goes_on_is_refused(place: Place) -> None:
    if place.is_async:
        pytest.skip("not applicable: a plain handler's connection")
    work = await place.begin()
    told: list[BaseException] = []
    done = threading.Event()

    def go_on() -> None:
        done.wait(10)
        try:
            work.db.execute(work.statement("insert into charge values ('late')"))
        except ERRORS as error:
            told.append(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    await work.write("a")
    assert await work.complete()
    stranger = await place.begin()
    done.set()
    thread.join()
    assert await stranger.complete()
    assert ["operation is over" in str(error) for error in told] == [True]
    assert place.charges() == ["a"]


# --- settings ----------------------------------------------------------------------------------

TENANT = "select current_setting('app.tenant', true)"
LEAKS: dict[str, list[tuple[str, str, Any]]] = {
    "postgresql": [
        ("set application_name = 'mine'", "show application_name", "mine"),
        ("set search_path = 'pg_catalog'", "show search_path", "pg_catalog"),
        ("set app.tenant = 'a'", TENANT, "a"),
        ("select set_config('app.tenant', 'a', false)", TENANT, "a"),
        ("set role pg_monitor", "select current_user", "pg_monitor"),
        ("set session authorization pg_monitor", "select session_user", "pg_monitor"),
        (
            "create temp table mine as select 1 as n",
            "select count(*) from pg_class where relname = 'mine'",
            1,
        ),
        (
            "select pg_advisory_lock(42)",
            "select count(*) from pg_locks where locktype = 'advisory' and objid = 42",
            1,
        ),
        ("listen mine", "select count(*) from pg_listening_channels()", 1),
        (
            "prepare mine as select 1",
            "select count(*) from pg_prepared_statements where name = 'mine'",
            1,
        ),
        (
            "declare mine cursor with hold for select 1",
            "select count(*) from pg_cursors where name = 'mine'",
            1,
        ),
    ],
    "mysql": [
        ("set session wait_timeout = 77", "select @@wait_timeout", 77),
        ("set @tenant = 'a'", "select @tenant", "a"),
        ("create temporary table mine as select 1 as n", "select count(*) from mine", 1),
        ("select get_lock('mine', 1)", "select is_used_lock('mine') is not null", 1),
        ("use information_schema", "select database()", "information_schema"),
    ],
    "sqlite": [
        ("pragma case_sensitive_like = on", "select 'a' like 'A'", 0),
        ("pragma cache_size = 77", "pragma cache_size", 77),
        ("attach ':memory:' as other", "select count(*) from pragma_database_list", 2),
        (
            "create temp table mine as select 1 as n",
            "select count(*) from temp.sqlite_master where name = 'mine'",
            1,
        ),
    ],
}
CASES = [(database, *case) for database, cases in LEAKS.items() for case in cases]


@pytest.mark.parametrize("ending", ["completed", "rolled back"])
@pytest.mark.parametrize(
    ("database", "said", "asked", "leaked"), CASES, ids=[said[:30] for _, said, _, _ in CASES]
)
async def test_the_next_operation_finds_the_connection_as_this_one_did(
    place: Place, database: str, said: str, asked: str, leaked: Any, ending: str
) -> None:
    if place.database != database:
        pytest.skip("not applicable: of another database")
    work = await place.begin()
    await work.write("a")
    try:
        await work.say(said)
    except ERRORS as error:
        assert "the one writer of all operations" in str(error)
    if ending == "completed":
        assert await work.complete()
    else:
        await work.roll_back()
    following = await place.begin()
    try:
        found = (await following.rows(asked))[0][0]
    except ERRORS:
        found = None
    assert found != leaked
    await following.roll_back()
    assert place.charges() == (["a"] if ending == "completed" else [])
