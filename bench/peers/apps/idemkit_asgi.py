"""idemkit's middleware with its Redis backend and a scope, as its README says for production."""

from idemkit import HttpConfig, IdempotencyMiddleware, RedisBackend

from bench.peers.apps import books
from bench.peers.apps.asgi import Authenticated, shop

app = shop()
app.add_middleware(
    IdempotencyMiddleware,
    backend=RedisBackend.from_url(books.REDIS),
    config=HttpConfig(
        scope=lambda request: request.headers.get("authorization", "anonymous"),
        require_key_for_mutations=True,
        lease_ttl_seconds=books.LEASE,
    ),
)
app.add_middleware(Authenticated)
