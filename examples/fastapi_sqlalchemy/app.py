"""FastAPI with SQLAlchemy's async engine: the order and the answer to its key commit together.

SHOP=postgresql+asyncpg://user@host/shop uvicorn app:app
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from semel import Idempotency, Policy
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.web.fastapi import AsyncOp, init_app


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    quantity: Mapped[int]


class Wanted(BaseModel):
    item: str = Field(min_length=1, max_length=100)
    quantity: int = Field(default=1, gt=0, lt=1000)


engine = create_async_engine(os.environ["SHOP"], pool_pre_ping=True)
sessions = async_sessionmaker(engine, expire_on_commit=False)
idempotency = Idempotency(
    SQLAlchemyStore(engine, sessions=sessions),
    policy=Policy(required=True, guarantee="atomic"),
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


app = FastAPI(title="Orders", lifespan=lifespan)


@app.post("/orders", status_code=201)
async def order(wanted: Wanted, op: AsyncOp) -> dict[str, Any]:
    session = await op.session()  # an AsyncSession in the transaction of the key
    placed = Order(item=wanted.item, quantity=wanted.quantity)
    session.add(placed)
    await session.commit()  # a savepoint here: the real commit comes with the answer
    return {"order": placed.id, "item": placed.item, "quantity": placed.quantity}


@app.get("/orders/count")
async def count() -> int:
    async with sessions() as session:
        return await session.scalar(select(func.count()).select_from(Order)) or 0


init_app(app, idempotency)
