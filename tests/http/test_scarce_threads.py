"""Plain `def` code under an event loop: whoever waits for a transaction leaves others threads."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import httpx
import psycopg
import pytest
from anyio.to_thread import current_default_thread_limiter
from fastapi import Depends, FastAPI
from litestar import Litestar, post
from litestar.di import Provide
from quart import Quart
from quart.utils import run_sync
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from semel import ASGIMiddleware, Idempotency, current_operation
from semel.sessions import join_sessionmaker
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.web.fastapi import Op, init_app
from tests import servers
from tests.http.harness import asgi_server

INSERT = "insert into charges values (1)"


def take() -> Any:
    return current_operation().connection()


def get_db() -> Iterator[Any]:
    yield take()


def charge(connection: Any) -> None:
    connection.execute(INSERT)


def fastapi(idempotency: Idempotency, tokens: int | None = None) -> Any:
    @contextlib.asynccontextmanager
    async def few_threads(app: FastAPI) -> AsyncIterator[None]:
        if tokens is not None:
            current_default_thread_limiter().total_tokens = tokens
        yield

    app = FastAPI(lifespan=few_threads)

    @app.post("/charges")
    def handler(db: Annotated[Any, Depends(get_db)]) -> dict[str, bool]:
        charge(db)
        return {"charged": True}

    @app.post("/by-dependency")
    def another(op: Op) -> dict[str, bool]:
        charge(op.connection())
        return {"charged": True}

    init_app(app, idempotency)
    return app


def starlette(idempotency: Idempotency) -> Any:
    async def handler(request: Request) -> Response:
        db = await run_in_threadpool(take)
        await run_in_threadpool(charge, db)
        return Response()

    routes = [Route("/charges", handler, methods=["POST"])]
    return ASGIMiddleware(Starlette(routes=routes), idempotency)


def litestar(idempotency: Idempotency) -> Any:
    @post("/charges", dependencies={"db": Provide(take, sync_to_thread=True)}, sync_to_thread=True)
    def handler(db: Any) -> None:
        charge(db)

    return ASGIMiddleware(Litestar([handler]), idempotency)  # type: ignore[arg-type]


def quart(idempotency: Idempotency) -> Any:
    app = Quart(__name__)

    @app.post("/charges")
    async def handler() -> str:
        db = await run_sync(take)()
        await run_sync(charge)(db)
        return ""

    app.asgi_app = ASGIMiddleware(app.asgi_app, idempotency)  # type: ignore[method-assign,arg-type]
    return app


def pool_of_its_own(idempotency: Idempotency) -> Any:
    """An application with an executor of its own."""
    threads = ThreadPoolExecutor(3)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        loop = asyncio.get_running_loop()
        operation = current_operation()
        db = await loop.run_in_executor(threads, operation.connection)
        await loop.run_in_executor(threads, charge, db)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    return ASGIMiddleware(app, idempotency)


def storm(ports: list[int], path: str = "/charges", count: int = 80) -> list[int]:
    async def all_at_once() -> list[int]:
        limits = httpx.Limits(max_connections=count)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:
            asked = [
                client.post(
                    f"http://127.0.0.1:{ports[n % len(ports)]}{path}",
                    headers={"Idempotency-Key": f"{path}-{n}"},
                )
                for n in range(count)
            ]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    return asyncio.run(all_at_once())


@pytest.fixture
def database(tmp_path: Path) -> str:
    with contextlib.closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.execute("create table charges (n)")
    return f"sqlite:///{tmp_path}/shop.db?synchronous=normal"


def effects(database: str) -> int:
    path = database.removeprefix("sqlite:///").partition("?")[0]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("select count(*) from charges").fetchone()[0])


APPLICATIONS = [fastapi, starlette, litestar, quart, pool_of_its_own]


@pytest.mark.parametrize("make", APPLICATIONS)
def test_a_connection_taken_on_a_thread_leaves_threads_to_go_on_with(
    make: Callable[[Idempotency], Any], database: str
) -> None:
    with asgi_server(make(Idempotency(database))) as port:
        statuses = storm([port])
    assert {status // 100 for status in statuses} == {2}, statuses
    assert effects(database) == 80


def test_two_threads_are_enough(database: str) -> None:
    with asgi_server(fastapi(Idempotency(database), tokens=2)) as port:
        assert storm([port]) == [200] * 80
        assert storm([port], "/by-dependency") == [200] * 80
    assert effects(database) == 160


def test_one_thread_is_enough(database: str) -> None:
    with asgi_server(fastapi(Idempotency(database), tokens=1)) as port:
        assert storm([port], count=20) == [200] * 20


def test_two_services_write_to_one_file(database: str) -> None:
    with (
        asgi_server(fastapi(Idempotency(database))) as first,
        asgi_server(fastapi(Idempotency(database), tokens=2)) as second,
    ):
        assert storm([first, second]) == [200] * 80
    assert effects(database) == 80


@pytest.mark.parametrize("make", [fastapi, litestar])
def test_a_pool_of_few_connections(make: Callable[[Idempotency], Any]) -> None:
    """PostgreSQL: whoever has one of the connections needs a thread to give it back."""
    url = servers.postgresql().database(f"scarce_{make.__name__}")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table charges (n int)")
        with asgi_server(make(Idempotency(url))) as port:
            statuses = storm([port])
        assert {status // 100 for status in statuses} == {2}, statuses
        row = connection.execute("select count(*) from charges").fetchone()
    assert row == (80,)


def test_the_pool_is_as_large_as_before_when_nobody_waits(database: str) -> None:
    seen: list[float] = []
    app = fastapi(Idempotency(database), tokens=4)

    @app.get("/tokens")
    async def tokens() -> None:
        seen.append(current_default_thread_limiter().total_tokens)

    with asgi_server(app) as port:
        storm([port])
        httpx.get(f"http://127.0.0.1:{port}/tokens")
    assert seen == [4]


def _pool_of_two(name: str) -> Any:
    url = servers.postgresql().database(name).replace("postgresql", "postgresql+psycopg", 1)
    engine = create_engine(url, pool_size=2, max_overflow=0, pool_timeout=10)
    with engine.begin() as connection:
        connection.execute(text("create table charges (n integer)"))
    return engine


@pytest.mark.parametrize("how", ["function", "generator", "class", "below an async one"])
async def test_plain_callers_that_wait_for_the_pool_leave_threads_to_those_who_hold_it(
    how: str,
) -> None:
    engine = _pool_of_two(f"asking_{how.replace(' ', '_')}")
    idempotency = Idempotency(SQLAlchemyStore(engine))
    sessions = join_sessionmaker(sessionmaker(engine), idempotency)

    def who() -> str:
        with sessions() as session:
            return str(session.scalar(text("select 'ann'")))

    def yielded() -> Iterator[str]:
        yield who()

    class Who:
        def __init__(self) -> None:
            self.username = who()

    async def above(name: str = Depends(who)) -> str:
        return name

    caller = {"function": who, "generator": yielded, "class": Who}.get(how, above)

    @contextlib.asynccontextmanager
    async def few_threads(app: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = 8
        yield

    app = FastAPI(lifespan=few_threads)

    @app.post("/charges")
    def handler(user: Any = Depends(caller)) -> dict[str, bool]:  # noqa: B008
        with sessions.begin() as session:
            session.execute(text(INSERT))
        return {"charged": True}

    init_app(app, idempotency, caller=caller)
    with asgi_server(app) as port:
        base = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=base, timeout=60) as client:

            async def one_after_the_other(worker: int) -> list[int]:
                keys = [{"Idempotency-Key": f"{worker}-{n}"} for n in range(5)]
                return [(await client.post("/charges", headers=h)).status_code for h in keys]

            statuses = await asyncio.gather(*map(one_after_the_other, range(30)))
    assert statuses == [[200] * 5] * 30
    with engine.connect() as connection:
        assert connection.scalar(text("select count(*) from charges")) == 150
    engine.dispose()
