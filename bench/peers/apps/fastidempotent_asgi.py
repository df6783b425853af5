"""fastidempotent's middleware with its Redis backend. It has no scope.

Its README leaves `backend.init()` out, without which every request is answered 500.
"""

from contextlib import asynccontextmanager

from fastidempotent import IdempotencyConfig, IdempotencyMiddleware, RedisBackend

from bench.peers.apps import books
from bench.peers.apps.asgi import Authenticated, shop

backend = RedisBackend(url=books.REDIS)


@asynccontextmanager
async def lifespan(app):
    await backend.init()
    yield


app = shop(lifespan=lifespan)
app.add_middleware(
    IdempotencyMiddleware, backend=backend, config=IdempotencyConfig(lock_timeout=books.LEASE)
)
app.add_middleware(Authenticated)
