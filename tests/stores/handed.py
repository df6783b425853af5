"""What `op.connection()` hands out in each store and each way, used alike by the tests."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from semel.core.commands import Claim, Complete, Open
from semel.core.record import Response
from semel.stores import Store
from semel.stores.postgres import PostgreSQLStore
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.stores.sqlite import SQLiteStore
from tests import servers

PRINT = b"\x01" + b"f" * 32
_names = itertools.count()
KINDS = [
    "sqlite",
    "sqlite-async",
    "postgresql",
    "postgresql-async",
    "postgresql-atomic",
    "postgresql-async-atomic",
    "postgresql-thread-atomic",
    "sqlalchemy-sqlite",
    "sqlalchemy-postgresql+psycopg",
    "sqlalchemy-mysql+pymysql",
    "sqlalchemy-async-sqlite+aiosqlite",
    "sqlalchemy-async-postgresql+psycopg_async",
    "sqlalchemy-async-postgresql+asyncpg",
    "sqlalchemy-async-mysql+asyncmy",
]


async def awaited(value: Any) -> Any:
    """The value of what a plain or an async method has returned."""
    return await value if inspect.isawaitable(value) else value


class Place:
    """A store of one connection, and a table `charge` beside it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.is_async = "async" in kind
        self.engine: Any = None
        name = f"handed{os.getpid()}_{next(_names)}"
        if kind.startswith("sqlite"):
            self.url = f"sqlite:///{folder / 'shop.db'}"
            self.store: Store = SQLiteStore(folder / "shop.db", timeout=3)
        elif kind.startswith("postgresql"):
            self.url = servers.postgresql().database(name)
            self.store = PostgreSQLStore(self.url, pool_size=1, timeout=3)
        else:
            driver = kind.rpartition("-")[2]
            self.url, self.engine = _engine(driver, name, folder, self.is_async)
            self.store = SQLAlchemyStore(self.engine)
        self.looks = create_engine(_looking(self.url))
        more = " engine=innodb" if "mysql" in self.url else ""
        with self.looks.begin() as connection:
            connection.execute(text(f"create table charge (name varchar(50) primary key){more}"))
        self.store.start()

    @property
    def database(self) -> str:
        """The name of its database."""
        return {"p": "postgresql", "m": "mysql", "s": "sqlite"}[self.url[0]]

    async def close(self) -> None:
        self.store.stop()
        if isinstance(self.engine, AsyncEngine):
            await self.store.astop()  # type: ignore[attr-defined]
            await self.engine.dispose()
        elif self.engine is not None:
            self.engine.dispose()
        self.looks.dispose()

    def charges(self) -> list[str]:
        with self.looks.connect() as connection:
            return sorted(name for (name,) in connection.execute(text("select name from charge")))

    async def begin(self) -> Work:
        """Begin an operation and take its connection."""
        key = os.urandom(16)
        store, atomic = self.store, self.kind.endswith("atomic")
        if atomic:
            command = Open(key, PRINT, os.urandom(14))
            if self.is_async or "thread" in self.kind:
                transaction: Any = await store.aopen(command)
            else:
                transaction = store.open(command)
            token = transaction.token
        else:
            token = (await store.aexecute(Claim(key, PRINT, 30.0, os.urandom(14)))).token  # type: ignore[union-attr]
            transaction = await store.abegin() if self.is_async else store.begin()
        return Work(self, transaction, key, token)


class Work:
    """An operation with its connection."""

    def __init__(self, place: Place, transaction: Any, key: bytes, token: int) -> None:
        self.place = place
        self.transaction = transaction
        self.db = transaction.async_connection if place.is_async else transaction.connection
        self._complete = Complete(key, token, Response(201, (), b"x"), 3600.0, 0.0)

    def statement(self, sql: str) -> Any:
        return text(sql) if self.place.engine is not None else sql

    async def say(self, sql: str) -> Any:
        return await awaited(self.db.execute(self.statement(sql)))

    async def rows(self, sql: str) -> list[Any]:
        return list(await awaited((await self.say(sql)).fetchall()))

    async def write(self, name: str) -> None:
        await self.say(f"insert into charge values ('{name}')")

    async def call(self, method: str) -> Any:
        return await awaited(getattr(self.db, method)())

    async def complete(self) -> bool:
        if self.place.is_async or "thread" in self.place.kind:
            return bool(await self.transaction.acomplete(self._complete))
        return bool(self.transaction.complete(self._complete))

    async def roll_back(self) -> None:
        self.transaction.rollback()
        await asyncio.sleep(0.05)

    async def in_block(self, inside: Callable[[], Any]) -> None:
        """Do something within `with connection:`, or `async with`."""
        if self.place.is_async:
            async with self.db:
                await inside()
        else:
            with self.db:
                await inside()


def _engine(driver: str, name: str, folder: Path, is_async: bool) -> tuple[str, Any]:
    kind = driver.partition("+")[0]
    if kind == "sqlite":
        url = f"sqlite:///{folder / 'shop.db'}"
    else:
        server: Any = servers.postgresql() if kind == "postgresql" else servers.mariadb()
        url = server.database(name)
    made = make_url(url).set(drivername=driver)
    sized = {} if kind == "sqlite" else {"pool_size": 1, "max_overflow": 0, "pool_timeout": 3}
    return url, create_async_engine(made, **sized) if is_async else create_engine(made, **sized)


def _looking(url: str) -> Any:
    made = make_url(url)
    driver = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
    return made.set(drivername=driver.get(made.drivername, made.drivername))
