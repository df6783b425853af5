from __future__ import annotations

import asyncio
from typing import Any

import falcon
from falcon.asgi import App

from semel import current_async_operation
from semel.web.falcon import init_app
from tests.http.frameworks import CHUNKS, Crash, Declined, Shop


def make(shop: Shop) -> App[Any, Any]:
    idempotency = shop.idempotency
    app: App[Any, Any] = App(cors_enable=True)

    def caller(req: Any) -> object:
        user = shop.user(req.get_header("X-User"))
        if user is None:
            raise falcon.HTTPUnauthorized
        if user in shop.banned:
            raise falcon.HTTPForbidden
        return {"sub": user}

    class Authenticate:
        async def process_request(self, req: Any, resp: Any) -> None:
            if req.get_header("Authorization") in shop.locked_out:
                raise falcon.HTTPUnauthorized

    class Required:
        @idempotency.route(required=True)
        async def on_post(self, req: Any, resp: Any, number: int = 0) -> None:
            resp.media = {"run": shop.run("required")}

    app.add_route("/required", Required())
    init_app(app, idempotency, caller=caller if shop.asks else None)
    app.add_middleware(Authenticate())

    async def declined(req: Any, resp: Any, error: Any, params: Any) -> None:
        resp.status, resp.media = 402, {"error": "declined"}

    async def anything(req: Any, resp: Any, error: Any, params: Any) -> None:
        resp.status, resp.media = 500, {"error": "caught"}

    app.add_error_handler(Declined, declined)
    if shop.catch_all:
        app.add_error_handler(Exception, anything)

    class Plain:
        async def on_post(self, req: Any, resp: Any) -> None:
            body = (await req.stream.read()).decode()
            resp.media = {"run": shop.run("plain"), "body": body}
            resp.status = 201
            resp.set_cookie("a", "1")
            resp.set_cookie("b", "2")
            resp.set_header("X-Own", "yes")

    class Atomic:
        async def on_post(self, req: Any, resp: Any, how: str) -> None:
            shop.run(how)
            await shop.write(how)
            if how == "raised":
                raise falcon.HTTPError(402)
            if how == "missing":
                raise falcon.HTTPNotFound
            if how == "mapped":
                raise Declined
            if how == "crash":
                raise Crash
            if how == "returned":
                resp.status, resp.media = 402, {"error": "returned"}
                return
            resp.status, resp.media = 201, {}

    class Needs:
        async def on_post(self, req: Any, resp: Any) -> None:
            resp.media = {"attempt": current_async_operation().attempt}

    class Stream:
        async def on_post(self, req: Any, resp: Any) -> None:
            shop.run("stream")

            async def chunks() -> Any:
                for chunk in CHUNKS:
                    yield chunk
                    await asyncio.sleep(0)

            resp.content_type = "text/csv"
            resp.stream = chunks()

    class Slow:
        async def on_post(self, req: Any, resp: Any) -> None:
            shop.run("slow")
            await asyncio.sleep(0.5)
            resp.media = {"done": True}

    class Items:
        @idempotency.route(required=True)
        async def on_put(self, req: Any, resp: Any) -> None:
            resp.media = {"run": shop.run("put")}

    app.add_route("/plain", Plain())
    app.add_route("/atomic/{how}", Atomic())
    app.add_route("/needs", Needs())
    app.add_route("/stream", Stream())
    app.add_route("/slow", Slow())
    app.add_route("/late/required/{number:int}", Required())
    app.add_route("/items", Items())
    return app
