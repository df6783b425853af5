"""SQLite's connections in a handler's hands: what users of sqlite3 and aiosqlite know."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from semel.core.commands import Claim, Complete
from semel.core.record import Response
from semel.stores.sqlite import SQLiteStore

OVER = "operation is over"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    made = SQLiteStore(path, timeout=3)
    made.start()
    with sqlite3.connect(path) as connection:
        connection.execute("create table charge (id integer primary key, name text unique)")
    connection.close()
    yield made
    made.stop()


class Order:
    def __init__(self, store: SQLiteStore) -> None:
        key = os.urandom(16)
        claimed: Any = store.execute(Claim(key, b"\x01" + bytes(32), 30.0, b"me"))
        self.record = Complete(key, claimed.token, Response(201, (), b"x"), 60.0, 0.0)
        self.transaction = store.begin()
        self.db = self.transaction.connection
        self.adb = self.transaction.async_connection

    def complete(self) -> bool:
        return self.transaction.complete(self.record)


def charges(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return [name for (name,) in connection.execute("select name from charge order by id")]
    finally:
        connection.close()


def test_a_cursor_is_sqlite3s(store: SQLiteStore) -> None:
    order = Order(store)
    cursor = order.db.cursor()
    assert isinstance(cursor, sqlite3.Cursor)
    cursor.execute("insert into charge (name) values (:name)", {"name": "a"})
    assert (cursor.lastrowid, cursor.rowcount) == (1, 1)
    cursor.executemany("insert into charge (name) values (?)", [("b",), ("c",), ("d",)])
    assert cursor.rowcount == 3
    cursor.execute("select id, name from charge")
    cursor.arraysize = 2
    assert [column[0] for column in cursor.description] == ["id", "name"]
    assert cursor.fetchone() == (1, "a")
    assert cursor.fetchmany() == [(2, "b"), (3, "c")]
    assert list(cursor) == [(4, "d")]
    assert (order.db.total_changes, order.db.in_transaction) == (4, True)
    assert cursor.connection.execute("select count(*) from charge").fetchone() == (4,)
    order.transaction.rollback()


def test_factories_are_the_operations_own(store: SQLiteStore) -> None:
    order = Order(store)
    order.db.row_factory = sqlite3.Row
    row = order.db.execute("select 1 as one, 'two' as two").fetchone()
    assert (row["one"], row["two"], row.keys()) == (1, "two", ["one", "two"])
    order.db.row_factory = lambda cursor, values: {cursor.description[0][0]: values[0]}
    order.db.text_factory = bytes
    assert order.db.execute("select 'x' as text").fetchone() == {"text": b"x"}
    assert order.complete()
    following = Order(store)
    assert following.db.execute("select 'x'").fetchone() == ("x",)
    following.transaction.rollback()


SCRIPT = """
create table line (n integer);  -- one; two
create trigger lines after insert on charge begin
    insert into line values (1); insert into line values (2);
