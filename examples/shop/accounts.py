"""Sign-up: the same e-mail is the same account.

The e-mail is the key, so that a repeat gets the first answer, and it is unique in the table, for
ever and for everybody. What the second one is told is the shop's choice, see below.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, HTTPException
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field

from shop.customers import Customer
from shop.database import DATABASE
from shop.protection import SEE_OTHER, Op, idempotency, refusal

router = APIRouter()


class Account(BaseModel):
    email: str = Field(pattern=r"^[^@\s\x00]+@[^@\s\x00]+$", max_length=254)
    name: str = Field(default="", max_length=100, pattern=r"^[^\x00]*$")


INSERT = """
    insert into accounts (email, customer) values (?, ?) on conflict (email) do nothing returning id
"""


@router.post(
    "/accounts",
    status_code=303,
    response_class=RedirectResponse,
    responses={**SEE_OTHER, 409: refusal("Somebody else has an account with this e-mail")},
)
@idempotency.route(
    required=False,
    key=lambda request: request.form()["email"].lower(),
    fingerprint="key",  # the same e-mail is a repeat, whatever else was typed differently
)
async def sign_up(
    wanted: Annotated[Account, Form()], op: Op, customer: Customer
) -> RedirectResponse:
    db = await op.connection()
    email = wanted.email.lower()
    made = await DATABASE.run(db, INSERT, (email, customer))
    if not made:
        # Not a repeat, which gets its first answer and never comes here: it is tomorrow, or
        # somebody else. One's own account is shown again; of another's no more is said than this.
        query = "select id from accounts where email = ? and customer = ?"
        made = await DATABASE.run(db, query, (email, customer))
        if not made:
            raise HTTPException(409, "an account with this e-mail exists")
    [(number,)] = made
    return RedirectResponse(f"/try/sign-up?made={number}", 303)
