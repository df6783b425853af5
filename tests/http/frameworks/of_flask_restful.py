from __future__ import annotations

from typing import Any

from flask import Flask
from flask_restful import Api, Resource, abort

from semel.web.flask import operation
from tests.http.frameworks import Crash, Shop
from tests.http.frameworks.of_flask import make_bare


def make(shop: Shop) -> Flask:
    app = make_bare(shop)
    api = Api(app)

    class Plain(Resource):
        def post(self) -> Any:
            return {"run": shop.run("plain")}, 201

    class Atomic(Resource):
        def post(self, how: str) -> Any:
            shop.run(how)
            shop.write_now(how)
            if how == "raised":
                abort(422, message="declined")
            if how == "crash":
                raise Crash
            return {}, 402 if how == "returned" else 201

    class Needs(Resource):
        def post(self) -> Any:
            return {"attempt": operation().attempt}

    class Required(Resource):
        @shop.idempotency.route(required=True)
        def post(self) -> Any:
            return {"run": shop.run("required")}

    api.add_resource(Plain, "/plain")
    api.add_resource(Atomic, "/atomic/<how>")
    api.add_resource(Needs, "/needs")
    api.add_resource(Required, "/required")
    return app
