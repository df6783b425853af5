from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import JSONResponse

from semel.web.fastapi import AsyncOp, init_app
from tests.http.frameworks import Crash, Shop


def make(shop: Shop) -> FastAPI:
    app = FastAPI(debug=shop.debug)

    def caller(x_user: Annotated[str | None, Header()] = None) -> dict[str, str]:
        user = shop.user(x_user)
        if user is None:
            raise HTTPException(401)
        return {"sub": user}

    init_app(app, shop.idempotency, caller=caller if shop.asks else None)

    @app.post("/plain", status_code=201)
    async def plain() -> dict[str, int]:
        return {"run": shop.run("plain")}

    @app.post("/atomic/{how}", status_code=201)
    async def atomic(how: str) -> Any:
        shop.run(how)
        await shop.write(how)
        if how == "raised":
            raise HTTPException(402)
        if how == "crash":
            raise Crash
        if how == "returned":
            return JSONResponse({}, 402)
        return {}

    @app.post("/needs")
    async def needs(op: AsyncOp) -> dict[str, int]:
        return {"attempt": op.attempt}

    @app.post("/required")
    @shop.idempotency.route(required=True)
    async def required() -> dict[str, int]:
        return {"run": shop.run("required")}

    return app
