"""Sign-up: the same e-mail is the same account.

The e-mail is the key, so that a repeat gets the first answer, and it is unique in the table, for
ever and for everybody. What the second one is told is the shop's choice, see below. `POST /sign-up`
is for the page, `POST /accounts` for programs.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field

from semel import AsyncOperation
from semel.web.fastapi import AsyncOp
from shop.customers import NOBODY, Customer
from shop.database import DATABASE
from shop.protection import SEE_OTHER, idempotency, refusal

router = APIRouter()


class Account(BaseModel):
    email: str = Field(pattern=r"^[^@\x00-\x20\x7f]+@[^@\x00-\x20\x7f]+$", max_length=254)
    name: str = Field(default="", max_length=100, pattern=r"^[^\x00]*$")


INSERT = """
    insert into accounts (email, customer) values (?, ?) on conflict (email) do nothing returning id
"""
TAKEN: dict[int | str, dict[str, Any]] = {
    409: refusal("Somebody else has an account with this e-mail")
}


@router.post("/accounts", status_code=201, responses=TAKEN)
@idempotency.route(
    required=False,
    key=lambda request: request.json()["email"].lower(),
    shared=True,  # nobody is logged in yet
    fingerprint="key",  # the same e-mail is a repeat, whatever else was typed differently
)
async def create(wanted: Account, op: AsyncOp, customer: Customer) -> dict[str, Any]:
    number = await _account(op, wanted.email.lower(), customer)
    return {"account": number, "email": wanted.email.lower()}


@router.post(
    "/sign-up",
    status_code=303,
    response_class=RedirectResponse,
    responses=SEE_OTHER | TAKEN,
)
@idempotency.route(
    required=False,
    shared=True,
    key=lambda request: request.form()["email"].lower(),
    fingerprint="key",
)
async def sign_up(
    wanted: Annotated[Account, Form()], op: AsyncOp, customer: Customer
) -> RedirectResponse:
    number = await _account(op, wanted.email.lower(), customer)
    return RedirectResponse(f"/try/sign-up?made={number}", 303)


async def _account(op: AsyncOperation, email: str, customer: str) -> int:
    """Return the number of the customer's account with this e-mail, made now or there already."""
    db = await op.connection()
    made = await DATABASE.run(db, INSERT, (email, customer))
    if not made and customer != NOBODY:
        # Not a repeat, which gets its first answer and never comes here: it is tomorrow, or
        # somebody else. One's own account is shown again; of another's no more is said than 409.
        query = "select id from accounts where email = ? and customer = ?"
        made = await DATABASE.run(db, query, (email, customer))
    if not made:
        raise HTTPException(409, "an account with this e-mail exists")
    return int(made[0][0])
