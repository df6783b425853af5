"""Payments, from a page: the same key is the same payment, and only keys of the shop's count.

The page brings a few keys along; `semel.js` takes one for each payment, a new one where the form
was changed, and asks `POST /idempotency-keys` for more. A page that could make keys up could make a
second one up for the same payment.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from fastapi import APIRouter, Form
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field

from semel.web.fastapi import AsyncOp
from shop.customers import Customer
from shop.database import DATABASE
from shop.protection import SEE_OTHER, idempotency

router = APIRouter()
KEY_FIELD = "idempotency_key"
EUROS = r"^0{0,9}(?:0\.0[1-9]|0\.[1-9][0-9]?|[1-9][0-9]{0,5}(?:\.[0-9]{1,2})?)$"
"""0.01 to 999999.99; a number in JSON would not be exact."""


class Payment(BaseModel):
    purpose: str = Field(min_length=1, max_length=64, pattern=r"^[^\x00]*$")
    euros: str = Field(pattern=EUROS, examples=["19.90"])


@router.post("/payments", status_code=303, response_class=RedirectResponse, responses=SEE_OTHER)
# The field is for browsers without JavaScript, which cannot send the header.
@idempotency.route(required="issued", form_field=KEY_FIELD)
async def pay(
    wanted: Annotated[Payment, Form()], op: AsyncOp, customer: Customer
) -> RedirectResponse:
    db = await op.connection()
    [(number,)] = await DATABASE.run(
        db,
        "insert into payments (customer, purpose, amount) values (?, ?, ?) returning id",
        (customer, wanted.purpose, int(Decimal(wanted.euros) * 100)),
    )
    return RedirectResponse(f"/try/payments?made={number}", 303)
