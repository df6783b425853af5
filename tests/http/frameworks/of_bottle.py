from __future__ import annotations

from typing import Any

import bottle

from semel import current_operation
from semel.web.bottle import init_app
from tests.http.frameworks import Crash, Shop


def make(shop: Shop) -> bottle.Bottle:
    app = bottle.Bottle()

    def caller() -> Any:
        user = shop.user(bottle.request.headers.get("X-User"))
        return bottle.abort(401) if user is None else {"sub": user}

    @app.post("/plain")
    def plain() -> Any:
        bottle.response.status = 201
        return {"run": shop.run("plain")}

    @app.post("/atomic/<how>")
    def atomic(how: str) -> Any:
        shop.run(how)
        shop.write_now(how)
        if how == "raised":
            bottle.abort(422, "declined")
        if how == "crash":
            raise Crash
        bottle.response.status = 402 if how == "returned" else 201
        return {}

    @app.post("/needs")
    def needs() -> Any:
        return {"attempt": current_operation().attempt}

    @app.post("/required")
    @shop.idempotency.route(required=True)
    def required() -> Any:
        return {"run": shop.run("required")}

    init_app(app, shop.idempotency, caller=caller if shop.asks else None)
    return app
