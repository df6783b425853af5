"""Flask: what was raised is rolled back, in each store; and 400 where a view misses its key."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flask
import pytest
import sqlalchemy
from flask import Blueprint, Flask, Response, abort, redirect
from flask.views import MethodView
from flask_restful import Api, Resource
from flask_restful import abort as restful_abort
from werkzeug.exceptions import Conflict, HTTPException

from semel import Idempotency, Policy
from semel.operation import NoOperation
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.web.flask import init_app, operation, preconditions
from tests.servers import postgresql

KEY = {"Idempotency-Key": "k"}

Ledger = tuple[Any, Callable[[], int]]
"""A store, and how many rows the ledger beside it has."""


@pytest.fixture(params=["sqlite", "postgresql", "sqlalchemy"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    url = f"sqlite:///{tmp_path}/shop.db"
    if request.param == "postgresql":
        url = postgresql().database(f"d{uuid.uuid4().hex[:12]}")
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.exec_driver_sql("create table ledger (amount int)")

    def rows() -> int:
        with engine.connect() as connection:
            return int(connection.exec_driver_sql("select count(*) from ledger").scalar_one())

    yield SQLAlchemyStore(engine) if request.param == "sqlalchemy" else url, rows
    engine.dispose()


def write() -> None:
    statement: Any = "insert into ledger values (-5)"
    connection = operation().connection()
    if isinstance(connection, sqlalchemy.Connection):
        statement = sqlalchemy.text(statement)
    connection.execute(statement)


class Declined(Exception):
    """An error of the domain, that the application's handlers answer."""


def aborts() -> Any:
    write()
    abort(400)


def aborts_with_a_response() -> Any:
    write()
    abort(Response("declined", 402))


def raises_an_http_exception() -> Any:
    write()
    raise HTTPException(response=Response("gone", 410))


def raises_an_error_of_the_domain() -> Any:
    write()
    raise Declined(402)


def raises_what_is_answered_by_a_redirect() -> Any:
    write()
    raise Declined(302)


def raises_what_is_answered_by_a_200() -> Any:
    write()
    raise Declined(200)


def finds_nothing() -> Any:
    write()
    abort(404, "no such order")  # get_or_404


def bad_form() -> Any:
    write()
    return flask.request.form["missing"]


ROLLED_BACK = [
    (aborts, 400),
    (aborts_with_a_response, 402),
    (raises_an_http_exception, 410),
    (raises_an_error_of_the_domain, 402),
    (raises_what_is_answered_by_a_redirect, 302),
    (raises_what_is_answered_by_a_200, 200),
    (finds_nothing, 404),
    (bad_form, 400),
]


def returns_a_4xx() -> Any:
    write()
    return "declined", 402


def returns_an_http_exception() -> Any:
    write()
    return Conflict(response=Response("declined", 422))


def raises_a_redirect() -> Any:
    write()
    abort(redirect("/done", 303))


def catches_what_it_raised() -> Any:
    write()
    with contextlib.suppress(HTTPException):
        abort(400)
    return "declined", 400


COMMITTED = [
    (returns_a_4xx, 402),
    (returns_an_http_exception, 422),
    (raises_a_redirect, 303),
    (catches_what_it_raised, 400),
]


def make(store: Any, view: Any, kind: str = "a view", **settings: Any) -> Any:
    app = Flask("shop")
    app.config["SERVER_NAME"] = "localhost"
    init_app(app, Idempotency(store, **settings))

    def answered(error: Declined) -> Any:
        return f"declined: {error}", error.args[0]

    if kind == "a view":
        app.register_error_handler(Declined, answered)
        app.add_url_rule("/c", "c", view, methods=["POST"])
    elif kind == "a blueprint":
        blueprint = Blueprint("api", __name__)
        blueprint.register_error_handler(Declined, answered)
        blueprint.register_error_handler(400, lambda error: ({"error": "bad"}, 400))
        blueprint.add_url_rule("/c", "c", view, methods=["POST"])
        app.register_blueprint(blueprint)
    elif kind == "a class":
        app.register_error_handler(Declined, answered)
        cls = type("C", (MethodView,), {"post": lambda self: view()})
        app.add_url_rule("/c", view_func=cls.as_view("c"))
    else:
        app.register_error_handler(Declined, answered)
        errors = {"Declined": {"status": 402, "message": "declined"}}
        resource = type("C", (Resource,), {"post": lambda self: view()})
        Api(app, errors=errors).add_resource(resource, "/c")
    return app


@pytest.mark.parametrize("kind", ["a view", "a blueprint", "a class"])
@pytest.mark.parametrize(("view", "status"), ROLLED_BACK, ids=lambda v: getattr(v, "__name__", ""))
def test_what_was_raised_is_rolled_back_and_replayed(
    ledger: Ledger, view: Any, status: int, kind: str
) -> None:
    store, rows = ledger
    client = make(store, view, kind).test_client()
    answers = [client.post("/c", headers=KEY) for _ in range(2)]
    assert [a.status_code for a in answers] == [status] * 2
    assert [a.headers.get("Idempotent-Replayed") for a in answers] == [None, "true"]
    assert answers[0].data == answers[1].data
    assert rows() == 0


@pytest.mark.parametrize(("view", "status"), COMMITTED, ids=lambda v: getattr(v, "__name__", ""))
def test_what_was_returned_is_committed(ledger: Ledger, view: Any, status: int) -> None:
    store, rows = ledger
    client = make(store, view).test_client()
    answers = [client.post("/c", headers=KEY) for _ in range(2)]
    assert [a.status_code for a in answers] == [status] * 2
    assert answers[1].headers["Idempotent-Replayed"] == "true"
    assert rows() == 1


