from __future__ import annotations

import asyncio
from typing import Any

from blacksheep import Application, Content, Cookie, Request, Response, StreamedContent, json
from blacksheep.exceptions import Forbidden, HTTPException, NotFound, Unauthorized
from blacksheep.server.controllers import Controller
from blacksheep.server.routing import Router, RoutesRegistry

from semel import current_async_operation
from semel.web.blacksheep import init_app
from tests.http.frameworks import CHUNKS, Crash, Declined, Shop


def make(shop: Shop) -> Application:
    idempotency = shop.idempotency
    app = Application(show_error_details=shop.debug, router=Router())
    app.controllers_router = RoutesRegistry()
    routes = app.controllers_router

    def caller(request: Request) -> object:
        token = request.get_first_header(b"X-User")
        user = shop.user(None if token is None else token.decode())
        if user is None:
            raise Unauthorized
        if user in shop.banned:
            raise Forbidden
        return {"sub": user}

    @app.router.post("/required")
    @idempotency.route(required=True)
    async def required() -> Response:
        return json({"run": shop.run("required")})

    init_app(app, idempotency, caller=caller if shop.asks else None)
    app.use_cors(allow_methods="*", allow_origins="*", allow_headers="*")

    async def authenticate(request: Request, handler: Any) -> Response:
        if (request.get_first_header(b"Authorization") or b"").decode() in shop.locked_out:
            return Response(401)
        return await handler(request)

    app.middlewares.append(authenticate)

    async def declined(self: Any, request: Request, error: Declined) -> Response:
        return json({"error": "declined"}, status=402)

    async def anything(self: Any, request: Request, error: Exception) -> Response:
        return json({"error": "caught"}, status=500)

    app.exceptions_handlers[Declined] = declined
    if shop.catch_all:
        app.exceptions_handlers[Exception] = anything

    @app.router.post("/plain")
    async def plain(request: Request) -> Response:
        body = ((await request.read()) or b"").decode()
        response = json({"run": shop.run("plain"), "body": body}, status=201)
        response.set_cookie(Cookie("a", "1"))
        response.set_cookie(Cookie("b", "2"))
        response.add_header(b"X-Own", b"yes")
        return response

    @app.router.post("/atomic/{how}")
    async def atomic(how: str) -> Response:
        shop.run(how)
        await shop.write(how)
        if how == "raised":
            raise HTTPException(402)
        if how == "missing":
            raise NotFound
        if how == "mapped":
            raise Declined
        if how == "crash":
            raise Crash
        if how == "returned":
            return json({"error": "returned"}, status=402)
        return json({}, status=201)

    @app.router.post("/needs")
    async def needs() -> dict[str, int]:
        return {"attempt": current_async_operation().attempt}

    @app.router.post("/stream")
    async def stream() -> Response:
        shop.run("stream")

        async def chunks() -> Any:
            for chunk in CHUNKS:
                yield chunk
                await asyncio.sleep(0)

        return Response(200, content=StreamedContent(b"text/csv", chunks))

    @app.router.post("/slow")
    async def slow() -> Response:
        shop.run("slow")
        await asyncio.sleep(0.5)
        return Response(200, content=Content(b"application/json", b'{"done":true}'))

    @app.router.post("/late/required/{int:number}")
    @idempotency.route(required=True)
    async def late(number: int) -> Response:
        return json({"run": shop.run("late")})

    class Items(Controller):
        @routes.put("/items")
        @idempotency.route(required=True)
        async def change(self) -> Response:
            return json({"run": shop.run("put")})

    return app
