"""The idempotent methods over real servers: FastAPI and Flask, on SQLite."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from flask import Flask

from semel import Idempotency
from semel.core import problems
from semel.web import fastapi as for_fastapi
from semel.web import flask as for_flask
from semel.web.conditional import NotMet, Preconditions
from semel.web.conditional.etags import parse_tags
from tests.http.documents import TABLES, database, make_fastapi, make_flask
from tests.http.harness import Answer, Client, asgi_server, wsgi_server

PATH = "/documents/a"


@pytest.fixture(params=["fastapi", "flask"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    url = f"sqlite:///{tmp_path}/documents.db"
    with database(url) as db:
        db.execute(TABLES["sqlite"])
    running = (
        asgi_server(make_fastapi(url))
        if request.param == "fastapi"
        else wsgi_server(make_flask(url))
    )
    with running as port:
        yield Client(port)


@pytest.fixture
def send(client: Client) -> Callable[..., Answer]:
    keys = iter(range(1000))

    def send(method: str, path: str = PATH, body: bytes = b"", key: str = "", **fields: str) -> Any:
        headers = [(name.replace("_", "-"), value) for name, value in fields.items()]
        named = key or (f"k{next(keys)}" if method not in ("GET", "HEAD") else None)
        return client.send(path, named, body, method, headers)

    return send


Send = Callable[..., Answer]


def content(send: Send) -> bytes:
    return send("GET").body


def test_a_put_creates_then_replaces(send: Send) -> None:
    first = send("PUT", body=b"one")
    assert (first.status, first.header("Location"), first.body) == (201, PATH, b"created")
    second = send("PUT", body=b"two")
    assert (second.status, second.header("Location"), second.body) == (200, None, b"replaced")
    assert first.header("ETag") != second.header("ETag") == send("GET").header("ETag")
    assert content(send) == b"two"


def test_a_put_with_a_star_creates_only(send: Send) -> None:
    assert send("PUT", body=b"one", If_None_Match="*").status == 201
    refused = send("PUT", body=b"two", If_None_Match="*")
    assert (refused.status, refused.problem) == (412, "precondition-failed")
    assert refused.header("Link") is not None
    assert content(send) == b"one"


def test_a_change_is_made_to_the_state_that_was_read_and_no_other(send: Send) -> None:
    read = send("PUT", body=b"one").header("ETag") or ""
    assert send("PUT", body=b"two", If_Match=read).status == 200
    for method in ("PUT", "PATCH", "DELETE"):
        refused = send(method, body=b"lost", If_Match=read)
        assert (refused.status, refused.problem) == (412, "precondition-failed")
    assert content(send) == b"two"
    read = send("GET").header("ETag") or ""
    patched = send("PATCH", body=b"!", If_Match=f'"other", {read}')
    assert (patched.status, patched.body) == (204, b"")
    assert content(send) == b"two!"
    assert patched.header("ETag") == send("GET").header("ETag")


def test_a_change_without_a_condition_is_refused_where_one_is_required(send: Send) -> None:
    send("PUT", body=b"one")
    for answer in (send("PATCH", body=b"x"), send("PUT", PATH + "?must=1", body=b"x")):
        assert (answer.status, answer.problem) == (428, "precondition-required")
    assert content(send) == b"one"


def test_a_condition_that_cannot_be_read_is_refused(send: Send) -> None:
    send("PUT", body=b"one")
    refused = send("PUT", body=b"x", If_Match="unquoted")
    assert (refused.status, refused.problem) == (400, "precondition-invalid")
    assert send("GET", If_None_Match="unquoted").status == 200
    assert content(send) == b"one"


def test_a_tag_does_not_come_back_with_another_resource_of_that_name(send: Send) -> None:
    read = send("PUT", body=b"one").header("ETag") or ""
    assert send("DELETE").status == 204
    assert send("PUT", body=b"other").status == 201
    assert send("PUT", body=b"lost", If_Match=read).status == 412


def test_deleting_again_and_again_is_answered_alike(send: Send) -> None:
    read = send("PUT", body=b"one").header("ETag") or ""
    for fields in ({"If_Match": read}, {"If_Match": read}, {}):
        answer = send("DELETE", **fields)
        assert (answer.status, answer.body, answer.header("Content-Length")) == (204, b"", None)
    assert send("DELETE", PATH + "?strict=1").status == 404
    assert send("PATCH", body=b"x", If_Match=read).status == 404


def test_a_read_that_has_it_already_gets_304_and_no_body(send: Send) -> None:
    tag = send("PUT", body=b"one").header("ETag") or ""
    for method in ("GET", "HEAD"):
        answer = send(method, If_None_Match=f"W/{tag}")
        assert (answer.status, answer.body) == (304, b"")
        assert (answer.header("ETag"), answer.header("Cache-Control")) == (tag, "private")
        assert answer.header("Date") is not None
        assert answer.header("Content-Type") is None
    assert send("GET", If_None_Match='"other"').body == b"one"
    assert send("GET", If_Match='"other"').problem == "precondition-failed"


def test_head_is_get_without_the_body(send: Send) -> None:
    send("PUT", body=b"one")
    get, head = send("GET"), send("HEAD")
    assert (get.status, head.status, get.body, head.body) == (200, 200, b"one", b"")

    def lasting(answer: Answer) -> list[tuple[str, str]]:
        return sorted((n.lower(), v) for n, v in answer.headers if n.lower() != "date")

    assert lasting(get) == lasting(head)
    assert head.header("Content-Length") == "3"


# --- the key is looked up before the preconditions ----------------------------------------------


@pytest.mark.parametrize("path", [PATH, "/plain/a"])
def test_a_retry_of_ones_own_change_gets_its_answer_and_not_412(send: Send, path: str) -> None:
    read = send("PUT", body=b"one").header("ETag") or ""
    first = send("PUT", path, body=b"two", key="mine", If_Match=read)
    repeat = send("PUT", path, body=b"two", key="mine", If_Match=read)
    assert (first.status, first.replayed) == (200 if path == PATH else 204, False)
    assert (repeat.status, repeat.replayed, repeat.body) == (first.status, True, first.body)
    assert repeat.header("ETag") == first.header("ETag") == send("GET").header("ETag")


def test_without_a_key_the_retry_of_a_lost_answer_is_refused_by_ones_own_change(
    client: Client, send: Send
) -> None:
    read = send("PUT", body=b"one").header("ETag") or ""
    change = ("/plain/a", None, b"two", "PUT", [("If-Match", read)])
    assert client.send(*change).status == 204  # and suppose that this answer is lost
    refused = client.send(*change)
    assert (refused.status, refused.problem) == (412, "precondition-failed")
    assert content(send) == b"two"


def test_a_retry_of_a_delete_and_of_a_creation_gets_its_answer(send: Send) -> None:
    for _ in range(2):
        assert send("PUT", body=b"one", key="create", If_None_Match="*").status == 201
    tag = send("GET").header("ETag") or ""
    for replayed in (False, True):
        answer = send("DELETE", key="delete", If_Match=tag)
        assert (answer.status, answer.replayed) == (204, replayed)


def test_a_definite_no_stays_no_under_its_key_when_the_resource_comes_to_match(send: Send) -> None:
    """A copy of the request that was long on its way must not act after its client was told no."""
    refused = send("PUT", body=b"two", key="late", If_Match="*")
    assert refused.problem == "precondition-failed"
    send("PUT", body=b"one")
    again = send("PUT", body=b"two", key="late", If_Match="*")
    assert (again.problem, again.replayed) == ("precondition-failed", True)
    assert content(send) == b"one"
    assert send("PUT", body=b"two", key="new", If_Match="*").status == 200


def test_a_request_that_lacked_its_condition_may_be_mended_under_its_key(send: Send) -> None:
    tag = send("PUT", body=b"one").header("ETag") or ""
    for _ in range(2):
        refused = send("PATCH", body=b"!", key="mended")
        assert (refused.problem, refused.replayed) == ("precondition-required", False)
    assert send("PATCH", body=b"!", key="mended", If_Match=tag).status == 204
    repeat = send("PATCH", body=b"!", key="mended")
    assert (repeat.status, repeat.replayed) == (204, True)
    assert content(send) == b"one!"


# --- the adapters ------------------------------------------------------------------------------


@pytest.fixture(params=["fastapi", "flask"])
def refusing(request: pytest.FixtureRequest) -> Callable[[Any], Answer]:
    """Ask an application that refuses everything, set up by `prepare`."""

    def ask(prepare: Callable[[Any, Any], None]) -> Answer:
        if request.param == "fastapi":
            app: Any = FastAPI()

            @app.put("/x")
            async def put(when: Preconditions = Depends(for_fastapi.preconditions)) -> None:  # noqa: B008
                when.overtaken()

            prepare(app, for_fastapi)
            running = asgi_server(app)
        else:
            app = Flask(__name__)
            app.add_url_rule(
                "/x", methods=["PUT"], view_func=lambda: for_flask.preconditions().overtaken()
            )
            prepare(app, for_flask)
            running = wsgi_server(app)
        with running as port:
            return Client(port).send("/x", None, b"", "PUT")

    return ask


def test_the_problem_leads_to_the_services_own_pages(refusing: Any) -> None:
    def prepare(app: Any, adapter: Any) -> None:
        adapter.init_app(app, Idempotency("memory://", problem_base="https://example.org/"))

    told = json.loads(refusing(prepare).body)
    assert told["type"] == "https://example.org/precondition-failed"


def test_without_init_app_one_line_answers_the_refusals(refusing: Any) -> None:
    def prepare(app: Any, adapter: Any) -> None:
        register = getattr(app, "add_exception_handler", None) or app.register_error_handler
        register(NotMet, adapter.not_met)

    assert json.loads(refusing(prepare).body)["type"].startswith(problems.BASE)


def test_who_forgets_that_line_is_told(tmp_path: Path) -> None:
    app = FastAPI()

    @app.put("/x")
    async def put(when: Preconditions = Depends(for_fastapi.preconditions)) -> None:  # noqa: B008
        when.overtaken()

    with pytest.raises(NotMet, match="register the adapter's not_met"), TestClient(app) as asked:
        asked.put("/x")


def test_the_document_shows_the_conditions_and_their_answers() -> None:
    document = make_fastapi("memory://").openapi()
    methods = document["paths"]["/documents/{name}"]
    for method in ("put", "patch", "delete", "get", "head"):
        names = {p["name"]: p for p in methods[method]["parameters"]}
        assert not names["If-Match"]["required"]
        assert not names["If-None-Match"]["required"]
        tags = re.compile(names["If-Match"]["schema"]["pattern"])
        for given in ("", "*", '"a"', 'W/"a"', '"a", "b"', '"a",,"b" ,', '""'):
            assert tags.search(given)
            parse_tags(given)
        for given in ("a", "*, *", '"a" "b"', '"a'):
            assert not tags.search(given)
            with pytest.raises(ValueError, match="entity tags"):
                parse_tags(given)
        answers = methods[method]["responses"]
        reads = method in ("get", "head")
        assert "application/problem+json" in answers["412"]["content"]
        assert problems.PRECONDITION_INVALID.title in answers["400"]["description"]
        assert ("304" in answers, "428" in answers) == (reads, not reads)
        assert ("409" in answers) is not reads
    assert problems.KEY_MISSING.title in methods["put"]["responses"]["400"]["description"]
