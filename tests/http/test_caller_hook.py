"""`caller=` of the middlewares: asked before the record is looked at, and its refusal goes out."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

from semel import ASGIMiddleware, Idempotency, Issuer, Policy, WSGIMiddleware
from semel.core.policy import PolicyError
from semel.web.http.callers import named_caller
from tests.http.harness import Client, asgi_server, wsgi_server

LET_IN: dict[str, str] = {}
"""Tokens and whose they are."""


class Service:
    """The same service under both protocols: who sends the token of nobody is refused."""

    def __init__(self) -> None:
        self.runs = 0
        self.bodies: list[bytes] = []

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for done in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{done}.complete"})
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        self.runs += 1
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % self.runs})

    async def ask_asgi(self, scope: Any, receive: Any) -> Any:
        await receive()  # a signature is over the body
        token = dict(scope["headers"]).get(b"x-token", b"").decode()
        return LET_IN.get(token) or refuse_asgi

    def wsgi(self, environ: Any, start_response: Any) -> list[bytes]:
        self.bodies.append(environ["wsgi.input"].read())
        self.runs += 1
        start_response("201 Created", [])
        return [b"%d" % self.runs]

    def ask_wsgi(self, environ: Any) -> Any:
        environ["wsgi.input"].read()
        return LET_IN.get(environ.get("HTTP_X_TOKEN", "")) or refuse_wsgi


async def refuse_asgi(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"www-authenticate", b"Token"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": b"no"})


def refuse_wsgi(environ: Any, start_response: Any) -> list[bytes]:
    start_response("401 Unauthorized", [("WWW-Authenticate", "Token"), ("Content-Length", "2")])
    return [b"no"]


@pytest.fixture(params=["asgi", "wsgi"])
def serve(request: pytest.FixtureRequest) -> Iterator[Any]:
    LET_IN.clear()
    LET_IN.update(one="user:ann", renewed="user:ann", other="user:bob")
    with contextlib.ExitStack() as stack:

        def start(**settings: Any) -> tuple[Client, Service]:
            service = Service()
            idempotency = Idempotency("memory://", **settings)
            if request.param == "asgi":
                app: Any = ASGIMiddleware(service.asgi, idempotency, caller=service.ask_asgi)
                return Client(stack.enter_context(asgi_server(app))), service
            app = WSGIMiddleware(service.wsgi, idempotency, caller=service.ask_wsgi)
            stack.callback(idempotency.stop)
            return Client(stack.enter_context(wsgi_server(app))), service

        yield start


def token(name: str) -> dict[str, Any]:
    return {"headers": [("X-Token", name)]}


def test_who_is_refused_gets_neither_a_claim_nor_a_replay(serve: Any) -> None:
    client, service = serve()
    assert client.send(**token("nobody's")).status == 401
    assert service.runs == 0
    first = client.send(**token("one"))
    assert (first.status, first.body) == (201, b"1")
    for _ in range(3):  # from the store, then from the cache of this process
        assert client.send(**token("one")).replayed
    assert client.send(**token("renewed")).body == b"1"
    assert client.send(**token("other")).body == b"2"
    del LET_IN["one"]
    refused = client.send(**token("one"))
    assert (refused.status, refused.header("WWW-Authenticate"), refused.body) == (
        401,
        "Token",
        b"no",
    )
    assert client.send(**token("renewed")).replayed
    assert service.runs == 2


@pytest.mark.parametrize("size", [0, 13, 3_000_000])
def test_the_handler_gets_the_body_that_the_caller_function_has_read(serve: Any, size: int) -> None:
    client, service = serve()
    body = b"x" * size
    assert client.send(body=body, **token("one")).status == 201
    assert client.send(body=body, key="other", **token("nobody's")).status == 401
    assert service.bodies == [body]


def test_keys_are_issued_to_the_caller(serve: Any) -> None:
    client, service = serve(issuer=Issuer("x" * 32), policy=Policy(required="issued"))
    ask = {"path": "/idempotency-keys", "key": None, "body": b'{"count": 1}'}
    assert client.send(**ask, **token("nobody's")).status == 401
    (key,) = json.loads(client.send(**ask, **token("one")).body)["keys"]
    assert client.send(key=key, **token("other")).problem == "key-invalid"
    assert client.send(key=key, **token("renewed")).status == 201
    assert service.runs == 1


def test_the_next_key_is_the_callers(serve: Any) -> None:
    client, service = serve(issuer=Issuer("x" * 32), policy=Policy(next_key=True))
    refused = client.send(key=None, **token("nobody's"))
    assert (refused.status, refused.header("Idempotency-Key")) == (401, None)
    key = client.send(key=None, **token("one")).header("Idempotency-Key")
    assert client.send(key=key, **token("other")).problem == "key-invalid"
    answer = client.send(key=key, **token("one"))
    assert (answer.status, len(answer.all("Idempotency-Key"))) == (201, 1)
    assert service.bodies[0] == service.bodies[1] != b""


def test_public_routes_ask_nobody(serve: Any) -> None:
    client, service = serve(routes={"POST /hooks/{name}": Policy(shared=True)})
    assert client.send(path="/hooks/a", **token("nobody's")).body == b"1"
    assert client.send(path="/hooks/a", **token("nobody's")).replayed
    assert client.send(**token("nobody's")).status == 401
    assert service.runs == 1


def test_scope_and_caller_together_are_refused() -> None:
    service = Service()
    idempotency = Idempotency("memory://", scope=lambda request: "all")
    with pytest.raises(PolicyError, match=r"caller=: Idempotency\(scope=…\)"):
        ASGIMiddleware(service.asgi, idempotency, caller=service.ask_asgi)
    with pytest.raises(PolicyError, match=r"caller=: Idempotency\(scope=…\)"):
        WSGIMiddleware(service.wsgi, idempotency, caller=service.ask_wsgi)


class _Row:
    """As asyncpg's `Record`: items by name, no attributes, and no `Mapping`."""

    def __init__(self, **columns: Any) -> None:
        self._columns = columns

    def keys(self) -> Any:
        return iter(self._columns)

    def __getitem__(self, name: str) -> Any:
        return self._columns[name]


def _sqlite_row(query: str) -> sqlite3.Row:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.row_factory = sqlite3.Row
        row: sqlite3.Row = connection.execute(query).fetchone()
        return row


@pytest.mark.parametrize(
    ("user", "name"),
    [
        (_Row(id=7, name="ann"), "user:7"),
        (_Row(user_id=8, username="bob"), "user:8"),
        (_sqlite_row("select 9 as id, 'eve' as username"), "user:9"),
        (_sqlite_row("select 'eve' as username"), "user:eve"),
    ],
)
def test_a_drivers_row_names_the_user_as_a_mapping_does(user: Any, name: str) -> None:
    assert named_caller(user) == name


def test_a_row_that_names_nobody_is_said_to() -> None:
    with pytest.raises(TypeError, match="nothing names the user"):
        named_caller(_Row(role="admin"))
