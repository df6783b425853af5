"""PostgreSQL's connections in a handler's hands: what psycopg can do with them, and no longer."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb, set_json_dumps

from semel.core.commands import Complete, Open, StoreUnavailable
from semel.core.record import Response
from semel.stores.postgres import PostgreSQLStore
from semel.testing.proxy import Proxy
from tests import servers

_names = itertools.count()
OVER = "operation is over"


@pytest.fixture
def url() -> str:
    made = servers.postgresql().database(f"ph{os.getpid()}_{next(_names)}")
    with psycopg.connect(made, autocommit=True) as connection:
        connection.execute("create table charge (name text unique)")
    return made


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgreSQLStore]:
    made = PostgreSQLStore(url, pool_size=1, timeout=5)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def sql(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


class Order:
    """An operation in one transaction, with its connection."""

    def __init__(self, transaction: Any, key: bytes, db: Any) -> None:
        self.transaction, self.db = transaction, db
        self.record = Complete(key, transaction.token, Response(201, (), b"x"), 60.0, 0.0)

    async def complete(self) -> bool:
        return bool(await self.transaction.acomplete(self.record))


async def begin(store: PostgreSQLStore) -> Order:
    key = os.urandom(16)
    transaction: Any = await store.aopen(Open(key, b"\x01" + bytes(32), os.urandom(14)))
    return Order(transaction, key, transaction.async_connection)


def charges(sql: psycopg.Connection[Any]) -> list[str]:
    return [name for (name,) in sql.execute("select name from charge order by name")]


async def test_what_is_set_on_the_object_is_the_operations_own(store: PostgreSQLStore) -> None:
    order = await begin(store)
    db, pid = order.db, order.db.info.backend_pid
    noticed: list[Any] = []
    db.row_factory = dict_row
    db.prepare_threshold, db.prepared_max = 0, 3
    db.cursor_factory = psycopg.AsyncClientCursor
    db.add_notice_handler(noticed.append)
    db.add_notify_handler(noticed.append)
    set_json_dumps(lambda _: '"mine"', db)
    assert await (await db.execute("select 1 as n")).fetchone() == {"n": 1}
    assert await order.complete()
    following = await begin(store)
    db = following.db
    assert db is not order.db
    assert db.info.backend_pid == pid
    assert await (await db.execute("select %s::jsonb", (Jsonb(1),))).fetchone() == (1,)
    await db.execute("do $$ begin raise notice 'x'; end $$")
    assert (noticed, db.prepare_threshold, db.prepared_max) == ([], 5, 100)
    assert type(db.cursor()) is psycopg.AsyncCursor
    assert await following.complete()


async def test_what_was_made_of_it_refuses_to_work_after_the_end(
    store: PostgreSQLStore, sql: psycopg.Connection[Any]
) -> None:
    order = await begin(store)
    db = order.db
    cursor = await db.execute("select 1")
    server_cursor = db.cursor("rows")
    await server_cursor.execute("select generate_series(1, 10)")
    block, pipeline = db.transaction(), db.pipeline()
    assert await order.complete()
    stranger = await begin(store)
    late = "insert into charge values ('late')"
    calls = [
        lambda: db.execute(late),
        lambda: cursor.execute(late),
        lambda: cursor.executemany(late, [()]),
        lambda: server_cursor.fetchone(),
        lambda: anext(server_cursor.__aiter__()),
        lambda: anext(cursor.stream(late)),
        lambda: cursor.copy("copy charge from stdin").__aenter__(),
        lambda: block.__aenter__(),
        lambda: pipeline.__aenter__(),
        lambda: db.rollback(),
        lambda: db.set_autocommit(False),
        lambda: db.set_read_only(True),
        lambda: anext(db.notifies(timeout=0.1)),
    ]
    for call in calls:
        with pytest.raises(psycopg.Error, match=OVER):
            await call()
    with pytest.raises(psycopg.Error, match=OVER):
        db.cursor()
    assert db.closed
    await db.close()
    await stranger.db.execute("insert into charge values ('strangers')")
    assert await stranger.complete()
    assert charges(sql) == ["strangers"]


@pytest.mark.parametrize("left", ["transaction", "pipeline", "copy", "notifies"])
async def test_what_a_task_has_left_open_commits_nothing(
    store: PostgreSQLStore, sql: psycopg.Connection[Any], left: str
) -> None:
    order = await begin(store)
    db = order.db
    inside, told = asyncio.Event(), []

    async def left_running() -> None:
        try:
            await db.execute("insert into charge values ('half')")
            if left == "transaction":
                async with db.transaction():
                    inside.set()
                    await asyncio.sleep(0.3)
            elif left == "pipeline":
                async with db.pipeline():
                    inside.set()
                    await asyncio.sleep(0.3)
                    await db.execute("insert into charge values ('more')")
            elif left == "copy":
                async with db.cursor().copy("copy charge from stdin") as copy:
                    inside.set()
                    await asyncio.sleep(0.3)
                    await copy.write_row(("more",))
            else:
                inside.set()
                async for _ in db.notifies():
                    pass
        except psycopg.Error as error:
            told.append(error)

    task = asyncio.create_task(left_running())
    await inside.wait()
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="nothing was committed"):
        await order.complete()
    async with asyncio.timeout(20):
        following = await begin(store)
        await following.db.execute("insert into charge values ('next')")
        await asyncio.wait([task], timeout=15)
        assert await following.complete()
    assert len(told) == 1
    assert charges(sql) == ["next"]


async def test_a_statement_of_a_client_side_cursor_does_not_end_it_unnoticed(
    store: PostgreSQLStore, sql: psycopg.Connection[Any]
) -> None:
    order = await begin(store)
    await order.db.execute("insert into charge values ('a')")
    with pytest.raises(psycopg.ProgrammingError, match="belongs to the operation"):
        await psycopg.AsyncClientCursor(order.db).execute("rollback")
    with pytest.raises(StoreUnavailable):
        await order.complete()
    assert charges(sql) == []


TENANTS = [
    "set role tenant",
    "set local role tenant",
    "set search_path = tenant_path",
    "set local search_path = tenant_path",
    "select set_config('search_path', 'tenant_path', true)",
    "set session authorization tenant",
]


@pytest.mark.parametrize("said", TENANTS)
async def test_the_record_is_written_whoever_the_handler_has_made_itself(
    store: PostgreSQLStore, sql: psycopg.Connection[Any], said: str
) -> None:
    sql.execute("create schema if not exists tenant_path")
    sql.execute("do $$ begin create role tenant; exception when others then null; end $$")
    order = await begin(store)
    await order.db.execute("insert into charge values ('a')")
    await order.db.execute(said)
    assert await order.complete()
    following = await begin(store)
    row = await (
        await following.db.execute("select current_user, session_user, to_regclass('charge')::text")
    ).fetchone()
    assert row == ("postgres", "postgres", "charge")
    assert await following.complete()
    assert charges(sql) == ["a"]


async def test_deferred_checks_have_the_handlers_settings(
    store: PostgreSQLStore, sql: psycopg.Connection[Any]
) -> None:
    sql.execute(
        "create table seen (tenant text);"
        "create function see() returns trigger language plpgsql as"
        " $$ begin insert into seen values (current_setting('app.tenant', true));"
        " return null; end $$;"
        "create constraint trigger seeing after insert on charge deferrable initially deferred"
        " for each row execute function see()"
    )
    order = await begin(store)
    await order.db.execute("set app.tenant = 'a'")
    await order.db.execute("insert into charge values ('x')")
    assert await order.complete()
    assert sql.execute("select tenant from seen").fetchall() == [("a",)]


SET_BY = [
    "select enter_tenant('a')",
    "select * from enter_tenant('a')",
    "select \"enter_tenant\"('a')",
    "call become_tenant('a')",
    "do $$ begin perform enter_tenant('a'); end $$",
    "select 1; set app.tenant = 'a'",
    "with t as (select enter_tenant('a')) select * from t",
]


@pytest.mark.parametrize("said", SET_BY)
@pytest.mark.parametrize("way", ["sync", "async"])
async def test_settings_made_by_a_function_do_not_stay(
    store: PostgreSQLStore, sql: psycopg.Connection[Any], said: str, way: str
) -> None:
    sql.execute(
        "create function enter_tenant(_name text) returns text language sql as"
        " $$ select set_config('app.tenant', _name, false) $$;"
        "create procedure become_tenant(_name text) language plpgsql as"
        " $$ begin perform set_config('app.tenant', _name, false); end $$"
    )
    asked = "select current_setting('app.tenant', true)"
    if way == "async":
        order = await begin(store)
        pid = order.db.info.backend_pid
        await order.db.execute(said)
        assert await order.complete()
        following = await begin(store)
        assert following.db.info.backend_pid == pid  # it was reset, not replaced
        assert await (await following.db.execute(asked)).fetchone() == ("",)
        following.transaction.rollback()
        await asyncio.sleep(0.05)
        return
    for number in range(2):
        key = os.urandom(16)
        transaction: Any = store.open(Open(key, b"\x01" + bytes(32), os.urandom(14)))
        with transaction.connection.cursor() as cursor:
            assert cursor.execute(asked).fetchone() in ((None,), ("",))
            cursor.execute(said)
        if number:
            transaction.rollback()
        else:
            record = Complete(key, transaction.token, Response(201, (), b"x"), 60.0, 0.0)
            assert transaction.complete(record)


async def test_settings_cost_no_round_trip_more(url: str) -> None:
    proxy = Proxy(servers.postgresql().port)
    through = urlunsplit(urlsplit(url)._replace(netloc=f"postgres@127.0.0.1:{proxy.port}"))
    store = PostgreSQLStore(through, pool_size=1)
    store.start()
    for number in range(20):
        if number == 10:
            proxy.round_trips = 0
        order = await begin(store)
        await order.db.execute("select set_config('app.tenant', 'a', false)")
        assert await order.complete()
    assert proxy.round_trips == 10 * 3  # BEGIN, the statement, COMMIT
    store.stop()
    proxy.close()


async def test_behind_a_pooler_settings_go_with_their_transaction(url: str) -> None:
    between = servers.pgbouncer()
    name = urlsplit(url).path
    store = PostgreSQLStore(urlunsplit(urlsplit(between.url)._replace(path=name)), pool_size=2)
    store.start()
    for said in ("set app.tenant = 'a'", "set role pg_monitor", "select pg_advisory_lock(7)"):
        order = await begin(store)
        await order.db.execute("insert into charge values (%s)", (said,))
        await order.db.execute(said)
        assert await order.complete()
        for _ in range(3):
            following = await begin(store)
            row = await (
                await following.db.execute(
                    "select current_user, coalesce(current_setting('app.tenant', true), ''),"
                    " (select count(*) from pg_locks where locktype = 'advisory' and objid = 7)"
                )
            ).fetchone()
            assert row == ("postgres", "", 0)
            assert await following.complete()
    store.stop()


async def test_a_rollback_keeps_the_key_and_does_not_give_it_to_another(
    store: PostgreSQLStore, url: str, sql: psycopg.Connection[Any]
) -> None:
    order = await begin(store)
    await order.db.execute("insert into charge values ('a')")
    await order.db.rollback()
    other = PostgreSQLStore(url, pool_size=1)
    other.start()
    again = Open(order.record.key, b"\x01" + bytes(32), os.urandom(14))
    assert await other.aopen(again) is None
    await order.db.execute("insert into charge values ('b')")
    assert await order.complete()
    assert charges(sql) == ["b"]
    assert (await other.aopen(again)).record is not None  # type: ignore[union-attr]
    other.stop()
