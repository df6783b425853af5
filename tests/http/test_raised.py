"""What Starlette and FastAPI make a response of is rolled back, wherever it is raised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from semel import ASGIMiddleware, Idempotency, Policy, current_async_operation, current_operation
from semel.web.fastapi import AsyncOp, Op, init_app
from tests.operation.services import Database, postgresql, sqlalchemy_async, sqlalchemy_sync, sqlite


class Declined(Exception):
    pass


class Insufficient(Declined):
    pass


async def declined(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"declined": True}, 402)


def by_status(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"by": "status"}, 418)


class Handling:
    """An exception handler that is an object."""

    async def __call__(self, request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({}, 400)


class Broken(Exception):
    pass


def raising(error: Any) -> Any:
    def later() -> Iterator[None]:
        yield
        raise error

    return later


def raise_it(how: str) -> Response | None:
    match how:
        case "http":
            raise HTTPException(402, "declined")
        case "starlette":
            raise StarletteHTTPException(404)
        case "domain":
            raise Declined
        case "subclass":
            raise Insufficient
        case "status":
            raise HTTPException(409 + 9)
        case "object":
            raise Broken
        case "invalid":
            raise RequestValidationError([])
        case "returned":
            return JSONResponse({}, 402)
        case "redirect":
            raise HTTPException(303, headers={"Location": "/elsewhere"})
    return None


def make(keys: Idempotency, database: Database, is_async: bool) -> FastAPI:
    app = FastAPI()
    app.add_exception_handler(Declined, declined)
    app.add_exception_handler(418, by_status)
    app.add_exception_handler(Broken, Handling())
    router = APIRouter()

    if is_async:

        @router.post("/{how}")
        async def move(how: str, op: AsyncOp) -> Any:
            await database.write(op)
            return raise_it(how)

        @router.post(
            "/exit/x", dependencies=[Depends(raising(HTTPException(402)), scope="function")]
        )
        async def at_exit(op: AsyncOp) -> None:
            await database.write(op)

    else:

        @router.post("/{how}")
        def move_plainly(how: str, op: Op) -> Any:
            database.write(op)
            return raise_it(how)

        @router.post(
            "/exit/x", dependencies=[Depends(raising(HTTPException(402)), scope="function")]
        )
        def at_plain_exit(op: Op) -> None:
            database.write(op)

    app.include_router(router, prefix="/v1")
    return app


ROLLED_BACK = {
    "http": 402,
    "starlette": 404,
    "domain": 402,
    "subclass": 402,
    "status": 418,
    "object": 400,
    "invalid": 422,
    "exit/x": 402,
}
COMMITTED = {"returned": 402, "redirect": 303, "nothing": 200}


def placed(app: FastAPI, keys: Idempotency) -> Any:
    init_app(app, keys)
    return app


def by_hand(app: FastAPI, keys: Idempotency) -> Any:
    app.add_middleware(ASGIMiddleware, idempotency=keys)
    return app


def mounted(app: FastAPI, keys: Idempotency) -> Any:
    outer = FastAPI()
    init_app(outer, keys)
    outer.mount("/sub", app)
    return outer


def mounted_within_middleware(app: FastAPI, keys: Idempotency) -> Any:
    async def through(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    app.add_middleware(BaseHTTPMiddleware, dispatch=through)
    return mounted(app, keys)


def check(app: Any, prefix: str, database: Database) -> None:
    with TestClient(app, follow_redirects=False) as client:
        for how, status in (ROLLED_BACK | COMMITTED).items():
            before, path = database.rows(), f"{prefix}/v1/{how}"
            first = client.post(path, headers={"Idempotency-Key": how})
            again = client.post(path, headers={"Idempotency-Key": how})
            assert (first.status_code, how) == (status, how)
            assert (again.status_code, again.content, how) == (status, first.content, how)
            assert (again.headers.get("idempotent-replayed"), how) == ("true", how)
            assert (database.rows() - before, how) == (how in COMMITTED, how)


@pytest.mark.parametrize("put", [placed, by_hand, mounted, mounted_within_middleware])
@pytest.mark.parametrize("is_async", [True, False])
def test_what_is_raised_is_rolled_back_and_what_is_returned_is_not(
    put: Any, is_async: bool, tmp_path: Path
) -> None:
    database = sqlite(tmp_path)
    keys = Idempotency(database.store)
    app = put(make(keys, database, is_async), keys)
    check(app, "/sub" if put in (mounted, mounted_within_middleware) else "", database)


@pytest.mark.parametrize(
    ("kind", "is_async"),
    [
        (postgresql, True),
        (postgresql, False),
        (sqlalchemy_sync, False),
        (sqlalchemy_async, True),
    ],
)
@pytest.mark.parametrize("guarantee", [None, "atomic"])
def test_on_other_stores_too(kind: Any, is_async: bool, guarantee: Any, tmp_path: Path) -> None:
    database = kind(tmp_path)
    keys = Idempotency(database.store, policy=Policy(guarantee=guarantee))
    check(placed(make(keys, database, is_async), keys), "", database)


@pytest.mark.parametrize("mount", [True, False])
def test_starlettes_own_routes_as_well(mount: bool, tmp_path: Path) -> None:
    database = sqlite(tmp_path)
    keys = Idempotency(database.store)

    async def asynchronous(request: Request) -> PlainTextResponse:
        await database.write(current_async_operation())
        raise_it(request.query_params["how"])
        return PlainTextResponse("")

    def plain(request: Request) -> PlainTextResponse:
        database.write(current_operation())
        raise_it(request.query_params["how"])
        return PlainTextResponse("")

    app = Starlette(
        routes=[
            Route("/a", asynchronous, methods=["POST"]),
            Route("/p", plain, methods=["POST"]),
        ],
        exception_handlers={Declined: declined},
    )
    outer = Starlette(routes=[Mount("/sub", app)]) if mount else app
    init_app(outer, keys)
    prefix = "/sub" if mount else ""
    with TestClient(outer) as client:
        for path in ("/a", "/p"):
            for how, status in (("http", 402), ("starlette", 404), ("domain", 402)):
                url = f"{prefix}{path}?how={how}"
                for _ in range(2):
                    answer = client.post(url, headers={"Idempotency-Key": how + path})
                    assert (answer.status_code, path, how) == (status, path, how)
                assert answer.headers["idempotent-replayed"] == "true"
                assert (database.rows(), path, how) == (0, path, how)


def test_an_exception_of_another_request_in_the_same_task_is_not_the_operations(
    tmp_path: Path,
) -> None:
    import httpx

    database = sqlite(tmp_path)
    keys = Idempotency(database.store)
    app = FastAPI()

    @app.post("/inner")
    async def inner() -> None:
        raise HTTPException(402)

    @app.post("/outer")
    async def outer(op: AsyncOp) -> int:
        await database.write(op)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            return (await client.post("/inner")).status_code

    init_app(app, keys)
    with TestClient(app) as client:
        answer = client.post("/outer", headers={"Idempotency-Key": "k"})
    assert (answer.json(), database.rows()) == (402, 1)
