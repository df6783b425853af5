"""Litestar: what only it has: dependencies, guards, hooks, DTOs, threads, the OpenAPI document."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import Litestar, Request, get, post
from litestar.background_tasks import BackgroundTask
from litestar.config.compression import CompressionConfig
from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.dto import DataclassDTO, DTOConfig
from litestar.exceptions import NotAuthorizedException
from litestar.handlers.base import BaseRouteHandler
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult
from litestar.response import File, Response
from litestar.testing import TestClient

from semel import AsyncOperation, Idempotency, Operation, Policy, PolicyError
from semel.web.litestar import SemelPlugin, async_operation, operation
from tests.http.harness import Client, asgi_server


@dataclass
class User:
    id: int


@dataclass
class Order:
    item: str
    secret: str = "s"


class OrderDTO(DataclassDTO[Order]):
    config = DTOConfig(exclude={"secret"})


@pytest.fixture
def serve() -> Iterator[Callable[[Litestar], Client]]:
    with ExitStack() as stack:
        yield lambda app: Client(stack.enter_context(asgi_server(app)))


Serve = Callable[[Litestar], Client]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table orders (item)")
    connection.close()
    return tmp_path / "shop.db"


def items(shop: Path) -> list[str]:
    connection = sqlite3.connect(shop)
    try:
        return [item for (item,) in connection.execute("select item from orders")]
    finally:
        connection.close()


@pytest.mark.parametrize("plain", [False, True])
def test_operation_is_a_dependency(serve: Serve, shop: Path, plain: bool) -> None:
    if plain:

        @post("/orders", dependencies={"op": Provide(operation)}, sync_to_thread=True)
        def order(data: Order, op: Operation) -> Order:
            op.connection().execute("insert into orders values (?)", (data.item,))
            return data
    else:

        @post("/orders", dependencies={"op": Provide(async_operation)})
        async def order(data: Order, op: AsyncOperation) -> Order:
            db = await op.connection()
            await db.execute("insert into orders values (?)", (data.item,))
            return data

    client = serve(Litestar([order], plugins=[SemelPlugin(Idempotency(f"sqlite:///{shop}"))]))
    body = b'{"item": "tea"}'
    answers = client.together(12, path="/orders", body=body)
    answers += [client.send("/orders", key=f"k{n}", body=body) for n in range(2)]
    assert {answer.status for answer in answers} == {201}
    assert items(shop) == ["tea"] * 3
    assert client.send("/orders", key=None, body=body).problem == "key-missing"


def test_many_threads_at_once(serve: Serve, shop: Path) -> None:
    """More handlers than the pool has threads, each holding the connection in turn."""

    @post("/orders", dependencies={"op": Provide(operation)}, sync_to_thread=True)
    def order(data: Order, op: Operation) -> Order:
        op.connection().execute("insert into orders values (?)", (data.item,))
        return data

    client = serve(Litestar([order], plugins=[SemelPlugin(Idempotency(f"sqlite:///{shop}"))]))
    import threading

    answers: list[int] = []

    def send(number: int) -> None:
        body = b'{"item": "tea"}'
        answers.append(client.send("/orders", key=f"k{number}", body=body).status)

    threads = [threading.Thread(target=send, args=(n,)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) == {201}
    assert len(items(shop)) == 40


def test_guards_and_hook_come_before_a_replay_and_run_once(serve: Serve) -> None:
    asked: list[str] = []
    allowed = {"ann"}

    def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        asked.append("guard")
        if connection.headers.get("X-User") not in allowed:
            raise NotAuthorizedException

    async def hook(request: Request[Any, Any, Any]) -> Any:
        asked.append("hook")
        if await request.body() == b"closed":
            return Response({"closed": True}, status_code=503)
        return None

    @post("/orders", guards=[guard], before_request=hook)
    async def order(request: Request[Any, Any, Any]) -> dict[str, str]:
        asked.append("handler")
        return {"body": (await request.body()).decode()}

    client = serve(Litestar([order], plugins=[SemelPlugin(Idempotency("memory://"))]))
    ann = [("X-User", "ann")]
    assert client.send("/orders").status == 401
    first = client.send("/orders", headers=ann)
    assert (first.status, b"amount" in first.body) == (201, True)
    assert asked == ["guard", "guard", "hook", "handler"]
    assert client.send("/orders", headers=ann).replayed
    assert asked[4:] == ["guard", "hook"]
    closed = client.send("/orders", key="other", body=b"closed", headers=ann)
    assert (closed.status, closed.replayed) == (503, False)
    allowed.clear()
    refused = client.send("/orders", headers=ann)
    assert (refused.status, refused.replayed) == (401, False)
    assert client.send("/orders", key=None, headers=ann).status == 401


def test_authenticated_user_is_the_caller(serve: Serve) -> None:
    class Authentication(AbstractAuthenticationMiddleware):
        async def authenticate_request(
            self, connection: ASGIConnection[Any, Any, Any, Any]
        ) -> AuthenticationResult:
            token = connection.headers.get("X-Ticket", "")
            if not token:
                raise NotAuthorizedException
            return AuthenticationResult(user=User(int(token[0])), auth=token)

    @post("/orders")
    async def order(request: Request[User, Any, Any]) -> dict[str, int]:
        return {"of": request.user.id}

    app = Litestar(
        [order], middleware=[Authentication], plugins=[SemelPlugin(Idempotency("memory://"))]
    )
    client = serve(app)
    answers = [client.send("/orders", headers=[("X-Ticket", t)]) for t in ("1a", "2a", "1b")]
    assert [a.body for a in answers] == [b'{"of":1}', b'{"of":2}', b'{"of":1}']
    assert [a.replayed for a in answers] == [False, False, True]
    assert client.send("/orders").status == 401


def test_compression_is_outside(serve: Serve) -> None:
    @post("/orders")
    async def order() -> str:
        return "x" * 2000

    app = Litestar(
        [order],
        compression_config=CompressionConfig("gzip", minimum_size=100),
        plugins=[SemelPlugin(Idempotency("memory://"))],
    )
    client = serve(app)
    url, key = f"http://127.0.0.1:{client.port}/orders", {"Idempotency-Key": "k"}
    packed = httpx.post(url, headers=key | {"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    plain = httpx.post(url, headers=key | {"Accept-Encoding": "identity"})
    assert plain.headers["Idempotent-Replayed"] == "true"
    assert "Content-Encoding" not in plain.headers
    assert packed.content == plain.content == b"x" * 2000


def test_dto_file_and_background_task(serve: Serve, tmp_path: Path) -> None:
    done: list[str] = []
    (tmp_path / "bill.txt").write_text("bill")

    async def later() -> None:
        done.append("later")

    @post("/orders", dto=OrderDTO, return_dto=OrderDTO)
    async def order(data: Order) -> Order:
        return data

    @post("/bill")
    async def bill() -> File:
        return File(tmp_path / "bill.txt", filename="bill.txt")

    @post("/mail")
    async def mail() -> Response[dict[str, str]]:
        return Response({}, background=BackgroundTask(later))

    client = serve(Litestar([order, bill, mail], plugins=[SemelPlugin(Idempotency("memory://"))]))
    for path, expected in (("/orders", b'{"item":"tea"}'), ("/bill", b"bill"), ("/mail", b"{}")):
        answers = [client.send(path, key=path, body=b'{"item": "tea"}') for _ in range(2)]
        assert [a.replayed for a in answers] == [False, True]
        assert {a.body for a in answers} == {expected}
    assert done == ["later"]


def test_openapi_document_says_it() -> None:
    idempotency = Idempotency("memory://")

    @post("/orders/{number:int}")
    @idempotency.route(required=True)
    async def order(number: int) -> None: ...

    @post("/notes")
    async def note() -> None: ...

    @post("/charges", dependencies={"op": Provide(async_operation)})
    async def charge(op: AsyncOperation) -> None: ...

    @get("/orders")
    async def orders() -> None: ...

    app = Litestar([order, note, charge, orders], plugins=[SemelPlugin(idempotency)])
    other = Litestar([note])
    with TestClient(app) as client:
        paths = client.get("/schema/openapi.json").json()["paths"]
    required = {}
    for path in ("/orders/{number}", "/notes", "/charges"):
        described = paths[path]["post"]
        (header,) = [p for p in described["parameters"] if p["in"] == "header"]
        required[path] = (header["name"], header["required"])
        assert {"400", "409", "422"} <= set(described["responses"])
        kinds = described["responses"]["422"]["content"]
        assert "application/problem+json" in kinds
    key = "Idempotency-Key"
    assert required == {
        "/orders/{number}": (key, True),
        "/notes": (key, False),
        "/charges": (key, True),
    }
    assert "parameters" not in paths["/orders"]["get"]
    assert "parameters" not in other.openapi_schema.to_schema()["paths"]["/notes"]["post"]


def test_set_up_that_cannot_hold_is_refused() -> None:
    idempotency = Idempotency("memory://")
    with pytest.raises(PolicyError, match="two SemelPlugin"):
        Litestar([], plugins=[SemelPlugin(idempotency), SemelPlugin(idempotency)])
    with pytest.raises(PolicyError, match="caller="):
        SemelPlugin(Idempotency("memory://", scope=lambda request: "x"), caller=lambda c: "y")


def test_natural_key_needs_a_caller(serve: Serve) -> None:
    policy = Policy(key=lambda request: request.json()["item"])
    idempotency = Idempotency("memory://", routes={"POST /orders": policy})

    @post("/orders")
    async def order(data: Order) -> Order:
        return data

    app = Litestar([order], plugins=[SemelPlugin(idempotency, caller=lambda c: "ann")])
    client = serve(app)
    answers = [client.send("/orders", key=None, body=b'{"item": "tea"}') for _ in range(2)]
    assert [a.replayed for a in answers] == [False, True]
