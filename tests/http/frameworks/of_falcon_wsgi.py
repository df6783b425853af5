from __future__ import annotations

from typing import Any

import falcon

from semel import current_operation
from semel.web.falcon import init_app
from tests.http.frameworks import Crash, Shop


def make(shop: Shop) -> Any:
    def caller(req: Any) -> dict[str, str]:
        user = shop.user(req.get_header("X-User"))
        if user is None:
            raise falcon.HTTPUnauthorized
        return {"sub": user}

    class Plain:
        def on_post(self, req: Any, resp: Any) -> None:
            resp.media, resp.status = {"run": shop.run("plain")}, 201

    class Atomic:
        def on_post(self, req: Any, resp: Any, how: str) -> None:
            shop.run(how)
            shop.write_now(how)
            if how == "raised":
                raise falcon.HTTPUnprocessableEntity
            if how == "crash":
                raise Crash
            resp.media, resp.status = {}, 402 if how == "returned" else 201

    class Needs:
        def on_post(self, req: Any, resp: Any) -> None:
            resp.media = {"attempt": current_operation().attempt}

    class Required:
        def on_post(self, req: Any, resp: Any) -> None:
            resp.media = {"run": shop.run("required")}

    app = falcon.App()
    app.add_route("/plain", Plain())
    app.add_route("/atomic/{how}", Atomic())
    app.add_route("/needs", Needs())
    app.add_route("/required", Required())
    return init_app(app, shop.idempotency, caller=caller if shop.asks else None)
