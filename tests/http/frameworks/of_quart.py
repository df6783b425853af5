from __future__ import annotations

import asyncio
from typing import Any

from quart import Blueprint, Quart, Response, abort, jsonify, request
from quart.views import MethodView

from semel.web.quart import async_operation, init_app
from tests.http.frameworks import CHUNKS, Crash, Declined, Shop


def make(shop: Shop) -> Quart:
    app = Quart("shop")
    app.config["PROPAGATE_EXCEPTIONS"] = False
    idempotency = shop.idempotency

    def caller() -> object:
        user = shop.user(request.headers.get("X-User"))
        if user is None:
            abort(401)
        if user in shop.banned:
            abort(403)
        return {"sub": user}

    @app.post("/required")
    @idempotency.route(required=True)
    async def required() -> dict[str, int]:
        return {"run": shop.run("required")}

    init_app(app, idempotency, caller=caller if shop.asks else None)
    app.debug = shop.debug

    @app.before_request
    async def authenticate() -> Any:
        if request.headers.get("Authorization") in shop.locked_out:
            return "locked out", 401
        return None

    @app.after_request
    async def cors(response: Response) -> Response:
        response.headers["Access-Control-Allow-Origin"] = "*"
        return response

    @app.errorhandler(Declined)
    async def declined(error: Declined) -> Any:
        return {"error": "declined"}, 402

    if shop.catch_all:

        @app.errorhandler(Exception)
        async def anything(error: Exception) -> Any:
            return {"error": "caught"}, 500

    @app.post("/plain")
    async def plain() -> Any:
        response = jsonify(run=shop.run("plain"), body=(await request.get_data()).decode())
        response.headers.add("Set-Cookie", "a=1")
        response.headers.add("Set-Cookie", "b=2")
        response.headers["X-Own"] = "yes"
        return response, 201

    @app.post("/atomic/<how>")
    async def atomic(how: str) -> Any:
        shop.run(how)
        await shop.write(how)
        if how == "raised":
            abort(Response("raised", 402))
        if how == "missing":
            abort(404)
        if how == "mapped":
            raise Declined
        if how == "crash":
            raise Crash
        if how == "returned":
            return {"error": "returned"}, 402
        return {}, 201

    @app.post("/needs")
    async def needs() -> dict[str, int]:
        return {"attempt": async_operation().attempt}

    @app.post("/stream")
    async def stream() -> Any:
        shop.run("stream")

        async def chunks() -> Any:
            for chunk in CHUNKS:
                yield chunk
                await asyncio.sleep(0)

        return Response(chunks(), 200, {"Content-Type": "text/csv"})

    @app.post("/slow")
    async def slow() -> Any:
        shop.run("slow")
        await asyncio.sleep(0.5)
        return {"done": True}

    late = Blueprint("late", __name__, url_prefix="/late")

    @late.post("/required/<int:number>")
    @idempotency.route(required=True)
    async def late_required(number: int) -> dict[str, int]:
        return {"run": shop.run("late")}

    app.register_blueprint(late)

    class Items(MethodView):
        @idempotency.route(required=True)
        async def put(self) -> dict[str, int]:
            return {"run": shop.run("put")}

    app.add_url_rule("/items", view_func=Items.as_view("items"))
    return app
