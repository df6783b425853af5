"""FastAPI with a unit of work over a sessionmaker: repositories, services, domain errors.

DATABASE_URL=postgresql+psycopg://user@host/stock uvicorn app:app
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader
from pydantic import BaseModel, Field
from sqlalchemy import ForeignKey, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from semel import Idempotency
from semel.sessions import join_sessionmaker
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.web.fastapi import init_app

engine = create_engine(os.environ["DATABASE_URL"])
Sessions = sessionmaker(engine, expire_on_commit=False)

# --- Semel: a unit of work within a request with a key is in the transaction of the key ---
idempotency = Idempotency(SQLAlchemyStore(engine))
join_sessionmaker(Sessions, idempotency)
# --- that was it, with init_app below ---


class Base(DeclarativeBase):
    id: Mapped[int] = mapped_column(primary_key=True)


class Customer(Base):
    __tablename__ = "customers"
    name: Mapped[str]
    api_key: Mapped[str] = mapped_column(unique=True)


class Batch(Base):
    __tablename__ = "batches"
    sku: Mapped[str] = mapped_column(unique=True)
    left: Mapped[int]


class Allocation(Base):
    __tablename__ = "allocations"
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))
    sku: Mapped[str]
    quantity: Mapped[int]


class OutOfStock(Exception):
    """There is less of it than was ordered."""


class Repository:
    def __init__(self, session: Session) -> None:
        self._session = session

    def customer(self, api_key: str) -> Customer | None:
        return self._session.scalar(select(Customer).where(Customer.api_key == api_key))

    def batch(self, sku: str) -> Batch | None:
        return self._session.scalar(select(Batch).where(Batch.sku == sku).with_for_update())

    def allocations(self, customer_id: int) -> list[Allocation]:
        query = select(Allocation).where(Allocation.customer_id == customer_id)
        return list(self._session.scalars(query.order_by(Allocation.id)))

    def add(self, row: Base) -> None:
        self._session.add(row)
        self._session.flush()


class UnitOfWork:
    """One transaction: what is not committed by its end is rolled back."""

    def __enter__(self) -> "UnitOfWork":
        self._session = Sessions()
        self.stock = Repository(self._session)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None
    ) -> None:
        self._session.rollback()
        self._session.close()

    def commit(self) -> None:
        self._session.commit()


def allocate(uow: UnitOfWork, customer_id: int, sku: str, quantity: int) -> int:
    with uow:
        allocation = Allocation(customer_id=customer_id, sku=sku, quantity=quantity)
        uow.stock.add(allocation)
        batch = uow.stock.batch(sku)
        if batch is None or batch.left < quantity:
            raise OutOfStock(sku)
        batch.left -= quantity
        uow.commit()
        return allocation.id


Work = Annotated[UnitOfWork, Depends(UnitOfWork)]


def get_customer(uow: Work, key: Annotated[str, Depends(APIKeyHeader(name="X-API-Key"))]) -> int:
    with uow:
        customer = uow.stock.customer(key)
        if customer is None:
            raise HTTPException(401, "No such API key")
        return customer.id


CustomerId = Annotated[int, Depends(get_customer)]


class Line(BaseModel):
    sku: str = Field(min_length=1)
    quantity: int = Field(gt=0)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    Base.metadata.create_all(engine)
    with UnitOfWork() as uow:
        if uow.stock.batch("LAMP") is None:
            uow.stock.add(Batch(sku="LAMP", left=20))
            uow.stock.add(Customer(name="Alice", api_key="key-of-alice"))
            uow.stock.add(Customer(name="Bob", api_key="key-of-bob"))
            uow.commit()
    yield


app = FastAPI(lifespan=lifespan)
init_app(app, idempotency, caller=get_customer)  # Semel


@app.exception_handler(OutOfStock)
def out_of_stock(request: Request, error: OutOfStock) -> JSONResponse:
    return JSONResponse({"message": f"Out of stock for {error}"}, 400)


@app.post("/batches", status_code=201)
def add_batch(line: Line, uow: Work, customer: CustomerId) -> dict[str, int]:
    with uow:
        batch = Batch(sku=line.sku, left=line.quantity)
        uow.stock.add(batch)
        uow.commit()
        return {"id": batch.id}


@app.get("/allocations")
def list_allocations(uow: Work, customer: CustomerId) -> list[Line]:
    with uow:
        found = uow.stock.allocations(customer)
        return [Line(sku=each.sku, quantity=each.quantity) for each in found]


@app.post("/allocations", status_code=201)
def order(line: Line, uow: Work, customer: CustomerId) -> dict[str, int]:
    return {"allocation": allocate(uow, customer, line.sku, line.quantity)}