end;
insert into charge (name) values ('a;b');
insert into charge (name) values ('c')
"""


def test_a_script_is_part_of_the_operation(store: SQLiteStore, path: Path) -> None:
    order = Order(store)
    order.db.execute("insert into charge (name) values ('before')")
    order.db.executescript(SCRIPT)
    assert order.db.execute("select count(*) from line").fetchone() == (4,)
    assert charges(path) == []
    order.transaction.rollback()
    assert charges(path) == []
    order = Order(store)
    order.db.executescript(SCRIPT)
    with pytest.raises(sqlite3.DatabaseError, match="belongs to the operation"):
        order.db.executescript("insert into charge (name) values ('d'); commit;")
    assert order.complete()
    assert charges(path) == ["a;b", "c", "d"]


def test_a_block_that_raises_is_undone_alone(store: SQLiteStore, path: Path) -> None:
    order = Order(store)
    order.db.execute("insert into charge (name) values ('before')")
    with pytest.raises(sqlite3.IntegrityError), order.db:
        order.db.execute("insert into charge (name) values ('inside')")
        order.db.execute("insert into charge (name) values ('before')")
    with order.db as same:
        same.execute("insert into charge (name) values ('kept')")
    with order.db:
        order.db.rollback()
    order.db.execute("insert into charge (name) values ('last')")
    assert order.complete()
    assert charges(path) == ["last"]


def test_what_is_added_to_sql_lasts_as_long_as_the_operation(store: SQLiteStore) -> None:
    order = Order(store)

    class Longest:
        def __init__(self) -> None:
            self.found = ""

        def step(self, value: str) -> None:
            self.found = max(self.found, value, key=len)

        def finalize(self) -> str:
            return self.found

    order.db.create_function("twice", 1, lambda value: value * 2, deterministic=True)
    order.db.create_aggregate("longest", 1, Longest)  # type: ignore[arg-type]
    order.db.create_collation("backwards", lambda one, other: (one < other) - (one > other))
    order.db.execute("create temp table mine (name text collate backwards)")
    order.db.execute("insert into mine values ('a'), ('bb')")
    order.db.execute("create temp view seen as select * from mine")
    assert order.db.execute("select twice(2), longest(name) from mine").fetchone() == (4, "bb")
    assert order.db.execute("select name from seen order by name").fetchone() == ("bb",)
    assert order.complete()
    following = Order(store)
    for asked in ("select twice(1)", "select longest('a')", "select * from mine"):
        with pytest.raises(sqlite3.OperationalError, match="no such"):
            following.db.execute(asked)
    with pytest.raises(sqlite3.OperationalError, match="no such collation"):
        following.db.execute("select 'a' = 'b' collate backwards")
    with pytest.raises(sqlite3.NotSupportedError, match="take another name"):
        following.db.create_function("lower", 1, str)
    following.db.execute("create temp table mine (n)")
    following.transaction.rollback()


REFUSED: list[tuple[str, Callable[[Any], object]]] = [
    ("backup", lambda db: db.backup(db)),
    ("set_progress_handler", lambda db: db.set_progress_handler(None, 1)),
    ("set_authorizer", lambda db: db.set_authorizer(None)),
    ("interrupt", lambda db: db.interrupt()),
    ("isolation_level", lambda db: setattr(db, "isolation_level", None)),
    ("autocommit", lambda db: setattr(db, "autocommit", True)),
]


@pytest.mark.parametrize(("name", "call"), REFUSED, ids=[name for name, _ in REFUSED])
def test_what_would_concern_every_operation_is_refused(
    store: SQLiteStore, path: Path, name: str, call: Callable[[Any], object]
) -> None:
    order = Order(store)
    with pytest.raises(sqlite3.Error, match=name):
        call(order.db)
    with pytest.raises(sqlite3.Error, match=name):
        call(order.adb)
    assert order.db.iterdump() is not None
    assert order.complete()
    assert charges(path) == []


PRAGMAS = ["query_only = on", "foreign_keys = off", "busy_timeout = 5", "synchronous(off)"]
ASKED = ["foreign_keys", "foreign_keys = ON", "table_info(charge)", "user_version = 7"]


@pytest.mark.parametrize("pragma", PRAGMAS)
def test_a_pragma_that_would_stay_is_refused(store: SQLiteStore, pragma: str) -> None:
    order = Order(store)
    with pytest.raises(sqlite3.DatabaseError, match="would stay with the connection"):
        order.db.execute(f"pragma {pragma}")
    assert order.complete()


@pytest.mark.parametrize("pragma", ASKED)
def test_a_pragma_that_asks_is_answered(store: SQLiteStore, pragma: str) -> None:
    order = Order(store)
    order.db.execute(f"pragma {pragma}").fetchall()
    assert order.complete()


async def test_the_ways_of_aiosqlite(store: SQLiteStore, path: Path) -> None:
    order = Order(store)
    db = order.adb
    db.row_factory = sqlite3.Row
    async with db.execute("insert into charge (name) values ('a')") as cursor:
        assert (cursor.lastrowid, cursor.rowcount) == (1, 1)
    async with db.execute("select name from charge") as cursor:
        assert [row["name"] async for row in cursor] == ["a"]
    async with db.cursor() as cursor:
        await cursor.executemany("insert into charge (name) values (?)", [("b",), ("c",)])
        await cursor.execute("select name from charge")
        assert tuple(await cursor.fetchone()) == ("a",)
        assert [tuple(row) for row in await cursor.fetchmany(1)] == [("b",)]
        assert [tuple(row) for row in await cursor.fetchall()] == [("c",)]
    cursor = await db.cursor()
    with pytest.raises(sqlite3.IntegrityError):
        await cursor.execute("insert into charge (name) values ('a')")
    with pytest.raises(sqlite3.IntegrityError):
        async with db.execute("insert into charge (name) values ('a')"):
            pass
    assert tuple(await db.execute_insert("insert into charge (name) values ('d')")) == (4,)
    assert len(await db.execute_fetchall("select * from charge")) == 4
    plain = await asyncio.create_task(db.execute("select count(*) from charge"))
    assert tuple(plain.fetchone()) == (4,)
    await db.executescript("insert into charge (name) values ('e'); delete from charge where id=1;")
    await db.create_function("twice", 1, lambda value: value * 2)
    with pytest.raises(ZeroDivisionError):
        async with db:
            await db.execute("insert into charge (name) values ('undone')")
            raise ZeroDivisionError
    assert await order.transaction.acomplete(order.record)
    with pytest.raises(sqlite3.ProgrammingError, match=OVER):
        await cursor.execute("select 1")
    with pytest.raises(sqlite3.ProgrammingError, match=OVER):
        async with db.execute("select 1"):
            pass
    assert charges(path) == ["b", "c", "d", "e"]


def test_rows_that_were_not_read_are_refused_after_the_end(store: SQLiteStore) -> None:
    order = Order(store)
    cursors = [order.db.execute("select 1 union select 2") for _ in range(4)]
    assert order.complete()
    for cursor, read in zip(
        cursors,
        [lambda c: c.fetchone(), lambda c: c.fetchmany(2), lambda c: c.fetchall(), list],
        strict=True,
    ):
        with pytest.raises(sqlite3.ProgrammingError, match=OVER):
            read(cursor)  # type: ignore[no-untyped-call]
    with pytest.raises(sqlite3.ProgrammingError, match=OVER):
        cursors[0].connection.execute("select 1")
