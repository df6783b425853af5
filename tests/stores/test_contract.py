"""The contract of stores, kept by each of ours on its real server."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from semel.stores import Store
from semel.testing.store_contract import ManualClock, StoreContract

from .contract import STORES


class OurStore(StoreContract):
    """The contract for one of `STORES`."""

    kind: ClassVar[str]

    def make_store(self, folder: Path, clock: ManualClock) -> Store:
        return STORES[self.kind](folder, clock)


class SQLAlchemyOn(OurStore):
    """On one driver; compared on an event loop, the way that requests take."""

    examples = 25
    awaited = True


class TestMemory(OurStore):
    kind = "memory"


class TestSQLite(OurStore):
    kind = "sqlite"


class TestPostgreSQL(OurStore):
    kind = "postgresql"


class TestRedis(OurStore):
    kind = "redis"


class TestRedisCluster(OurStore):
    kind = "redis+cluster"
    examples = 2  # the scripts of "redis", one call a key; its clients are slow to make


class TestDjangoSQLite(OurStore):
    kind = "django-sqlite"


class TestDjangoPostgreSQL(OurStore):
    kind = "django-postgresql"


class TestDjangoMariaDB(OurStore):
    kind = "django-mariadb"


class TestSQLAlchemySQLite(SQLAlchemyOn):
    kind = "sqlalchemy-sqlite"


class TestSQLAlchemyAiosqlite(SQLAlchemyOn):
    kind = "sqlalchemy-aiosqlite"


class TestSQLAlchemyPsycopg(SQLAlchemyOn):
    kind = "sqlalchemy-psycopg"


class TestSQLAlchemyPsycopgAsync(SQLAlchemyOn):
    kind = "sqlalchemy-psycopg-async"


class TestSQLAlchemyAsyncpg(SQLAlchemyOn):
    kind = "sqlalchemy-asyncpg"


class TestSQLAlchemyPyMySQL(SQLAlchemyOn):
    kind = "sqlalchemy-pymysql"


class TestSQLAlchemyAsyncmy(SQLAlchemyOn):
    kind = "sqlalchemy-asyncmy"


def test_each_of_our_stores_keeps_the_contract() -> None:
    classes = [c for c in globals().values() if isinstance(c, type) and hasattr(c, "kind")]
    assert {c.kind for c in classes} == set(STORES)
