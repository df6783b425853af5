"""Litestar with async SQLAlchemy: a guard, an injected session, a controller, domain errors.

DATABASE_URL=postgresql+asyncpg://user@host/tickets uvicorn app:app
"""

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from litestar import Controller, Litestar, Request, get, post
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency, Provide
from litestar.exceptions import ClientException, NotAuthorizedException
from litestar.handlers import BaseRouteHandler
from sqlalchemy import ForeignKey, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from semel import Idempotency
from semel.sessions import join_sessionmaker
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.web.litestar import SemelPlugin

engine = create_async_engine(os.environ["DATABASE_URL"])
Sessions = async_sessionmaker(engine, expire_on_commit=False)
TOKENS = {"token-of-alice": "alice", "token-of-bob": "bob"}


class Base(DeclarativeBase):
    id: Mapped[int] = mapped_column(primary_key=True)


class Show(Base):
    __tablename__ = "shows"
    name: Mapped[str] = mapped_column(unique=True)
    left: Mapped[int]


class Ticket(Base):
    __tablename__ = "tickets"
    owner: Mapped[str]
    show_id: Mapped[int] = mapped_column(ForeignKey("shows.id"))


@dataclass
class Wanted:
    show: str
    seats: int


def who(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    token = connection.headers.get("authorization", "").removeprefix("Bearer ")
    if token not in TOKENS:
        raise NotAuthorizedException("log in first")
    return TOKENS[token]


def logged_in(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    who(connection)


async def provide_session() -> AsyncIterator[AsyncSession]:
    async with Sessions() as session:
        yield session


class Tickets(Controller):
    path = "/tickets"
    guards = (logged_in,)

    @get()
    async def mine(
        self, request: Request[Any, Any, Any], session: NamedDependency[AsyncSession]
    ) -> list[int]:
        query = select(Ticket.id).where(Ticket.owner == who(request)).order_by(Ticket.id)
        return list(await session.scalars(query))

    @post()
    async def buy(
        self, data: Wanted, request: Request[Any, Any, Any], session: NamedDependency[AsyncSession]
    ) -> dict[str, list[int]]:
        show = await session.scalar(select(Show).where(Show.name == data.show))
        if show is None:
            raise ClientException("no such show", status_code=404)
        tickets = [Ticket(owner=who(request), show_id=show.id) for _ in range(data.seats)]
        session.add_all(tickets)
        await session.flush()
        if show.left < data.seats:
            raise ClientException("sold out", status_code=410)
        show.left -= data.seats
        await session.commit()
        return {"tickets": [ticket.id for ticket in tickets]}


async def make_tables() -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with Sessions() as session:
        if await session.scalar(select(Show)) is None:
            session.add(Show(name="Hamlet", left=20))
            await session.commit()


# --- Semel: sessions in a request with a key are in the transaction of the key ---
idempotency = Idempotency(SQLAlchemyStore(engine))
join_sessionmaker(Sessions, idempotency)
# --- that was it, with the plugin below ---

app = Litestar(
    [Tickets],
    dependencies={"session": Provide(provide_session)},
    on_startup=[make_tables],
    plugins=[SemelPlugin(idempotency, caller=who)],  # Semel
)
