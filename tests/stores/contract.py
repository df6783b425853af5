"""The stores that ship with Semel, each on its real server and by the clock of the contract."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psycopg
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from semel.core.commands import Reply, StoreCommand
from semel.stores import Store
from semel.stores.memory import MemoryStore
from semel.stores.postgres import PostgreSQLStore
from semel.stores.redis import RedisStore
from semel.stores.sqlalchemy import SQLAlchemyStore, metadata
from semel.stores.sqlite import SQLiteStore
from semel.testing.store_contract import ManualClock
from tests import servers
from tests.stores.django_stores import DJANGO_STORES

Make = Callable[[Path, ManualClock], Store]

_numbers = itertools.count()


def memory(folder: Path, clock: ManualClock) -> Store:
    return MemoryStore(clock=clock)


def sqlite(folder: Path, clock: ManualClock) -> Store:
    return SQLiteStore(folder / "records.db", synchronous="normal", clock=clock)


@cache
def _postgresql(name: str) -> str:
    """A database of this process, whose clock is a row that the test writes."""
    url = servers.postgresql().database(name)
    store = PostgreSQLStore(url)
    store.start()
    store.stop()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "create table clock (now double precision); insert into clock values (0);"
            "create or replace function semel_now() returns double precision language sql volatile"
            " as 'select now from clock'"
        )
    return url


class _Ticking:
    """Writes the test's clock into the database before each command."""

    def __init__(self, url: str, clock: ManualClock) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        self._clock = clock
        self._written = 0.0
        self.connection.execute("truncate semel_record, semel_step")

    def tick(self) -> None:
        if self._written != self._clock.now:
            self._written = self._clock.now
            self.connection.execute("update clock set now = %s", (self._written,))


class TickingStore(PostgreSQLStore):
    """A store whose database is told the time before each command."""

    def __init__(self, url: str, clock: ManualClock) -> None:
        super().__init__(url)
        self.ticking = _Ticking(url, clock)

    def execute(self, command: StoreCommand) -> Reply:
        self.ticking.tick()
        return super().execute(command)

    async def aexecute(self, command: StoreCommand) -> Reply:
        self.ticking.tick()
        return await super().aexecute(command)

    def stop(self) -> None:
        super().stop()
        self.ticking.connection.close()


def postgresql(folder: Path, clock: ManualClock) -> TickingStore:
    return TickingStore(_postgresql("contract"), clock)


def redis(folder: Path, clock: ManualClock) -> Store:
    return RedisStore(servers.valkey().url, prefix=f"t{next(_numbers)}", clock=clock)


@cache
def _sqlalchemy_database(kind: str) -> Engine:
    """A database of this process with the tables in it."""
    if kind == "postgresql":
        url = (
            servers.postgresql().database("sqlalchemy").replace("postgresql", "postgresql+psycopg")
        )
    else:
        url = servers.mariadb().database("sqlalchemy").replace("mysql", "mysql+pymysql")
    engine = create_engine(url)
    metadata.create_all(engine)
    return engine


def _sqlalchemy(driver: str) -> Make:
    """On an engine of this driver."""
    kind = driver.partition("+")[0]

    def made(folder: Path, clock: ManualClock) -> Store:
        url = make_url(f"sqlite:///{folder / 'records.db'}")
        if kind != "sqlite":
            database = _sqlalchemy_database(kind)
            url = database.url
            with database.begin() as connection:
                for table in metadata.sorted_tables:
                    connection.execute(table.delete())
        make = create_async_engine if driver in ASYNC_DRIVERS else create_engine
        return SQLAlchemyStore(make(url.set(drivername=driver)), clock=clock)

    return made


ASYNC_DRIVERS = {
    "sqlite+aiosqlite",
    "postgresql+psycopg_async",
    "postgresql+asyncpg",
    "mysql+asyncmy",
}
SQLALCHEMY = {
    "sqlalchemy-sqlite": _sqlalchemy("sqlite"),
    "sqlalchemy-aiosqlite": _sqlalchemy("sqlite+aiosqlite"),
    "sqlalchemy-psycopg": _sqlalchemy("postgresql+psycopg"),
    "sqlalchemy-psycopg-async": _sqlalchemy("postgresql+psycopg_async"),
    "sqlalchemy-asyncpg": _sqlalchemy("postgresql+asyncpg"),
    "sqlalchemy-pymysql": _sqlalchemy("mysql+pymysql"),
    "sqlalchemy-asyncmy": _sqlalchemy("mysql+asyncmy"),
}


def redis_cluster(folder: Path, clock: ManualClock) -> Store:
    url = servers.valkey_cluster().url.replace("redis+cluster", "redis")
    return RedisStore(url, prefix=f"t{next(_numbers)}", clock=clock, cluster=True)


STORES: dict[str, Make] = {
    "memory": memory,
    "sqlite": sqlite,
    "postgresql": postgresql,
    "redis": redis,
    **SQLALCHEMY,
    **DJANGO_STORES,
    "redis+cluster": redis_cluster,
}
"""How each store is made, on a server and in tables of its own."""
