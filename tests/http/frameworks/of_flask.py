from __future__ import annotations

from typing import Any

from flask import Flask, abort, request

from semel.web.flask import init_app, operation
from tests.http.frameworks import Crash, Shop


def make_bare(shop: Shop) -> Flask:
    """Return an application without routes."""
    app = Flask("shop")
    app.debug = shop.debug

    def caller() -> dict[str, str]:
        user = shop.user(request.headers.get("X-User"))
        if user is None:
            abort(401)
        return {"sub": user}

    init_app(app, shop.idempotency, caller=caller if shop.asks else None)
    return app


def make(shop: Shop) -> Flask:
    app = make_bare(shop)

    @app.post("/plain")
    def plain() -> Any:
        return {"run": shop.run("plain")}, 201

    @app.post("/atomic/<how>")
    def atomic(how: str) -> Any:
        shop.run(how)
        shop.write_now(how)
        if how == "raised":
            abort(422)
        if how == "crash":
            raise Crash
        return {}, 402 if how == "returned" else 201

    @app.post("/needs")
    def needs() -> Any:
        return {"attempt": operation().attempt}

    @app.post("/required")
    @shop.idempotency.route(required=True)
    def required() -> Any:
        return {"run": shop.run("required")}

    return app
