"""Flask: `init_app`, the operation in a view, rules beside the view, errors."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response, request
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from semel import Idempotency, WSGIMiddleware
from semel.web.flask import init_app, operation
from tests.http.harness import Client, wsgi_server


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
def serve() -> Iterator[Callable[[Any], Client]]:
    with contextlib.ExitStack() as stack:
        yield lambda app: Client(stack.enter_context(wsgi_server(app)))


def make_app(shop: Path, **settings: Any) -> Flask:
    app = Flask(__name__)
    idempotency = Idempotency(f"sqlite:///{shop}", **settings)

    @app.post("/charges")
    @idempotency.route(guarantee="atomic")
    def charge() -> Any:
        op = operation()
        op.connection().execute("insert into charges values (?)", (request.get_json()["amount"],))
        if request.args.get("fail"):
            raise RuntimeError("on purpose")
        return {"attempt": op.attempt}, 201

    @app.route("/settings/<int:number>", methods=["GET", "PUT"])
    @idempotency.route(required=True)
    def change(number: int) -> Any:
        return {"number": number}

    @app.post("/forgets")
    @idempotency.route(guarantee="atomic")
    def forgets() -> Any:
        return {}

    @app.post("/upload")
    def upload() -> Any:
        return {"size": len(request.files["file"].read())}

    @app.post("/stream")
    def stream() -> Response:
        op = operation()
        op.connection().execute("insert into charges values (1)")
        op.commit()
        return Response(iter([b"a", b"b"]))

    init_app(app, idempotency)
    return app


def test_a_view_charges_in_the_transaction_that_holds_the_key(shop: Path, serve: Any) -> None:
    client = serve(make_app(shop))
    first, repeat = client.send("/charges"), client.send("/charges")
    assert (first.status, repeat.status, repeat.body) == (201, 201, first.body)
    assert repeat.replayed
    assert charges(shop) == [5]


def test_a_view_that_raises_rolls_back(shop: Path, serve: Any) -> None:
    client = serve(make_app(shop))
    assert client.send("/charges?fail=1").status == 500
    assert charges(shop) == []


def test_a_view_that_takes_the_operation_needs_a_key(shop: Path, serve: Any) -> None:
    refused = serve(make_app(shop)).send("/charges", key=None)
    assert (refused.status, refused.problem, charges(shop)) == (400, "key-missing", [])
    assert refused.header("Link") is not None


def test_rules_beside_the_view_hold_for_its_path_and_methods(shop: Path, serve: Any) -> None:
    client = serve(make_app(shop))
    assert client.send("/settings/1", key=None, method="PUT").problem == "key-missing"
    assert client.send("/settings/1", method="PUT").status == 200
    assert client.send("/settings/1", method="PUT").replayed
    assert client.send("/settings/1", key=None, method="GET", body=b"").status == 200


def test_a_view_that_forgets_the_connection_is_an_error(shop: Path, serve: Any) -> None:
    assert serve(make_app(shop)).send("/forgets").problem == "connection-not-taken"


def test_an_upload_reaches_the_view(shop: Path, serve: Any) -> None:
    client = serve(make_app(shop))
    head = b'Content-Disposition: form-data; name="file"; filename="f"'
    body = b"--b\r\n%s\r\n\r\n%s\r\n--b--\r\n" % (head, b"x" * 2_000_000)
    kind = [("Content-Type", "multipart/form-data; boundary=b")]
    assert b"2000000" in client.send("/upload", body=body, headers=kind).body
    assert client.send("/upload", body=body, headers=kind).replayed


def test_a_committed_stream_passes_and_is_not_run_again(shop: Path, serve: Any) -> None:
    client = serve(make_app(shop))
    assert client.send("/stream").body == b"ab"
    assert client.send("/stream").problem == "response-not-kept"
    assert charges(shop) == [1]


def test_the_server_authenticates_or_the_credentials_do(serve: Any) -> None:
    app = Flask(__name__)
    runs: list[int] = []

    @app.post("/run")
    def run() -> str:
        runs.append(1)
        return str(len(runs))

    init_app(app, Idempotency("memory://"))

    def authenticated(environ: Any, start_response: Any) -> Any:
        environ["REMOTE_USER"] = environ.get("HTTP_AUTHORIZATION", "").partition(".")[0]
        return app(environ, start_response)

    client = serve(authenticated)
    assert client.send(headers=[("Authorization", "alice.1")]).body == b"1"
    assert client.send(headers=[("Authorization", "alice.2")]).body == b"1"
    assert client.send(headers=[("Authorization", "bob.1")]).body == b"2"


def test_rules_hold_where_the_application_is_mounted(shop: Path, serve: Any) -> None:
    mounted = DispatcherMiddleware(Flask("root"), {"/api": make_app(shop)})
    refused = serve(mounted).send("/api/settings/1", key=None, method="PUT")
    assert (refused.status, refused.problem) == (400, "key-missing")


def test_a_chunked_body_whose_end_nobody_marks_is_an_error_and_not_an_empty_request() -> None:
    runs: list[int] = []

    def app(environ: Any, start_response: Any) -> Any:
        runs.append(1)
        start_response("200 OK", [])
        return [b""]

    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/run",
        "HTTP_IDEMPOTENCY_KEY": "k",
        "HTTP_TRANSFER_ENCODING": "chunked",
        "wsgi.input": None,
    }
    middleware = WSGIMiddleware(app, Idempotency("memory://"))
    with pytest.raises(RuntimeError, match="chunked body"):
        middleware(environ, lambda *told: lambda data: None)
    assert runs == []
