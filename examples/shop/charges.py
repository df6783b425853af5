"""Charges, for programs: the caller generates the key. `semel demo` storms these."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from semel.web.fastapi import AsyncOp
from shop.books import Read
from shop.database import DATABASE

router = APIRouter()


class Charge(BaseModel):
    order_id: str = Field(min_length=1, max_length=64, pattern=r"^[^\x00]*$")
    amount: int = Field(gt=0, lt=10**12, description="in cents")


@router.post("/charges", status_code=201)
async def charge(wanted: Charge, op: AsyncOp) -> dict[str, Any]:
    db = await op.connection()  # what is written here commits with the key, or not at all
    [(number,)] = await DATABASE.run(
        db,
        "insert into charges (order_id, amount) values (?, ?) returning id",
        (wanted.order_id, wanted.amount),
    )
    return {"charge": number, "order_id": wanted.order_id, "amount": wanted.amount}


@router.get("/charges")
def charges(books: Read, limit: Annotated[int, Field(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
    return books.latest("charges", limit)


@router.get("/charges/count")
def count(books: Read) -> dict[str, int]:
    return {"charges": books.count("charges")}
