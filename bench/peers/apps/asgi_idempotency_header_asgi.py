"""asgi-idempotency-header's middleware with its Redis backend. It has no scope."""

from idempotency_header_middleware import IdempotencyHeaderMiddleware
from idempotency_header_middleware.backends import RedisBackend
from redis.asyncio import Redis

from bench.peers.apps import books
from bench.peers.apps.asgi import Authenticated, shop

app = shop()
app.add_middleware(
    IdempotencyHeaderMiddleware,
    backend=RedisBackend(redis=Redis.from_url(books.REDIS, decode_responses=True)),
)
app.add_middleware(Authenticated)
