"""Semel on FastAPI, as its README says: the charge commits with the key."""

import asyncio
from datetime import timedelta
from typing import Annotated, Any

from fastapi import Body, FastAPI
from fastapi.responses import JSONResponse

from bench.peers.apps import books
from bench.peers.apps.asgi import Authenticated
from semel import ASGIMiddleware, Idempotency, Issuer, Policy
from semel.web.fastapi import AsyncOp

books.open_tables()
idempotency = Idempotency(
    f"sqlite:///{books.FOLDER / 'shop.db'}",
    policy=Policy(required=True, lease=timedelta(seconds=books.LEASE)),
    scope=lambda request: books.ACCOUNTS[request.header("Authorization")],
    issuer=Issuer(b"a secret of more than 32 bytes, for a bench"),
)
app = FastAPI()


@app.get("/charges/count")
async def count() -> dict[str, int]:
    return {"charges": await asyncio.to_thread(books.count)}


@app.post("/charges")
@app.post("/refunds")
async def charge(wanted: Annotated[dict[str, Any], Body()], op: AsyncOp) -> JSONResponse:
    if wanted["amount"] < 0:
        return JSONResponse({"error": "declined"}, 402)
    await asyncio.sleep(books.BEFORE)
    db = await op.connection()
    row = await db.execute(books.CHARGE, ("", wanted["amount"]))
    await asyncio.sleep(books.AFTER)
    status, body, headers = books.answer(row.lastrowid)
    return JSONResponse(body, status, headers)


app.add_middleware(ASGIMiddleware, idempotency=idempotency)
app.add_middleware(Authenticated)
