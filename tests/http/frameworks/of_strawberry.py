from __future__ import annotations

from typing import Annotated, Any

import strawberry
from fastapi import FastAPI, Header, HTTPException
from strawberry.fastapi import GraphQLRouter

from semel.web.fastapi import init_app
from semel.web.strawberry import SemelExtension
from tests.http.frameworks import Crash, Shop


def make(shop: Shop) -> FastAPI:
    def caller(x_user: Annotated[str | None, Header()] = None) -> dict[str, str]:
        user = shop.user(x_user)
        if user is None:
            raise HTTPException(401)
        return {"sub": user}

    def version(self: Any) -> str:
        return "1"

    async def plain(self: Any) -> int:
        return shop.run("plain")

    async def atomic(self: Any, how: str) -> int:
        runs = shop.run(how)
        await shop.write(how)
        if how == "crash":
            raise Crash
        return runs

    async def required(self: Any) -> int:
        return shop.run("required")

    query = type("Query", (), {"version": strawberry.field(version)})
    resolvers = {f.__name__: strawberry.mutation(f) for f in (plain, atomic, required)}
    mutation = type("Mutation", (), dict(resolvers))
    schema = strawberry.Schema(
        strawberry.type(query),
        strawberry.type(mutation),
        extensions=[lambda: SemelExtension(required=shop.required)],
    )
    app = FastAPI()
    app.include_router(GraphQLRouter(schema), prefix="/graphql")
    init_app(app, shop.idempotency, caller=caller if shop.asks else None)
    return app
