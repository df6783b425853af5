"""A handler that writes a row on PostgreSQL, bare and behind a middleware, called as ASGI.

`python bench/on_postgresql.py NAME URL --calls 500` prints one line of JSON: microseconds a first
request, one and 16 at a time. Runs in the virtual environment of whoever is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.in_process import timed

INSERT = "insert into orders (number, item) values (%s, %s)"
AT_ONCE = 16


class Shop:
    """The application, with connections of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: list[psycopg.AsyncConnection[Any]] = []

    async def bare(self, request: Request) -> Response:
        """BEGIN, INSERT, COMMIT."""
        body = await request.body()
        connection = (
            self._idle.pop()
            if self._idle
            else await psycopg.AsyncConnection.connect(self._url, autocommit=True)
        )
        async with connection.transaction():
            await connection.execute(INSERT, (1, "a book"))
        self._idle.append(connection)
        return Response(body, status_code=201, media_type="application/json")

    async def atomic(self, request: Request) -> Response:
        """The same, in the transaction of the key."""
        from semel import current_async_operation

        body = await request.body()
        connection = await current_async_operation().connection()
        await connection.execute(INSERT, (1, "a book"))
        return Response(body, status_code=201, media_type="application/json")


def _served(handler: Any) -> Any:
    return Starlette(routes=[Route("/charges", handler, methods=["POST"])])


@contextlib.asynccontextmanager
async def behind(name: str, url: str, shop: Shop) -> AsyncIterator[Any]:
    """Give the application behind the middleware of that name."""
    if name == "semel":
        from semel import ASGIMiddleware, Idempotency, Policy
        from semel.stores.postgres import PostgreSQLStore

        store = PostgreSQLStore(url, pool_size=AT_ONCE)
        idempotency = Idempotency(store, policy=Policy(guarantee="atomic"))
        idempotency.start()
        yield ASGIMiddleware(_served(shop.atomic), idempotency)
        idempotency.stop()
    else:
        from idemkit import IdempotencyMiddleware, PostgresBackend
        from idemkit.cli import main as idemkit

        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):
            await asyncio.to_thread(idemkit, ["init-pg", url])
        backend = PostgresBackend.from_url(url, max_size=AT_ONCE)
        yield IdempotencyMiddleware(_served(shop.bare), backend=backend)


async def measure(name: str, url: str, calls: int) -> dict[str, float]:
    shop = Shop(url)
    plain = _served(shop.bare)
    with psycopg.connect(url, autocommit=True) as sql:
        sql.execute(
            "create table if not exists orders (id bigserial primary key, number int, item text)"
        )
    result: dict[str, float] = {}
    async with behind(name, url, shop) as app:
        for at_once in (1, AT_ONCE):
            number = calls * (3 if at_once > 1 else 1)
            await timed(plain, [None] * at_once * 2, at_once)
            await timed(app, [str(uuid.uuid4()) for _ in range(at_once * 2)], at_once)
            result[f"bare {at_once}"] = await timed(plain, [None] * number, at_once)
            fresh: list[str | None] = [str(uuid.uuid4()) for _ in range(number)]
            result[f"first {at_once}"] = await timed(app, fresh, at_once)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("url")
    parser.add_argument("--calls", type=int, default=500)
    options = parser.parse_args()
    import uvloop

    uvloop.install()
    print(json.dumps(asyncio.run(measure(options.name, options.url, options.calls))))
