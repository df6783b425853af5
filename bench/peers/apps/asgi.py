"""The FastAPI application that the ASGI libraries are put around."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from bench.peers.apps import books


class Authenticated:
    """Authentication, outside the idempotency layer: 401 without a known Authorization."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
            if given not in books.ACCOUNTS:
                status, body = books.refusal()
                headers = [(b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
        await self.app(scope, receive, send)


def shop(**options: Any) -> FastAPI:
    """The application without keys."""
    books.open_tables()
    app = FastAPI(**options)

    @app.get("/charges/count")
    async def count() -> dict[str, int]:
        return {"charges": await asyncio.to_thread(books.count)}

    @app.post("/charges")
    @app.post("/refunds")
    async def charge(request: Request) -> JSONResponse:
        wanted = await request.json()
        if wanted["amount"] < 0:
            return JSONResponse({"error": "declined"}, 402)
        who = books.ACCOUNTS[request.headers["Authorization"]]
        await asyncio.sleep(books.BEFORE)
        number = await asyncio.to_thread(books.charge, who, wanted["amount"])
        await asyncio.sleep(books.AFTER)
        status, body, headers = books.answer(number)
        return JSONResponse(body, status, headers)

    return app
