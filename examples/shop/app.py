"""A small shop whose payments, orders and sign-ups can be sent again as often as anyone likes.

    uvicorn shop.app:app --app-dir examples

`SHOP_DB` names its SQLite file (`shop.db`), or its PostgreSQL database (`postgresql://…`).
`SHOP_SEMEL=off` runs the same shop without Semel, to see the difference: `semel demo` does that
under a storm of retries and kills.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from semel import Idempotency, Operation, Policy
from semel.web.fastapi import init_app, operation
from shop import page, unprotected
from shop.books import SCHEMA, Books, books
from shop.database import DATABASE

PROTECTED = os.environ.get("SHOP_SEMEL", "on") != "off"

idempotency = Idempotency(
    DATABASE.url,
    policy=Policy(
        required=True,  # a request without a key gets 400 instead of a chance to happen twice
        guarantee="atomic",  # a handler that forgets op.connection() is an error, not a surprise
        # How long a retry waits for a process that was killed in mid-request. The demo kills one
        # every second; a service of yours is well served by the default of 30 s. (On PostgreSQL an
        # atomic operation needs no lease: a crash frees its key at once.)
        lease=timedelta(seconds=2),
    ),
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    DATABASE.create(SCHEMA)
    yield


app = FastAPI(title="Shop", lifespan=lifespan)
Op = Annotated[Operation, Depends(operation)]
Read = Annotated[Books, Depends(books)]


class Charge(BaseModel):
    order_id: str = Field(min_length=1, max_length=64)
    amount: int = Field(gt=0, lt=10**12, description="in cents")


class Order(BaseModel):
    item: str = Field(min_length=1, max_length=100)
    quantity: int = Field(default=1, gt=0, lt=1000)


class Account(BaseModel):
    email: str = Field(pattern=r"^[^@\s]+@[^@\s]+$", max_length=254)


@app.post("/charges", status_code=201)
async def charge(wanted: Charge, op: Op) -> dict[str, Any]:
    db = await op.connection()  # what is written here commits with the key, or not at all
    [(number,)] = await DATABASE.run(
        db,
        "insert into charges (order_id, amount) values (?, ?) returning id",
        (wanted.order_id, wanted.amount),
    )
    return {"charge": number, "order_id": wanted.order_id, "amount": wanted.amount}


@app.post("/orders", status_code=201)
async def order(wanted: Order, op: Op) -> dict[str, Any]:
    db = await op.connection()
    [(number,)] = await DATABASE.run(
        db,
        "insert into orders (item, quantity) values (?, ?) returning id",
        (wanted.item, wanted.quantity),
    )
    return {"order": number, "item": wanted.item, "quantity": wanted.quantity}


@app.post("/accounts", status_code=201)
async def sign_up(wanted: Account, op: Op) -> dict[str, Any]:
    db = await op.connection()
    try:
        [(number,)] = await DATABASE.run(
            db, "insert into accounts (email) values (?) returning id", (wanted.email,)
        )
    except DATABASE.Duplicate:
        # Somebody else's: a retry of one's own sign-up gets its first answer and never comes here.
        raise HTTPException(409, "an account with this e-mail exists") from None
    return {"account": number, "email": wanted.email}


@app.get("/charges")
def charges(books: Read, limit: Annotated[int, Field(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
    return books.latest("charges", limit)


@app.get("/charges/count")
def count(books: Read) -> dict[str, int]:
    return {"charges": books.count("charges")}


@app.get("/health")
async def health() -> dict[str, Any]:
    return {"status": "ok", "semel": PROTECTED}


@app.get("/", response_class=HTMLResponse, include_in_schema=False)
def show(books: Read) -> HTMLResponse:
    return HTMLResponse(page.render(books, protected=PROTECTED), headers=page.HEADERS)


app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")

if PROTECTED:
    init_app(app, idempotency)
else:
    app.dependency_overrides[operation] = unprotected.operation
