"""A shop whose operations take a while, so that a kill of the server abandons them."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta

from fastapi import FastAPI
from flask import Flask, request

from semel import ASGIMiddleware, Idempotency, Policy, WSGIMiddleware
from semel.web.fastapi import AsyncOp
from semel.web.flask import operation as flask_operation

PLACE = "%s" if os.environ["SHOP"].startswith("postgresql") else "?"
INSERT = f"insert into orders values ({PLACE}, {PLACE})"
idempotency = Idempotency(
    os.environ["SHOP"],
    policy=Policy(
        lease=timedelta(seconds=0.3),
        remember_request=True,
        max_attempts=3,
        version=os.environ.get("VERSION", ""),
    ),
    complete_every=timedelta(seconds=0.2),
)
app = FastAPI()
app.add_middleware(ASGIMiddleware, idempotency=idempotency)
slow = float(os.environ.get("SLOW", "0"))


@app.post("/orders/{item}", status_code=201)
async def order(item: str, body: dict[str, int], op: AsyncOp) -> str:
    await asyncio.sleep(slow)
    db = await op.connection()
    await db.execute(INSERT, (item, body["amount"]))
    return item


@app.post("/poison", status_code=201)
async def poison(op: AsyncOp) -> str:
    os.kill(os.getpid(), 9)
    return "never"


@app.post("/forbidden")
async def forbidden(op: AsyncOp) -> str:
    from fastapi import HTTPException

    await asyncio.sleep(slow)
    raise HTTPException(403)


flask_app = Flask("shop")


@flask_app.post("/orders/<item>")
def flask_order(item: str) -> tuple[str, int]:
    time.sleep(slow)
    db = flask_operation().connection()
    db.execute(INSERT, (item, request.get_json()["amount"]))
    return item, 201


wsgi_app = WSGIMiddleware(flask_app, idempotency)
