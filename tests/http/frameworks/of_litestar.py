from __future__ import annotations

import asyncio
from typing import Any

from litestar import Controller, Litestar, Request, Response, Router, post, put
from litestar.config.cors import CORSConfig
from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.exceptions import HTTPException, NotAuthorizedException, PermissionDeniedException
from litestar.response import Stream

from semel import AsyncOperation
from semel.web.litestar import SemelPlugin, async_operation
from tests.http.frameworks import CHUNKS, Crash, Declined, Shop


def make(shop: Shop) -> Litestar:
    idempotency = shop.idempotency

    def caller(connection: ASGIConnection[Any, Any, Any, Any]) -> object:
        user = shop.user(connection.headers.get("X-User"))
        if user is None:
            raise NotAuthorizedException
        if user in shop.banned:
            raise PermissionDeniedException
        return {"sub": user}

    async def authenticate(connection: ASGIConnection[Any, Any, Any, Any], handler: Any) -> None:
        if connection.headers.get("Authorization") in shop.locked_out:
            raise NotAuthorizedException

    @post("/required")
    @idempotency.route(required=True)
    async def required() -> dict[str, int]:
        return {"run": shop.run("required")}

    @post("/plain")
    async def plain(request: Request[Any, Any, Any]) -> Response[Any]:
        body = (await request.body()).decode()
        response = Response({"run": shop.run("plain"), "body": body}, headers={"X-Own": "yes"})
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    @post("/atomic/{how:str}")
    async def atomic(how: str) -> Response[Any]:
        shop.run(how)
        await shop.write(how)
        if how == "raised":
            raise HTTPException(status_code=402, detail="raised")
        if how == "missing":
            raise HTTPException(status_code=404, detail="missing")
        if how == "mapped":
            raise Declined
        if how == "crash":
            raise Crash
        if how == "returned":
            return Response({"error": "returned"}, status_code=402)
        return Response({}, status_code=201)

    @post("/needs", dependencies={"op": Provide(async_operation)})
    async def needs(op: AsyncOperation) -> dict[str, int]:
        return {"attempt": op.attempt}

    @post("/stream", status_code=200)
    async def stream() -> Stream:
        shop.run("stream")

        async def chunks() -> Any:
            for chunk in CHUNKS:
                yield chunk
                await asyncio.sleep(0)

        return Stream(chunks(), media_type="text/csv")

    @post("/slow")
    async def slow() -> dict[str, bool]:
        shop.run("slow")
        await asyncio.sleep(0.5)
        return {"done": True}

    class Late(Controller):
        path = "/required"

        @post("/{number:int}")
        @idempotency.route(required=True)
        async def late(self, number: int) -> dict[str, int]:
            return {"run": shop.run("late")}

    class Items(Controller):
        path = "/items"

        @put()
        @idempotency.route(required=True)
        async def change(self) -> dict[str, int]:
            return {"run": shop.run("put")}

    def declined(request: Request[Any, Any, Any], error: Declined) -> Response[Any]:
        return Response({"error": "declined"}, status_code=402)

    def anything(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
        return Response({"error": "caught"}, status_code=500)

    handlers: dict[Any, Any] = {Declined: declined}
    if shop.catch_all:
        handlers[Exception] = anything
    app = Litestar(
        [required, plain, atomic, needs, stream, slow],
        guards=[authenticate],
        cors_config=CORSConfig(allow_origins=["*"]),
        plugins=[SemelPlugin(idempotency, caller=caller if shop.asks else None)],
        exception_handlers=handlers,
        debug=shop.debug,
    )
    app.register(Router("/late", route_handlers=[Late]))
    app.register(Items)
    return app
