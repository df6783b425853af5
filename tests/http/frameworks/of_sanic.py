from __future__ import annotations

import asyncio
import itertools
from typing import Any

from sanic import Blueprint, HTTPResponse, Request, Sanic, json
from sanic.application.constants import Mode
from sanic.exceptions import Forbidden, NotFound, SanicException, Unauthorized
from sanic.views import HTTPMethodView

from semel import current_async_operation
from semel.web.sanic import init_app
from tests.http.frameworks import CHUNKS, Crash, Declined, Shop

numbers = itertools.count(1)


def make(shop: Shop) -> Sanic[Any, Any]:
    idempotency = shop.idempotency
    app: Sanic[Any, Any] = Sanic(f"shop{next(numbers)}", configure_logging=False)
    app.config.TOUCHUP = False  # it rewrites Sanic itself, and can do that once a process
    if shop.debug:
        app.state.mode = Mode.DEBUG

    def caller(request: Request) -> object:
        user = shop.user(request.headers.get("X-User"))
        if user is None:
            raise Unauthorized
        if user in shop.banned:
            raise Forbidden
        return {"sub": user}

    @app.post("/required")
    @idempotency.route(required=True)
    async def required(request: Request) -> HTTPResponse:
        return json({"run": shop.run("required")})

    init_app(app, idempotency, caller=caller if shop.asks else None)

    @app.on_request
    async def authenticate(request: Request) -> HTTPResponse | None:
        if request.headers.get("Authorization") in shop.locked_out:
            return HTTPResponse(status=401)
        return None

    @app.on_response
    async def cors(request: Request, response: HTTPResponse) -> None:
        response.headers["Access-Control-Allow-Origin"] = "*"

    @app.exception(Declined)
    async def declined(request: Request, error: Declined) -> HTTPResponse:
        return json({"error": "declined"}, status=402)

    if shop.catch_all:

        @app.exception(Exception)
        async def anything(request: Request, error: Exception) -> HTTPResponse:
            return json({"error": "caught"}, status=500)

    @app.post("/plain")
    async def plain(request: Request) -> HTTPResponse:
        response = json({"run": shop.run("plain"), "body": request.body.decode()}, status=201)
        response.add_cookie("a", "1")
        response.add_cookie("b", "2")
        response.headers["X-Own"] = "yes"
        return response

    @app.post("/atomic/<how>")
    async def atomic(request: Request, how: str) -> HTTPResponse:
        shop.run(how)
        await shop.write(how)
        if how == "raised":
            raise SanicException("raised", status_code=402)
        if how == "missing":
            raise NotFound
        if how == "mapped":
            raise Declined
        if how == "crash":
            raise Crash
        if how == "returned":
            return json({"error": "returned"}, status=402)
        return json({}, status=201)

    @app.post("/needs")
    async def needs(request: Request) -> HTTPResponse:
        return json({"attempt": current_async_operation().attempt})

    @app.post("/stream")
    async def stream(request: Request) -> None:
        shop.run("stream")
        response = await request.respond(content_type="text/csv")
        for chunk in CHUNKS:
            await response.send(chunk)
            await asyncio.sleep(0)
        await response.eof()

    @app.post("/slow")
    async def slow(request: Request) -> HTTPResponse:
        shop.run("slow")
        await asyncio.sleep(0.5)
        return json({"done": True})

    late = Blueprint("late", url_prefix="/late")

    @late.post("/required/<number:int>")
    @idempotency.route(required=True)
    async def late_required(request: Request, number: int) -> HTTPResponse:
        return json({"run": shop.run("late")})

    app.blueprint(late)

    class Items(HTTPMethodView):
        @idempotency.route(required=True)
        async def put(self, request: Request) -> HTTPResponse:
            return json({"run": shop.run("put")})

    app.add_route(Items.as_view(), "/items")
    return app