def restful_aborts() -> Any:
    write()
    restful_abort(409 + 13, reason="declined")


def restful_returns() -> Any:
    write()
    return {"reason": "declined"}, 422


@pytest.mark.parametrize(
    ("view", "status", "committed"),
    [
        (restful_aborts, 422, 0),
        (aborts, 400, 0),
        (raises_an_error_of_the_domain, 402, 0),
        (restful_returns, 422, 1),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_flask_restful_rolls_back_what_it_answers(
    ledger: Ledger, view: Any, status: int, committed: int, late: bool
) -> None:
    store, rows = ledger
    client = make(store, view, "Flask-RESTful").test_client()
    if late:
        Api(client.application)
    answers = [client.post("/c", headers=KEY) for _ in range(2)]
    assert [a.status_code for a in answers] == [status] * 2
    assert answers[1].headers["Idempotent-Replayed"] == "true"
    assert rows() == committed


@pytest.mark.parametrize("status", [418, 500])
def test_an_exception_in_an_after_request_function_rolls_back(ledger: Ledger, status: int) -> None:
    store, rows = ledger
    app = make(store, lambda: (write(), ("ok", 201))[1])
    fails = [True]

    @app.after_request
    def check(response: Response) -> Response:
        if fails:
            raise Declined(402)
        return response

    app.register_error_handler(500, lambda error: ("sorry", status))
    client = app.test_client()
    assert (client.post("/c", headers=KEY).status_code, rows()) == (status, 0)
    fails.clear()
    again = client.post("/c", headers=KEY)
    assert (again.status_code, rows()) == ((418, 0) if status == 418 else (201, 1))


def test_a_view_that_returns_nothing_rolls_back_whatever_the_handler_says(ledger: Ledger) -> None:
    store, rows = ledger
    app = make(store, write)
    app.register_error_handler(Exception, lambda error: ("sorry", 400))
    assert app.test_client().post("/c", headers=KEY).status_code == 400
    assert rows() == 0


@pytest.mark.parametrize("propagate", [False, True])
def test_an_unhandled_exception_frees_the_key(ledger: Ledger, propagate: bool) -> None:
    store, rows = ledger
    fails = [True]

    def view() -> Any:
        write()
        if fails:
            raise ZeroDivisionError
        return "", 201

    app = make(store, view)
    app.testing = propagate
    client = app.test_client()
    raises: Any = pytest.raises(ZeroDivisionError) if propagate else contextlib.nullcontext()
    with raises:
        assert client.post("/c", headers=KEY).status_code == 500
    assert rows() == 0
    fails.clear()
    assert (client.post("/c", headers=KEY).status_code, rows()) == (201, 1)


def test_an_atomic_stream_is_held_until_it_is_committed(ledger: Ledger) -> None:
    store, rows = ledger
    fails = [True]

    def view() -> Any:
        write()

        def parts() -> Iterator[str]:
            yield "a"
            if fails:
                raise ZeroDivisionError
            yield "b"

        return Response(parts())

    client = make(store, view).test_client()
    with pytest.raises(ZeroDivisionError):
        client.post("/c", headers=KEY)
    assert rows() == 0
    fails.clear()
    assert [client.post("/c", headers=KEY).data for _ in range(2)] == [b"ab"] * 2
    assert rows() == 1


# --- 400 without a key ---------------------------------------------------------------------------


def takes_the_operation() -> Any:
    write()
    return "", 201


SETTINGS: list[dict[str, Any]] = [
    {},
    {"DEBUG": True},
    {"TESTING": True},
    {"PROPAGATE_EXCEPTIONS": True},
    {"TRAP_HTTP_EXCEPTIONS": True},
]


@pytest.mark.parametrize("kind", ["a view", "a blueprint", "a class", "Flask-RESTful"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("catches_all", [False, True])
def test_a_key_that_is_missing_is_400(
    kind: str, settings: dict[str, Any], catches_all: bool, tmp_path: Path
) -> None:
    app = make(f"sqlite:///{tmp_path}/shop.db", takes_the_operation, kind)
    app.config.update(settings)
    if catches_all:
        app.register_error_handler(Exception, lambda error: ("caught", 500))
        for blueprint in app.blueprints:
            app.error_handler_spec[blueprint][None][Exception] = lambda error: ("caught", 500)
    answer = app.test_client().post("/c")
    assert answer.status_code == 400
    assert answer.json["type"].endswith("/key-missing")


def test_a_view_that_can_do_without_its_key_may(tmp_path: Path) -> None:
    def view() -> Any:
        try:
            operation()
        except NoOperation:
            return "without", 404
        return "with"

    client = make(f"sqlite:///{tmp_path}/shop.db", view).test_client()
    assert client.post("/c").status_code == 404
    assert client.post("/c", headers=KEY).text == "with"


@pytest.mark.parametrize("kind", ["a view", "Flask-RESTful"])
def test_preconditions_are_answered_in_each_kind_of_view(kind: str, tmp_path: Path) -> None:
    def view() -> Any:
        preconditions().require('"a"', require_match=True)
        return "", 201

    store = f"sqlite:///{tmp_path}/shop.db"
    client = make(store, view, kind, policy=Policy()).test_client()
    assert client.post("/c").status_code == 428
    assert client.post("/c", headers={"If-Match": '"b"'}).status_code == 412
