"""FastAPI: the operation as a dependency, rules beside the handler, the OpenAPI document."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, HTTPException, UploadFile
from pydantic import BaseModel

from semel import ASGIMiddleware, Idempotency, Issuer, Policy
from semel.core.keys import parse_key
from semel.web.fastapi import AsyncOp, Op, init_app
from tests.http.harness import Client, asgi_server


class Charge(BaseModel):
    amount: int


class Problem(BaseModel):
    mine: int


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table charges (amount)")
    connection.close()
    return tmp_path / "shop.db"


def charges(shop: Path) -> list[int]:
    connection = sqlite3.connect(shop)
    try:
        return [amount for (amount,) in connection.execute("select amount from charges")]
    finally:
        connection.close()


@pytest.fixture
def serve() -> Iterator[Callable[[FastAPI], Client]]:
    with contextlib.ExitStack() as stack:
        yield lambda app: Client(stack.enter_context(asgi_server(app)))


def make_app(shop: Path, **settings: Any) -> FastAPI:
    app = FastAPI()
    idempotency = Idempotency(f"sqlite:///{shop}", **settings)

    @app.post("/charges", status_code=201)
    @idempotency.route(guarantee="atomic")
    async def charge(wanted: Charge, op: AsyncOp) -> dict[str, int]:
        db = await op.connection()
        await db.execute("insert into charges values (?)", (wanted.amount,))
        if wanted.amount > 100:
            raise HTTPException(402, "too much")
        return {"attempt": op.attempt}

    @app.post("/plain-charges", status_code=201)
    def plain_charge(wanted: Charge, op: Op) -> dict[str, str]:
        op.connection().execute("insert into charges values (?)", (wanted.amount,))
        return {"thread": threading.current_thread().name}

    @app.put("/settings/{name}")
    @idempotency.route(required=True)
    async def change(name: str) -> dict[str, str]:
        return {"name": name}

    @app.post("/notes")
    async def note() -> dict[str, str]:
        return {}

    @app.get("/charges")
    async def listing() -> list[int]:
        return charges(shop)

    @app.post("/files/")
    async def upload(file: UploadFile) -> dict[str, int]:
        return {"size": len(await file.read())}

    init_app(app, idempotency)
    return app


def test_an_async_handler_charges_in_the_transaction_that_holds_the_key(
    shop: Path, serve: Any
) -> None:
    client = serve(make_app(shop))
    first, repeat = client.send("/charges"), client.send("/charges")
    assert (first.status, first.body) == (201, b'{"attempt":1}')
    assert (repeat.body, repeat.replayed) == (first.body, True)
    assert charges(shop) == [5]


def test_a_plain_handler_charges_from_its_thread(shop: Path, serve: Any) -> None:
    client = serve(make_app(shop))
    first = client.send("/plain-charges")
    assert (first.status, b"AnyIO worker" in first.body) == (201, True)
    assert client.send("/plain-charges").replayed
    assert charges(shop) == [5]


def test_more_plain_handlers_than_threads_do_not_wait_for_each_other(
    shop: Path, serve: Any
) -> None:
    entered = threading.Event()
    idempotency = Idempotency(f"sqlite:///{shop}")
    app = FastAPI()

    @app.post("/charges", status_code=201)
    def charge(op: Op) -> dict[str, int]:
        op.connection().execute("insert into charges values (1)")
        if not entered.is_set():
            entered.set()
            time.sleep(0.5)  # the others arrive, and wait for the connection
        return {}  # FastAPI needs a thread once more, to serialise this

    init_app(app, idempotency)
    client = serve(app)
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(client.send("/charges", key=f"k{n}")))
        for n in range(100)
    ]
    threads[0].start()
    assert entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    assert [a.status for a in answers] == [201] * 100
    assert charges(shop) == [1] * 100


@pytest.mark.parametrize("path", ["/charges", "/plain-charges"])
def test_a_handler_that_takes_the_operation_needs_a_key(shop: Path, serve: Any, path: str) -> None:
    refused = serve(make_app(shop)).send(path, key=None)
    assert (refused.status, refused.problem) == (400, "key-missing")
    assert charges(shop) == []


def test_a_refusal_that_the_handler_raises_is_kept_and_its_writes_are_undone(
    shop: Path, serve: Any
) -> None:
    client = serve(make_app(shop))
    body = b'{"amount": 101}'
    first, repeat = client.send("/charges", body=body), client.send("/charges", body=body)
    assert (first.status, repeat.status, repeat.body) == (402, 402, first.body)
    assert repeat.replayed
    assert charges(shop) == []


def test_a_body_that_fails_validation_is_answered_the_same_again(shop: Path, serve: Any) -> None:
    client = serve(make_app(shop))
    first, repeat = client.send("/charges", body=b"{}"), client.send("/charges", body=b"{}")
    assert (first.status, repeat.status, repeat.replayed) == (422, 422, True)
    assert first.header("Content-Type") == "application/json"


def test_rules_beside_the_handler_hold_for_its_path_and_method(shop: Path, serve: Any) -> None:
    client = serve(make_app(shop))
    assert client.send("/settings/a", key=None, method="PUT").problem == "key-missing"
    assert client.send("/settings/a", method="PUT").status == 200
    assert client.send("/settings/a", method="PUT").replayed
    assert client.send("/notes", key=None).status == 200


def test_a_redirect_to_the_same_request_takes_its_key_along(shop: Path, serve: Any) -> None:
    client = serve(make_app(shop, policy=Policy(guarantee="atomic")))
    for _ in range(2):
        moved = client.send("/charges/")
        assert (moved.status, moved.replayed) == (307, False)
    assert client.send("/charges").status == 201


def test_an_upload_sent_again_with_another_boundary_is_answered_again(
    shop: Path, serve: Any
) -> None:
    client = serve(make_app(shop))

    def send(boundary: str, content: bytes) -> Any:
        head = b'Content-Disposition: form-data; name="file"; filename="f"'
        mark = b"--" + boundary.encode()
        body = b"%s\r\n%s\r\n\r\n%s\r\n%s--\r\n" % (mark, head, content, mark)
        kind = [("Content-Type", f"multipart/form-data; boundary={boundary}")]
        return client.send("/files/", body=body, headers=kind)

    large = bytes(range(256)) * 8192
    assert send("one", large).body == b'{"size":2097152}'
    assert send("two", large).replayed
    assert send("two", large[:-1]).problem == "key-reused"


def test_routers_of_their_own_are_covered_too(shop: Path, serve: Any) -> None:
    idempotency = Idempotency("memory://")
    router = APIRouter(prefix="/v1")

    @router.post("/charges/{number:int}")
    @idempotency.route(required=True)
    async def charge(number: int) -> int:
        return number

    app = FastAPI()
    app.include_router(router, prefix="/api")
    init_app(app, idempotency)
    client = serve(app)
    assert client.send("/api/v1/charges/1", key=None).problem == "key-missing"
    assert client.send("/api/v1/charges/1").status == 200
    described = app.openapi()["paths"]["/api/v1/charges/{number}"]["post"]
    (header,) = [p for p in described["parameters"] if p["in"] == "header"]
    assert header["required"] is True


def test_rules_of_a_mounted_application_hold(serve: Any) -> None:
    idempotency = Idempotency("memory://")
    inner, outer = FastAPI(), FastAPI()

    @inner.post("/charges")
    @idempotency.route(required=True)
    async def charge() -> None:
        return

    outer.mount("/inner", inner)
    init_app(outer, idempotency)
    assert serve(outer).send("/inner/charges", key=None).problem == "key-missing"


def test_the_middleware_alone_is_enough(shop: Path, serve: Any) -> None:
    app = FastAPI()
    app.add_middleware(ASGIMiddleware, idempotency=Idempotency(f"sqlite:///{shop}"))

    @app.post("/charges", status_code=201)
    async def charge(op: AsyncOp) -> dict[str, int]:
        db = await op.connection()
        await db.execute("insert into charges values (1)")
        return {}

    client = serve(app)
    assert client.send("/charges", key=None).problem == "key-missing"
    assert client.send("/charges").status == 201
    assert client.send("/charges").replayed
    assert charges(shop) == [1]


def test_the_document_shows_the_header_and_what_can_be_answered(shop: Path) -> None:
    paths = (document := make_app(shop).openapi())["paths"]
    described = paths["/charges"]["post"]
    (header,) = [p for p in described["parameters"] if p["in"] == "header"]
    assert (header["name"], header["required"]) == ("Idempotency-Key", True)
    assert (header["schema"]["minLength"], header["schema"]["maxLength"]) == (1, 255)
    pattern = re.compile(header["schema"]["pattern"])
    for key in ("k", "8e03978e-40d5-43dd-bc93-6894a57f9324", '"k"', '"a,b"', 'a"b', r'"a\"b"'):
        assert pattern.search(key)
        assert parse_key([key.encode()])
    for key in ("", "a b", "a,b", '"k', '"', "ü", '"a b"', '"k"x'):
        assert not pattern.search(key)
    replayed = described["responses"]["201"]["headers"]["Idempotent-Replayed"]
    assert replayed["schema"]["enum"] == ["true"]
    assert "Retry-After" in described["responses"]["503"]["headers"]
    assert {"400", "408", "409", "410", "413", "422", "503"} <= described["responses"].keys()
    for status in ("409", "422"):  # 422 is FastAPI's too
        assert "application/problem+json" in described["responses"][status]["content"]
    assert "application/json" in described["responses"]["422"]["content"]
    reference = described["responses"]["409"]["content"]["application/problem+json"]["schema"]
    name = reference["$ref"].rpartition("/")[2]
    assert document["components"]["schemas"][name]["required"][0] == "type"
    (optional,) = paths["/notes"]["post"]["parameters"]
    assert optional["required"] is False
    assert "parameters" not in paths["/charges"]["get"]
    assert paths["/settings/{name}"]["put"]["parameters"][-1]["required"] is True


def test_the_document_says_where_keys_are_issued_and_where_one_comes_from() -> None:
    app = FastAPI()
    idempotency = Idempotency("memory://", issuer=Issuer("0" * 32))

    @app.post("/payments")
    @idempotency.route(required="issued", form_field="key")
    async def pay() -> None:
        return

    @app.post("/accounts")
    @idempotency.route(shared=True, key=lambda request: request.json()["email"])
    async def sign_up() -> None:
        return

    init_app(app, idempotency)
    paths = app.openapi()["paths"]
    (of_payments,) = paths["/payments"]["post"]["parameters"]
    assert (of_payments["required"], "issued" in of_payments["description"]) == (True, True)
    (of_accounts,) = paths["/accounts"]["post"]["parameters"]
    assert of_accounts["required"] is False
    issuing = paths["/idempotency-keys"]["post"]
    assert issuing["responses"].keys() == {"201", "400", "408", "413"}


def test_a_model_of_ones_own_called_problem_keeps_its_name(shop: Path) -> None:
    app = FastAPI()

    @app.post("/problems")
    async def solve(problem: Problem) -> Problem:
        return problem

    init_app(app, Idempotency("memory://"))
    document = app.openapi()
    assert app.openapi() == document
    assert "mine" in document["components"]["schemas"]["Problem"]["properties"]
