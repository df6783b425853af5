"""Strawberry: one key for each mutation, and errors that are not kept though they are 200."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import strawberry
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from strawberry.asgi import GraphQL
from strawberry.fastapi import GraphQLRouter
from strawberry.file_uploads import Upload
from strawberry.flask.views import GraphQLView
from strawberry.schema.config import StrawberryConfig

from semel import ASGIMiddleware, Idempotency, current_async_operation, current_operation
from semel.web.fastapi import init_app
from semel.web.flask import init_app as init_flask
from semel.web.strawberry import SemelExtension
from tests.http.harness import Answer, Client, asgi_server, wsgi_server
from tests.http.test_other_frameworks import Ledger

RUNS: list[str] = []


@strawberry.type
class Query:
    @strawberry.field
    def number(self) -> int:
        RUNS.append("number")
        return len(RUNS)


@strawberry.type
class AsyncMutation:
    @strawberry.mutation
    async def order(self, what: str) -> int:
        RUNS.append(what)
        db = await current_async_operation().connection()
        await db.execute(f"insert into ledger values ('{what}')")
        if what == "bad":
            raise ValueError("no such thing")
        return len(RUNS)

    @strawberry.mutation
    async def plain(self) -> int:
        RUNS.append("plain")
        return len(RUNS)

    @strawberry.mutation
    async def upload(self, file: Upload) -> str:
        RUNS.append("upload")
        return (await file.read()).decode()


@strawberry.type
class PlainMutation:
    @strawberry.mutation
    def order(self, what: str) -> int:
        RUNS.append(what)
        current_operation().connection().execute(f"insert into ledger values ('{what}')")
        if what == "bad":
            raise ValueError("no such thing")
        return len(RUNS)

    @strawberry.mutation
    def plain(self) -> int:
        RUNS.append("plain")
        return len(RUNS)


def schema(mutation: type = AsyncMutation, **settings: Any) -> strawberry.Schema:
    return strawberry.Schema(
        Query,
        mutation,
        extensions=[lambda: SemelExtension(**settings)],
        config=StrawberryConfig(batching_config={"max_operations": 5}),
    )


def fastapi_router(idempotency: Idempotency, **settings: Any) -> Any:
    app = FastAPI()
    made = schema(**settings)
    app.include_router(GraphQLRouter(made, multipart_uploads_enabled=True), prefix="/graphql")
    init_app(app, idempotency)
    return app


def own_asgi(idempotency: Idempotency, **settings: Any) -> Any:
    app = Starlette()
    app.add_route("/graphql", GraphQL(schema(**settings), multipart_uploads_enabled=True))
    return ASGIMiddleware(app, idempotency)


def flask_view(idempotency: Idempotency, **settings: Any) -> Any:
    app = Flask("shop")
    view = GraphQLView.as_view("graphql", schema=schema(PlainMutation, **settings))
    app.add_url_rule("/graphql", view_func=view, methods=["GET", "POST"])
    init_flask(app, idempotency)
    return app


@pytest.fixture(params=[fastapi_router, own_asgi, flask_view])
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    RUNS.clear()
    return Ledger(request.param, tmp_path)


@pytest.fixture
def memory() -> Idempotency:
    RUNS.clear()
    return Idempotency("memory://")


@pytest.fixture
def serve() -> Iterator[Callable[[Any], Client]]:
    with contextlib.ExitStack() as stack:

        def start(app: Any) -> Client:
            server = wsgi_server if isinstance(app, Flask) else asgi_server
            return Client(stack.enter_context(server(app)))

        yield start


def ask(client: Client, query: str, key: str | None = "k", **variables: Any) -> Answer:
    body = json.dumps({"query": query, "variables": variables}).encode()
    return client.send("/graphql", key=key, body=body)


def test_mutation_runs_once(make: Any, serve: Any, ledger: Ledger) -> None:
    client = serve(make(Idempotency(ledger.url)))
    answers = [ask(client, 'mutation { order(what: "pen") }') for _ in range(2)]
    assert [(a.status, a.replayed) for a in answers] == [(200, False), (200, True)]
    assert json.loads(answers[1].body)["data"] == {"order": 1}
    assert ledger.rows() == ["pen"]


def test_errors_are_rolled_back_and_not_kept(make: Any, serve: Any, ledger: Ledger) -> None:
    client = serve(make(Idempotency(ledger.url)))
    answers = [ask(client, 'mutation { order(what: "bad") }') for _ in range(2)]
    assert [(a.status, a.replayed) for a in answers] == [(200, False), (200, False)]
    assert all("errors" in json.loads(a.body) for a in answers)
    assert RUNS == ["bad", "bad"]
    assert ledger.rows() == []


@pytest.mark.parametrize(
    "query",
    [
        'mutation { a: order(what: "pen") b: order(what: "ink") }',
        'mutation { order(what: "pen") ...More } fragment More on {type} { plain }',
        'mutation { order(what: "pen") ... { plain } }',
    ],
)
def test_several_mutations_under_one_key_are_refused(
    make: Any, serve: Any, ledger: Ledger, query: str
) -> None:
    client = serve(make(Idempotency(ledger.url)))
    kind = "PlainMutation" if make is flask_view else "AsyncMutation"
    answers = [ask(client, query.replace("{type}", kind)) for _ in range(2)]
    for answer in answers:
        told = json.loads(answer.body)
        assert told["data"] is None
        assert "one mutation" in told["errors"][0]["message"]
        assert not answer.replayed
    assert ledger.rows() == []
    assert RUNS == []


def test_several_mutations_without_a_key_run(make: Any, serve: Any, memory: Idempotency) -> None:
    client = serve(make(memory))
    answer = ask(client, "mutation { a: plain b: plain }", key=None)
    assert json.loads(answer.body)["data"] == {"a": 1, "b": 2}


def test_skipped_fields_and_introspection_do_not_count(
    make: Any, serve: Any, memory: Idempotency
) -> None:
    client = serve(make(memory))
    query = "mutation ($no: Boolean!) { __typename a: plain b: plain @include(if: $no) }"
    answers = [ask(client, query, no=False) for _ in range(2)]
    assert [a.replayed for a in answers] == [False, True]
    assert RUNS == ["plain"]


def test_the_named_operation_counts(make: Any, serve: Any, memory: Idempotency) -> None:
    client = serve(make(memory))
    query = "mutation Two { a: plain b: plain } mutation One { plain }"
    body = json.dumps({"query": query, "operationName": "One"}).encode()
    assert json.loads(client.send("/graphql", body=body).body)["data"] == {"plain": 1}


@pytest.mark.parametrize("query", ["{ number }", "{ __schema { queryType { name } } number }"])
def test_queries_are_not_kept(make: Any, serve: Any, memory: Idempotency, query: str) -> None:
    client = serve(make(memory))
    numbers = [json.loads(ask(client, query).body)["data"]["number"] for _ in range(2)]
    assert numbers == [1, 2]
    assert json.loads(ask(client, "mutation { plain }").body)["data"] == {"plain": 3}


@pytest.mark.parametrize("query", ["mutation { plain", "mutation { nothing }"])
def test_document_that_does_not_run_is_not_kept(
    make: Any, serve: Any, memory: Idempotency, query: str
) -> None:
    client = serve(make(memory))
    assert "errors" in json.loads(ask(client, query).body)
    assert not ask(client, query).replayed
    assert json.loads(ask(client, "mutation { plain }").body)["data"] == {"plain": 1}


def test_required_is_for_mutations_only(make: Any, serve: Any, memory: Idempotency) -> None:
    client = serve(make(memory, required=True))
    refused = json.loads(ask(client, "mutation { plain }", key=None).body)
    assert refused["errors"][0]["extensions"]["code"] == "key-missing"
    assert RUNS == []
    assert "errors" not in json.loads(ask(client, "{ number }", key=None).body)
    assert "errors" not in json.loads(ask(client, "mutation { plain }").body)


def test_batch_with_a_mutation_is_refused(make: Any, serve: Any, memory: Idempotency) -> None:
    client = serve(make(memory))
    batch = [{"query": "mutation { plain }"}, {"query": "mutation { plain }"}]
    answer = client.send("/graphql", body=json.dumps(batch).encode())
    assert all("one mutation" in each["errors"][0]["message"] for each in json.loads(answer.body))
    assert RUNS == []
    alone = client.send("/graphql", key=None, body=json.dumps(batch).encode())
    assert [each["data"] for each in json.loads(alone.body)] == [{"plain": 1}, {"plain": 2}]


def test_at_most_once_keeps_errors(serve: Any, memory: Idempotency, tmp_path: Path) -> None:
    from semel import Policy

    idempotency = Idempotency("memory://", policy=Policy(guarantee="at-most-once"))
    client = serve(fastapi_router(idempotency))
    answers = [ask(client, 'mutation { order(what: "bad") }') for _ in range(2)]
    assert [a.replayed for a in answers] == [False, True]
    assert RUNS == ["bad"]


@pytest.mark.parametrize("framework", [fastapi_router, own_asgi])
def test_upload_runs_once(framework: Any, serve: Any, memory: Idempotency) -> None:
    client = serve(framework(memory))
    query = "mutation ($file: Upload!) { upload(file: $file) }"
    operations = json.dumps({"query": query, "variables": {"file": None}})

    def send(boundary: str) -> Answer:
        parts = [("operations", "", operations), ("map", "", '{"0": ["variables.file"]}')]
        parts.append(("0", '; filename="a.txt"', "hello"))
        body = "".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{text}\r\n'
            for name, more, text in parts
        )
        kind = ("Content-Type", f"multipart/form-data; boundary={boundary}")
        return client.send("/graphql", body=f"{body}--{boundary}--\r\n".encode(), headers=[kind])

    answers = [send("one"), send("two")]
    assert [a.replayed for a in answers] == [False, True]
    assert json.loads(answers[1].body)["data"] == {"upload": "hello"}
    assert RUNS == ["upload"]
