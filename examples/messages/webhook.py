"""A webhook receiver: the sender's event id is the key, and its signature is checked first.

SHOP=sqlite:///shop.db SECRET=whsec uvicorn webhook:app
"""

import hashlib
import hmac
import json
import os
from typing import Any

from fastapi import FastAPI, HTTPException, Request

from semel import Idempotency, current_async_operation, idempotent
from semel.functions import CallRefused

app = FastAPI()
idempotency = Idempotency(os.environ["SHOP"])


@idempotent(idempotency, key="event_id", ignore=("event",), guarantee="atomic")
async def paid(event_id: str, event: dict[str, Any]) -> None:
    db = await current_async_operation().connection()
    row = (event["data"]["order"], event["data"]["amount"])
    await db.execute("insert into payments values (?, ?)", row)


@app.post("/webhooks/payments", status_code=204)
async def receive(request: Request) -> None:
    body = await request.body()
    signed = hmac.new(os.environ["SECRET"].encode(), body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(signed, request.headers.get("signature", "")):
        raise HTTPException(400, "the signature is not ours")
    event = json.loads(body)
    try:
        await paid(event["id"], event)
    except CallRefused as refused:  # the sender sends it again
        raise HTTPException(503, str(refused)) from refused
