"""SQLAlchemy's connections and sessions in a handler's hands, and after its operation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, exc, text

from semel.core.commands import StoreUnavailable
from tests.stores.handed import KINDS, Place

OVER = "operation is over"
SYNC = [kind for kind in KINDS if kind.startswith("sqlalchemy") and "async" not in kind]
ASYNC = [kind for kind in KINDS if kind.startswith("sqlalchemy-async")]
LATE = text("insert into charge values ('late')")


@pytest.fixture
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(request.param, tmp_path)
    yield made
    await made.close()


@pytest.mark.parametrize("place", SYNC, indirect=True)
async def test_a_session_refuses_to_work_after_the_end(place: Place) -> None:
    work = await place.begin()
    session, db = work.transaction.session, work.db
    session.execute(text("insert into charge values ('a')"))
    nested, engine = db.begin_nested, db.engine
    assert await work.complete()
    stranger = await place.begin()
    calls = [
        lambda: session.execute(LATE),
        lambda: session.connection().execute(LATE),
        lambda: db.execute(LATE),
        lambda: db.exec_driver_sql("insert into charge values ('late')"),
        lambda: db.scalar(text("select 1")),
        lambda: db.connection.cursor(),
        lambda: db.begin(),
        nested,
    ]
    for call in calls:
        with pytest.raises(exc.SQLAlchemyError, match=OVER):
            call()
    session.close()
    assert db.closed
    assert await stranger.complete()
    assert place.charges() == ["a"]
    assert engine is place.engine


@pytest.mark.parametrize("place", ASYNC, indirect=True)
async def test_an_async_session_refuses_to_work_after_the_end(place: Place) -> None:
    work = await place.begin()
    session, db = work.transaction.async_session, work.db
    await session.execute(text("insert into charge values ('a')"))
    async with db as same:
        assert same is db
    assert await work.complete()
    stranger = await place.begin()
    calls: list[Any] = [
        lambda: session.execute(LATE),
        lambda: db.execute(LATE),
        lambda: db.stream(text("select 1")).__aenter__(),
        lambda: db.begin_nested().__aenter__(),
        lambda: db.begin().__aenter__(),
        lambda: db.get_raw_connection(),
        lambda: db.run_sync(lambda connection: connection.execute(LATE)),
    ]
    for call in calls:
        with pytest.raises(exc.SQLAlchemyError, match=OVER):
            await call()
    await session.close()
    await db.close()
    assert await stranger.complete()
    assert place.charges() == ["a"]


@pytest.mark.parametrize("place", SYNC, indirect=True)
async def test_a_rollback_of_the_connection_is_one_of_its_session_too(place: Place) -> None:
    work = await place.begin()
    session = work.transaction.session
    session.execute(text("insert into charge values ('a')"))
    session.commit()
    session.begin_nested()
    session.execute(text("insert into charge values ('b')"))
    work.db.rollback()
    session.execute(text("insert into charge values ('c')"))
    session.commit()
    assert await work.complete()
    assert place.charges() == ["c"]


PID = {"postgresql": "select pg_backend_pid()", "mysql": "select connection_id()"}


@pytest.mark.parametrize("place", [k for k in (*SYNC, *ASYNC) if "sqlite" not in k], indirect=True)
async def test_a_connection_is_kept_unless_something_was_set_on_it(place: Place) -> None:
    asked = PID[place.database]
    pids = []
    for said in ("select 1", "savepoint mine", "select coalesce(1, 2)", "set @a = 1", "select 1"):
        work = await place.begin()
        pids.append((await work.rows(asked))[0][0])
        if said.startswith("set") and place.database == "postgresql":
            said = "set application_name = 'mine'"
        await work.say(said)
        assert await work.complete()
    assert len(set(pids[:4])) == 1
    assert pids[4] != pids[3]


@pytest.mark.parametrize(
    "place",
    ["sqlalchemy-postgresql+psycopg", "sqlalchemy-async-postgresql+asyncpg"],
    indirect=True,
)
async def test_the_record_is_written_where_the_engines_listeners_say(place: Place) -> None:
    with place.looks.begin() as connection:
        connection.execute(text("create schema elsewhere"))
    engine = getattr(place.engine, "sync_engine", place.engine)

    def connected(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("set search_path = public, elsewhere")
        cursor.close()
        connection.commit()

    event.listen(engine, "connect", connected)
    for said in ("set search_path = elsewhere", "set local search_path = elsewhere"):
        work = await place.begin()
        await work.write(said)
        await work.say(said)
        assert await work.complete()
        following = await place.begin()
        assert (await following.rows("show search_path"))[0][0] == "public, elsewhere"
        await following.roll_back()
    assert len(place.charges()) == 2


@pytest.mark.parametrize("place", ASYNC, indirect=True)
async def test_a_task_that_goes_on_is_refused(place: Place) -> None:
    work = await place.begin()
    told: list[str] = []

    async def go_on() -> None:
        for number in range(50):
            try:
                await work.write(f"late{number}")
            except exc.SQLAlchemyError as error:
                told.append(str(error))
                return
            await asyncio.sleep(0.05)

    task = asyncio.create_task(go_on())
    await asyncio.sleep(0.12)
    completed = False
    try:
        completed = await work.complete()
    except StoreUnavailable:  # a statement of the task's was under way
        await work.roll_back()
    await task
    following = await place.begin()
    await following.write("next")
    assert await following.complete()
    assert told
    assert OVER in told[0] or not completed
    assert (place.charges()[-1], len(place.charges()) > 1) == ("next", completed)


@pytest.mark.parametrize("place", [k for k in ASYNC if "postgresql" in k], indirect=True)
@pytest.mark.parametrize("ends", ["complete", "arollback", "rollback"])
async def test_statements_still_under_way_disturb_no_other_operation(
    place: Place, ends: str
) -> None:
    for number in range(4):
        work = await place.begin()
        late = asyncio.gather(
            *(work.db.execute(text("select pg_sleep(1)")) for _ in range(2)), return_exceptions=True
        )
        await asyncio.sleep(0.05)
        if ends == "complete":
            with pytest.raises(StoreUnavailable, match="still under way"):
                await work.complete()
        elif ends == "arollback":
            await work.transaction.arollback()
        else:
            work.transaction.rollback()
        other = await place.begin()
        await other.db.execute(text(f"select '{number}', pg_sleep(0.1)"))
        await other.db.execute(text(f"insert into charge values ('{number}')"))
        assert await other.complete()
        assert all(isinstance(error, Exception) for error in await late)
    assert place.charges() == ["0", "1", "2", "3"]
