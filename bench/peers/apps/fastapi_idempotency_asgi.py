"""fastapi-idempotency's middleware with its Tortoise store on SQLite, and a scope."""

from contextlib import asynccontextmanager

from fastapi_idempotency import IdempotencyMiddleware
from fastapi_idempotency.stores.tortoise import TortoiseStore
from tortoise.contrib.fastapi import RegisterTortoise

from bench.peers.apps import books
from bench.peers.apps.asgi import Authenticated, shop


@asynccontextmanager
async def lifespan(app):
    async with RegisterTortoise(
        app,
        db_url=f"sqlite://{books.FOLDER / 'keys.db'}",
        modules={"models": ["fastapi_idempotency.stores.tortoise"]},
        generate_schemas=True,
    ):
        yield


app = shop(lifespan=lifespan)
app.add_middleware(
    IdempotencyMiddleware,
    store=TortoiseStore(),
    lease_seconds=books.LEASE,
    heartbeat_seconds=1,
    scope=lambda request: request.headers.get("authorization", ""),
)
app.add_middleware(Authenticated)
