from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from semel import current_async_operation
from semel.web.fastapi import init_app
from tests.http.frameworks import Crash, Shop


def make(shop: Shop) -> Starlette:
    def caller(request: Request) -> dict[str, str]:
        user = shop.user(request.headers.get("X-User"))
        if user is None:
            raise HTTPException(401)
        return {"sub": user}

    async def plain(request: Request) -> JSONResponse:
        return JSONResponse({"run": shop.run("plain")}, 201)

    async def atomic(request: Request) -> JSONResponse:
        how = request.path_params["how"]
        shop.run(how)
        await shop.write(how)
        if how == "raised":
            raise HTTPException(402)
        if how == "crash":
            raise Crash
        return JSONResponse({}, 402 if how == "returned" else 201)

    async def needs(request: Request) -> JSONResponse:
        return JSONResponse({"attempt": current_async_operation().attempt})

    @shop.idempotency.route(required=True)
    async def required(request: Request) -> JSONResponse:
        return JSONResponse({"run": shop.run("required")})

    endpoints: dict[str, Any] = {
        "/plain": plain,
        "/atomic/{how}": atomic,
        "/needs": needs,
        "/required": required,
    }
    routes = [Route(path, served, methods=["POST"]) for path, served in endpoints.items()]
    app = Starlette(debug=shop.debug, routes=routes)
    init_app(app, shop.idempotency, caller=caller if shop.asks else None)
    return app
