"""Orders: the same number is the same order.

`PUT /orders/{number}`: the client has drawn the number, so the order can be sent as often as one
likes. `POST /orders`: the shop draws it, and the key says which requests are the same.
"""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Response
from pydantic import BaseModel, Field

from semel.web.conditional import (
    Preconditions,
    delete_answer,
    get_answer,
    put_answer,
    version_etag,
)
from semel.web.fastapi import AsyncOp, preconditions, respond
from shop.books import Read
from shop.customers import Customer
from shop.database import DATABASE
from shop.protection import idempotency, refusal

router = APIRouter()
When = Annotated[Preconditions, Depends(preconditions)]
Number = Annotated[str, Path(pattern=r"^[A-Z0-9]{4}-[A-Z0-9]{4}$", examples=["7F3A-19C2"])]


class Order(BaseModel):
    item: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$")
    quantity: int = Field(default=1, gt=0, lt=1000)


class Ordered(Order):
    number: str


SELECT = "select customer, born, version from orders where number = ?"
INSERT = """
    insert into orders (number, customer, item, quantity, born) values (?, ?, ?, ?, ?)
    returning id
"""
UPSERT = """
    insert into orders (number, customer, item, quantity, born) values (?, ?, ?, ?, ?)
    on conflict (number) do update
        set item = excluded.item, quantity = excluded.quantity, version = orders.version + 1
        where orders.customer = excluded.customer and (? or orders.version = ?)
    returning version
"""
NOT_YOURS = refusal("The order is somebody else's")


def draw_number() -> str:
    """Return a number for an order to be."""
    drawn = secrets.token_hex(4).upper()
    return f"{drawn[:4]}-{drawn[4:]}"


@router.post("/orders", status_code=201)
async def order(wanted: Order, op: AsyncOp, customer: Customer) -> dict[str, Any]:
    db = await op.connection()
    values = (draw_number(), customer, wanted.item, wanted.quantity, secrets.token_hex(8))
    [(row,)] = await DATABASE.run(db, INSERT, values)
    return {"order": row, "number": values[0], "item": wanted.item, "quantity": wanted.quantity}


@router.put(
    "/orders/{number}",
    response_model=Ordered,
    responses={
        200: {"description": "Replaced"},
        201: {
            "description": "Created",
            "model": Ordered,
            "headers": {"Location": {"required": True, "schema": {"type": "string"}}},
        },
        403: NOT_YOURS,
    },
)
@idempotency.route()  # PUT is idempotent by itself; the key gets a retry the first answer, not 412
async def put(
    number: Number, wanted: Order, op: AsyncOp, when: When, customer: Customer
) -> Response:
    db = await op.connection()
    seen = await _seen(db, number, customer)
    when.require(seen and version_etag(*seen))  # If-None-Match: * creates only, If-Match changes
    values = (number, customer, wanted.item, wanted.quantity, secrets.token_hex(8))
    which = (not when.given, seen[1] if seen else None)
    written = await DATABASE.run(db, UPSERT, values + which)
    if not written:
        when.overtaken()  # 412: another was faster
    body = json.dumps({"number": number, **wanted.model_dump()}).encode()
    return respond(
        put_answer(
            created=written == [(1,)],
            location=f"/orders/{number}",
            body=body,
            headers={"Content-Type": "application/json"},
        )
    )


@router.delete(
    "/orders/{number}",
    status_code=204,
    response_class=Response,
    responses={204: {"description": "There is no such order (any more)"}, 403: NOT_YOURS},
)
@idempotency.route()
async def delete(number: Number, op: AsyncOp, when: When, customer: Customer) -> Response:
    db = await op.connection()
    seen = await _seen(db, number, customer)
    if seen:
        when.require(version_etag(*seen))
        await DATABASE.run(db, "delete from orders where number = ?", (number,))
    return respond(delete_answer(existed=seen is not None))


@router.get(
    "/orders/{number}",
    response_model=Ordered,
    responses={
        200: {"headers": {"ETag": {"required": True, "schema": {"type": "string"}}}},
        404: refusal("You have no such order"),
    },
)
def get(number: Number, books: Read, when: When, customer: Customer) -> Response:
    row = books.order(customer, number)
    if row is None:
        raise HTTPException(404, "you have no such order")
    body = json.dumps({name: row[name] for name in ("number", "item", "quantity")}).encode()
    kind = {"Content-Type": "application/json", "Cache-Control": "private, no-cache"}
    tag = version_etag(row["born"], row["version"])
    return respond(get_answer(when, body, etag=tag, headers=kind))


async def _seen(db: Any, number: str, customer: str) -> tuple[str, int] | None:
    """Return what tells the order's state from another, or None where there is no such order."""
    for owner, born, version in await DATABASE.run(db, SELECT, (number,)):
        if owner != customer:
            raise HTTPException(403, "this is somebody else's order")
        return born, version
    return None
