"""Databases of one test each, with the application's table in them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, QueuePool, create_engine, make_url, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests import servers

_numbers = itertools.count()

SYNC = ("sqlite", "postgresql+psycopg")
ASYNC = ("sqlite+aiosqlite", "postgresql+asyncpg", "postgresql+psycopg")


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "thing"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Place:
    """A database, reached by one driver."""

    def __init__(self, driver: str, folder: Path) -> None:
        name = f"sessions{next(_numbers)}"
        if driver.startswith("sqlite"):
            plain = f"sqlite:///{folder / name}.db"
            looks = plain
        else:
            plain = servers.postgresql().database(name)
            looks = plain.replace("postgresql", "postgresql+psycopg", 1)
        self.url = make_url(plain).set(drivername=driver)
        self.looks = create_engine(looks)
        Base.metadata.create_all(self.looks)

    def engine(self, **options: Any) -> Engine:
        return create_engine(self.url, poolclass=QueuePool, **options)

    def async_engine(self, **options: Any) -> AsyncEngine:
        return create_async_engine(self.url, **options)

    def things(self) -> list[str]:
        with self.looks.connect() as connection:
            return list(connection.scalars(select(Thing.name).order_by(Thing.id)))
