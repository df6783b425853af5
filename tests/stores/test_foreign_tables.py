"""Tables of another kind of store, or without a column: refused at the start, with what to do."""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine

from semel.core.commands import Claim, Claimed, Found, Lookup
from semel.stores import StoreSetupError, open_store
from semel.stores.postgres import PostgreSQLStore
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.stores.sqlite import SQLiteStore
from tests import servers

_names = itertools.count()
KEY = bytes(16)
MARKER = "create table semel_schema (kind text, version integer)"
PORTABLE = "insert into semel_schema values ('portable', 1)"
OTHER = "insert into semel_schema values ('another', 1)"


@pytest.fixture
def url() -> str:
    return servers.postgresql().database(f"foreign{os.getpid()}_{next(_names)}")


@pytest.fixture
def sql(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def tables_of(sql: Any) -> set[str]:
    found = sql.execute("select tablename from pg_tables where schemaname = 'public'")
    return {name for (name,) in found}


def sqlalchemy_was_here(url: str) -> None:
    engine = create_engine(url)
    store = SQLAlchemyStore(engine, create_tables=True)
    store.start()
    store.stop()
    engine.dispose()


# --- PostgreSQL --------------------------------------------------------------------------------


def test_postgresql_refuses_the_tables_of_sqlalchemy_and_changes_nothing(
    url: str, sql: Any
) -> None:
    sqlalchemy_was_here(url.replace("postgresql://", "postgresql+psycopg://"))
    before = tables_of(sql)
    with pytest.raises(StoreSetupError, match=r"another kind of store.*schema \(search_path\)"):
        PostgreSQLStore(url).start()
    with pytest.raises(StoreSetupError, match="another kind of store"):
        PostgreSQLStore(url).migrate()
    assert tables_of(sql) == before


def test_postgresql_refuses_where_the_marker_is_a_portable_stores(url: str, sql: Any) -> None:
    sql.execute(MARKER)
    sql.execute(OTHER)
    PostgreSQLStore(url).start()
    sql.execute(PORTABLE)
    with pytest.raises(StoreSetupError, match="another kind of store"):
        PostgreSQLStore(url).start()


def test_postgresql_takes_a_schema_of_its_own_beside_the_others(url: str, sql: Any) -> None:
    sqlalchemy_was_here(url.replace("postgresql://", "postgresql+psycopg://"))
    sql.execute("create schema native")
    store = PostgreSQLStore(f"{url}?options=-csearch_path%3Dnative,public")
    store.start()
    store.stop()
    (count,) = sql.execute("select count(*) from native.semel_record").fetchone()
    assert count == 0


@pytest.mark.parametrize("first", ["portable", "native"])
def test_both_kinds_look_only_at_the_schema_that_tables_are_made_in(
    url: str, sql: Any, first: str
) -> None:
    """With `"App",public` either kind takes `App` while the other has `public`."""
    beside = f"{url}?options=-csearch_path%3D%22App%22,public"
    sql.execute('create schema "App"')

    def portable(where: str) -> None:
        sqlalchemy_was_here(where.replace("postgresql://", "postgresql+psycopg://"))

    def native(where: str) -> None:
        store = PostgreSQLStore(where)
        store.start()
        claim = Claim(KEY, b"\x01" + bytes(32), 30.0, b"owner")
        assert isinstance(store.execute(claim), Claimed | Found)
        store.stop()

    one, other = (portable, native) if first == "portable" else (native, portable)
    for _ in range(2):
        one(url)
        other(beside)
    with pytest.raises(StoreSetupError, match=r"one kind of store|another kind"):
        one(beside)
    with pytest.raises(StoreSetupError, match=r"one kind of store|another kind"):
        other(url)
    found = sql.execute("select count(*) from pg_tables where tablename = 'semel_record'")
    assert found.fetchone() == (2,)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("alter table semel_record drop column reason", "semel_record.reason"),
        ("alter table semel_record drop column request", "semel_record.request"),
        ("alter table semel_step drop column result", "semel_step.result"),
        ("alter type semel_found drop attribute answer", "semel_found.answer"),
        ("drop table semel_step", "semel_step.key, semel_step.name"),
    ],
)
def test_postgresql_names_the_column_that_is_lacking(
    url: str, sql: Any, change: str, named: str
) -> None:
    PostgreSQLStore(url).start()
    sql.execute(change)
    with pytest.raises(StoreSetupError, match=f"lack {named}"):
        PostgreSQLStore(url).start()


def test_columns_of_a_newer_version_do_no_harm(url: str, sql: Any) -> None:
    store = PostgreSQLStore(url)
    store.start()
    claimed = store.execute(Claim(KEY, b"\x01" + bytes(32), 30.0, b"owner"))
    assert isinstance(claimed, Claimed)
    sql.execute("alter table semel_record add column mood text")
    sql.execute("alter type semel_found add attribute mood text")
    body = sql.execute("select pg_get_functiondef('semel_lookup'::regproc)").fetchone()[0]
    sql.execute(body.replace("semel_now(), false", "semel_now(), false, r.mood").encode())
    try:
        found = store.execute(Lookup(KEY))
        assert isinstance(found, Found)
        assert (found.record.token, found.record.owner) == (claimed.token, b"owner")
    finally:
        store.stop()
    PostgreSQLStore(url).start()


# --- SQLite ------------------------------------------------------------------------------------


def test_sqlite_refuses_the_tables_of_sqlalchemy_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    sqlalchemy_was_here(f"sqlite:///{path}")
    with sqlite3.connect(path) as sql:
        before = sql.execute("select sql from sqlite_master order by name").fetchall()
        (mode,) = sql.execute("pragma journal_mode").fetchone()
    with pytest.raises(StoreSetupError, match=r"shop.db: .*another kind of store.*a file"):
        open_store(f"sqlite:///{path}").start()
    with sqlite3.connect(path) as sql:
        assert sql.execute("select sql from sqlite_master order by name").fetchall() == before
        assert sql.execute("pragma journal_mode").fetchone() == (mode,)
    sql.close()


def test_sqlite_refuses_where_the_marker_is_a_portable_stores(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    sql = sqlite3.connect(path, isolation_level=None)
    sql.execute(MARKER)
    sql.execute(OTHER)
    store = SQLiteStore(path)
    store.start()
    store.stop()
    sql.execute(PORTABLE)
    sql.close()
    with pytest.raises(StoreSetupError, match="another kind of store"):
        SQLiteStore(path).start()


@pytest.mark.parametrize("column", ["reason", "answer"])
def test_sqlite_names_the_column_that_is_lacking(tmp_path: Path, column: str) -> None:
    path = tmp_path / "shop.db"
    store = SQLiteStore(path)
    store.start()
    store.stop()
    sql = sqlite3.connect(path)
    sql.execute(f"alter table semel_record drop column {column}")
    sql.close()
    with pytest.raises(StoreSetupError, match=f"shop.db: .*lack semel_record.{column}"):
        SQLiteStore(path).start()
