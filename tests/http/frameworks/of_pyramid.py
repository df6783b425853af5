from __future__ import annotations

from typing import Any

from pyramid import httpexceptions
from pyramid.config import Configurator
from pyramid.response import Response

from semel import current_operation
from semel.web.pyramid import make_wsgi_app
from tests.http.frameworks import Crash, Shop


def make(shop: Shop) -> Any:
    def caller(request: Any) -> dict[str, str]:
        user = shop.user(request.headers.get("X-User"))
        if user is None:
            raise httpexceptions.HTTPUnauthorized
        return {"sub": user}

    def plain(request: Any) -> Response:
        return Response(json_body={"run": shop.run("plain")}, status=201)

    def atomic(request: Any) -> Response:
        how = request.matchdict["how"]
        shop.run(how)
        shop.write_now(how)
        if how == "raised":
            raise httpexceptions.HTTPUnprocessableEntity
        if how == "crash":
            raise Crash
        return Response(json_body={}, status=402 if how == "returned" else 201)

    def needs(request: Any) -> Response:
        return Response(json_body={"attempt": current_operation().attempt})

    def required(request: Any) -> Response:
        return Response(json_body={"run": shop.run("required")})

    config = Configurator()
    for view, path in (
        (plain, "/plain"),
        (atomic, "/atomic/{how}"),
        (needs, "/needs"),
        (required, "/required"),
    ):
        config.add_route(view.__name__, path)
        config.add_view(view, route_name=view.__name__, request_method="POST")
    return make_wsgi_app(config, shop.idempotency, caller=caller if shop.asks else None)
