"""The probed ASGI application: FastAPI behind uvicorn, set up as the README says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from semel import ASGIMiddleware
from semel.web.fastapi import AsyncOp
from tests.probes import shop


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    shop.open_tables()
    yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(ASGIMiddleware, idempotency=shop.idempotency)
AsyncOp = AsyncOp
Wanted = Annotated[dict[str, Any], Body()]


@app.api_route("/charge", methods=["POST", "PATCH"])
@app.post("/other")
@app.post("/impatient")
@app.post("/brief")
async def charge(wanted: Wanted, op: AsyncOp, request: Request) -> Response:
    fate = shop.Fate(wanted, op.key_hash)
    fate.before_the_charge()
    if fate.what == "wait":
        await asyncio.to_thread(shop.wait_for, "go")
    await asyncio.sleep(wanted.get("sleep", 0))
    db = await op.connection()
    who = request.headers.get("Authorization", "")
    row = await db.execute(shop.CHARGE, (who, wanted["amount"]))
    fate.after_the_charge()
    status, headers, body = shop.answer(wanted, row.lastrowid)
    response = Response(body, fate.status or status)
    for name, value in headers:
        response.headers.append(name, value)
    return response


@app.post("/upload")
async def upload(request: Request, op: AsyncOp) -> Response:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
    db = await op.connection()
    await db.execute(shop.CHARGE, ("upload", size))
    return Response(str(size))


@app.post("/stream")
async def stream(op: AsyncOp) -> StreamingResponse:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"first "
        await asyncio.to_thread(shop.wait_for, "go")
        yield b"second"

    return StreamingResponse(chunks())


@app.post("/atomic-stream")
async def atomic_stream(op: AsyncOp) -> StreamingResponse:
    db = await op.connection()
    await db.execute(shop.CHARGE, ("stream", 1))
    await op.commit()
    return await stream(op)
