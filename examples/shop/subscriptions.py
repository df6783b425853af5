"""Subscriptions: the same customer and plan is the same subscription, until it is cancelled.

A natural key that said only that would hand out the old answer after a cancellation. So the request
says which ended subscription it follows (0: none), and the key is the customer, the plan and that.
The same three are unique in the table: the key's record gives a repeat its answer for a day, the
constraint keeps a second one out for ever.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Form, HTTPException
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field

from semel.web.fastapi import AsyncOp
from shop.customers import Customer
from shop.database import DATABASE
from shop.protection import SEE_OTHER, idempotency, refusal

router = APIRouter()
Plan = Literal["tea", "coffee"]
Number = Annotated[int, Field(ge=0, lt=2**53)]


class Subscription(BaseModel):
    plan: Plan
    follows: Number = Field(description="your last subscription to this plan that ended; 0: none")


class Cancellation(BaseModel):
    subscription: Number


LAST = """
    select id, follows, ended_at from subscriptions where customer = ? and plan = ?
    order by id desc limit 1
"""
INSERT = """
    insert into subscriptions (customer, plan, follows) values (?, ?, ?)
    on conflict (customer, plan, follows) do nothing returning id
"""
END = f"""
    update subscriptions set ended_at = coalesce(ended_at, {DATABASE.now})
    where customer = ? and id = ? returning id
"""


@router.post(
    "/subscriptions",
    status_code=303,
    response_class=RedirectResponse,
    responses={**SEE_OTHER, 409: refusal("Cancelled, or subscribed to, in the meantime")},
)
@idempotency.route(
    required=False,  # the request says itself which one it is; the scope adds the customer
    key=lambda request: "{plan} {follows}".format(**request.form()),
    shared=True,  # whoever has no cookie yet
    fingerprint="key",
)
async def subscribe(
    wanted: Annotated[Subscription, Form()], op: AsyncOp, customer: Customer
) -> RedirectResponse:
    db = await op.connection()
    last = await DATABASE.run(db, LAST, (customer, wanted.plan))
    number, follows, ended_at = last[0] if last else (0, None, "never begun")
    if follows != wanted.follows:  # else it is this one, and its record has gone by now
        if ended_at is None or number != wanted.follows:
            raise HTTPException(409, "not as you last saw it: look at your subscriptions")
        values = (customer, wanted.plan, wanted.follows)
        made = await DATABASE.run(db, INSERT, values)
        if not made:
            raise HTTPException(409, "subscribed to at this moment: look at your subscriptions")
        [(number,)] = made
        # In the same transaction: a letter for each subscription, never one without the other. Who
        # sends them takes them from this table, with their number as the key for the mail service.
        letter = f"Welcome to {wanted.plan}, subscription {number}"
        await DATABASE.run(
            db, "insert into mails (customer, text) values (?, ?)", (customer, letter)
        )
    return RedirectResponse(f"/try/subscriptions?made={number}", 303)


@router.post(
    "/subscriptions/cancel",
    status_code=303,
    response_class=RedirectResponse,
    responses={**SEE_OTHER, 404: refusal("You have no such subscription")},
)
@idempotency.route(
    required=False,
    shared=True,
    key=lambda request: request.form()["subscription"],
    fingerprint="key",
)
async def cancel(
    wanted: Annotated[Cancellation, Form()], op: AsyncOp, customer: Customer
) -> RedirectResponse:
    db = await op.connection()
    if not await DATABASE.run(db, END, (customer, wanted.subscription)):
        raise HTTPException(404, "you have no such subscription")
    return RedirectResponse("/try/subscriptions", 303)
