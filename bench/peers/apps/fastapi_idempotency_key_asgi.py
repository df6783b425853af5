"""fastapi-idempotency-key's middleware with its SQLite backend. It has no scope."""

from fastapi_idempotency_key import IdempotencyMiddleware, SQLiteBackend

from bench.peers.apps import books
from bench.peers.apps.asgi import Authenticated, shop

app = shop()
app.add_middleware(
    IdempotencyMiddleware,
    backend=SQLiteBackend(database_path=str(books.FOLDER / "keys.db")),
    required=True,
)
app.add_middleware(Authenticated)
