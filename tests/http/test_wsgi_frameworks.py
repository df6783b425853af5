"""Bottle, Falcon and Pyramid: what is raised, missing keys, callers, hooks after each request."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bottle
import falcon
import pytest
from pyramid import httpexceptions
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError
from pyramid.response import Response
from werkzeug.test import Client

import semel.web.bottle
import semel.web.falcon
import semel.web.pyramid
from semel import Idempotency, Issuer, Policy, current_operation
from semel.core.policy import PolicyError

KEY = {"Idempotency-Key": "k"}
USERS = {"a": 1, "a2": 1, "b": 2}
"""Tokens, and whose they are."""


class Declined(Exception):
    """An error of the domain, which each application answers with 402, or where it says so."""

    def __init__(self, status: int = 402) -> None:
        self.status = status


class Service:
    """What the handlers do, whatever the framework."""

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}/shop.db"
        self._path = path / "shop.db"
        self.users = dict(USERS)
        with sqlite3.connect(self._path) as connection:
            connection.execute("create table ledger (how)")
        connection.close()

    def rows(self) -> int:
        connection = sqlite3.connect(self._path)
        try:
            return int(connection.execute("select count(*) from ledger").fetchone()[0])
        finally:
            connection.close()

    def write(self, how: str) -> None:
        current_operation().connection().execute("insert into ledger values (?)", (how,))


def make_bottle(service: Service, idempotency: Idempotency, caller: bool = False) -> Any:
    app = bottle.Bottle()

    def answered(error: Any) -> Any:
        return {"error": str(error.body)}

    app.error(409)(answered)

    def domain(callback: Any) -> Any:
        def mapped(*args: Any, **named: Any) -> Any:
            try:
                return callback(*args, **named)
            except Declined as error:
                return bottle.HTTPResponse("declined", error.status)

        return mapped

    app.install(domain)

    @app.hook("after_request")
    def cors() -> None:
        origin = bottle.request.headers.get("Origin", "")
        bottle.response.headers["Access-Control-Allow-Origin"] = origin

    @app.post("/c/<how>")
    def c(how: str) -> Any:
        service.write(how)
        if how == "raised":
            bottle.abort(422, "declined")
        if how == "returned":
            return bottle.HTTPError(422, "declined")
        if how == "redirect":
            bottle.redirect("/done")
        if how == "domain":
            raise Declined
        if how == "streamed":
            return parts()
        bottle.response.status = 201
        return bottle.request.body.read()

    def parts() -> Iterator[bytes]:
        yield b""
        raise bottle.HTTPError(422, "declined")

    def who() -> Any:
        user = service.users.get(bottle.request.headers.get("Authorization", ""))
        return bottle.abort(401) if user is None else user

    for _ in range(2):
        semel.web.bottle.init_app(app, idempotency, caller=who if caller else None)
    return app


def make_falcon(service: Service, idempotency: Idempotency, caller: bool = False) -> Any:
    class Authentication:
        def process_request(self, req: Any, resp: Any) -> None:
            req.context.user = service.users.get(req.get_header("Authorization") or "")

        def process_response(self, req: Any, resp: Any, resource: Any, succeeded: bool) -> None:
            resp.set_header("Access-Control-Allow-Origin", req.get_header("Origin") or "")

    class C:
        def on_post(self, req: Any, resp: Any, how: str) -> None:
            service.write(how)
            if how == "raised":
                raise falcon.HTTPUnprocessableEntity(title="declined")
            if how == "redirect":
                raise falcon.HTTPSeeOther("/done")
            if how == "domain":
                raise Declined
            resp.data = req.stream.read(int(req.content_length or 0))
            resp.status = falcon.HTTP_422 if how == "returned" else falcon.HTTP_201

    def declined(req: Any, resp: Any, error: Declined, params: Any) -> None:
        resp.status = error.status

    def who(req: Any) -> Any:
        if req.context.user is None:
            raise falcon.HTTPUnauthorized
        return req.context.user

    app = falcon.App(middleware=[Authentication()])
    app.add_error_handler(Declined, declined)
    app.add_route("/c/{how}", C())
    return semel.web.falcon.init_app(app, idempotency, caller=who if caller else None)


def make_pyramid(service: Service, idempotency: Idempotency, caller: bool = False) -> Any:
    class Security:
        def identity(self, request: Any) -> Any:
            return service.users.get(request.headers.get("Authorization", ""))

        authenticated_userid = identity

        def permits(self, request: Any, context: Any, permission: Any) -> bool:
            return "X-Forbidden" not in request.headers

        def remember(self, request: Any, userid: Any, **named: Any) -> Any:
            return []

        def forget(self, request: Any, **named: Any) -> Any:
            return []

    def c(request: Any) -> Any:
        how = request.matchdict["how"]
        service.write(how)
        if how == "raised":
            raise httpexceptions.HTTPUnprocessableEntity
        if how == "returned":
            return httpexceptions.HTTPUnprocessableEntity()
        if how == "redirect":
            raise httpexceptions.HTTPSeeOther("/done")
        if how == "domain":
            raise Declined
        if how == "moved":
            raise Declined(302)
        return Response(request.body, status=201)

    def cors(handler: Any, registry: Any) -> Any:
        def tween(request: Any) -> Any:
            response = handler(request)
            response.headers["Access-Control-Allow-Origin"] = request.headers.get("Origin", "")
            return response

        return tween

    def who(request: Any) -> Any:
        if request.authenticated_userid is None:
            raise httpexceptions.HTTPUnauthorized
        return request.authenticated_userid

    config = Configurator()
    config.set_security_policy(Security())
    config.set_default_permission("order")
    config.add_route("c", "/c/{how}")
    config.add_view(c, route_name="c", request_method="POST")
    config.add_exception_view(lambda error, request: Response(status=error.status), Declined)
    config.registry.cors = cors
    config.add_tween(f"{__name__}.cors_tween")
    return semel.web.pyramid.make_wsgi_app(config, idempotency, caller=who if caller else None)


def cors_tween(handler: Any, registry: Any) -> Any:
    return registry.cors(handler, registry)


Make = Callable[..., Any]
MAKES: list[Make] = [make_bottle, make_falcon, make_pyramid]


@pytest.fixture(params=MAKES, ids=lambda make: make.__name__.removeprefix("make_"))
def make(request: pytest.FixtureRequest) -> Make:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def problem(answer: Any) -> str:
    assert answer.content_type == "application/problem+json", (answer.status, answer.text)
    return str(answer.json["type"]).rsplit("/", 1)[1]


CASES = [
    ("raised", 422, 0),
    ("returned", 422, 1),
    ("domain", 402, 0),
    ("redirect", 303, 1),
    ("ok", 201, 1),
]


@pytest.mark.parametrize(("how", "status", "committed"), CASES)
def test_what_was_raised_is_rolled_back_and_what_was_returned_is_committed(
    make: Make, service: Service, how: str, status: int, committed: int
) -> None:
    client = Client(make(service, Idempotency(service.url)))
    answers = [client.post(f"/c/{how}", headers=KEY, data=b"tea") for _ in range(2)]
    assert [a.status_code for a in answers] == [status] * 2
    assert [a.headers.get("Idempotent-Replayed") for a in answers] == [None, "true"]
    assert answers[0].data == answers[1].data
    assert answers[0].headers.get("Location") == answers[1].headers.get("Location")
    assert service.rows() == committed


def test_an_abort_within_a_stream_of_bottle_is_rolled_back(service: Service) -> None:
    client = Client(make_bottle(service, Idempotency(service.url)))
    assert [client.post("/c/streamed", headers=KEY).status_code for _ in range(2)] == [422, 422]
    assert service.rows() == 0


def test_an_error_that_pyramid_answers_by_a_redirect_is_rolled_back(service: Service) -> None:
    client = Client(make_pyramid(service, Idempotency(service.url)))
    assert [client.post("/c/moved", headers=KEY).status_code for _ in range(2)] == [302, 302]
    assert service.rows() == 0


@pytest.mark.parametrize("catches_all", [False, True])
def test_a_key_that_is_missing_is_400(make: Make, service: Service, catches_all: bool) -> None:
    app = make(service, Idempotency(service.url))
    if make is make_bottle:
        app.catchall = catches_all
    if catches_all and make is make_falcon:
        app.app.add_error_handler(Exception, lambda q, r, *more: setattr(r, "status", 500))
    answer = Client(app).post("/c/ok", data=b"tea")
    assert (answer.status_code, problem(answer)) == (400, "key-missing")
    assert service.rows() == 0


def test_a_route_that_requires_a_key_says_so(make: Make, service: Service) -> None:
    rules = {"POST /c/{how}": Policy(required=True)}
    client = Client(make(service, Idempotency(service.url, routes=rules)))
    assert problem(client.post("/c/ok")) == "key-missing"
    assert client.post("/c/ok", headers=KEY).status_code == 201
    assert problem(client.post("/c/ok", headers=KEY, data=b"other")) == "key-reused"
    assert client.post("/nowhere", headers=KEY).status_code == 404
    assert client.get("/c/ok").status_code in (404, 405)


def test_the_same_user_under_another_token_is_the_same_caller(make: Make, service: Service) -> None:
    client = Client(make(service, Idempotency(service.url), caller=True))

    def ask(token: str) -> tuple[int, str | None]:
        answer = client.post("/c/ok", headers={**KEY, "Authorization": token}, data=b"tea")
        return answer.status_code, answer.headers.get("Idempotent-Replayed")

    assert [ask(token) for token in ("a", "a2", "b", "b")] == [
        (201, None),
        (201, "true"),
        (201, None),
        (201, "true"),
    ]
    assert (ask("stranger"), service.rows()) == ((401, None), 2)
    service.users.clear()
    assert ask("a") == (401, None)  # revoked: no replay


def test_hooks_that_come_after_each_request_run_for_replays(make: Make, service: Service) -> None:
    client = Client(make(service, Idempotency(service.url)))
    for origin in ("https://a.example", "https://b.example"):
        answer = client.post("/c/ok", headers={**KEY, "Origin": origin}, data=b"tea")
        assert (answer.status_code, answer.data) == (201, b"tea")
        assert answer.headers.getlist("Access-Control-Allow-Origin") == [origin]
    assert service.rows() == 1


def test_keys_are_issued(make: Make, service: Service) -> None:
    idempotency = Idempotency(
        service.url, issuer=Issuer("x" * 32), policy=Policy(required="issued", next_key=True)
    )
    client = Client(make(service, idempotency, caller=True))
    assert client.post("/idempotency-keys").status_code == 401
    ann = {"Authorization": "a"}
    issued = client.post("/idempotency-keys", headers=ann, json={"count": 1})
    assert issued.status_code == 201
    (key,) = issued.json["keys"]  # type: ignore[index]
    answers = [
        client.post("/c/ok", headers={"Idempotency-Key": key, "Authorization": token})
        for token in ("a", "a2", "b")
    ]
    assert [a.status_code for a in answers] == [201, 201, 400]
    assert len(answers[1].headers.getlist("Idempotency-Key")) == 1


def test_pyramids_permissions_come_before_a_replay(service: Service) -> None:
    client = Client(make_pyramid(service, Idempotency(service.url)))
    assert client.post("/c/ok", headers=KEY).status_code == 201
    assert client.post("/c/ok", headers={**KEY, "X-Forbidden": "1"}).status_code == 403
    assert client.post("/c/ok", headers=KEY).headers["Idempotent-Replayed"] == "true"


def test_pyramids_views_that_are_committed_already_are_refused() -> None:
    config = Configurator()
    config.add_view(lambda request: Response(), name="c")
    config.commit()
    with pytest.raises(ConfigurationError, match="committed already"):
        semel.web.pyramid.make_wsgi_app(config, Idempotency("memory://"))


def test_marks_on_bottles_callbacks_and_mounted_applications_hold(service: Service) -> None:
    idempotency = Idempotency(service.url)
    app, mounted = bottle.Bottle(), bottle.Bottle()
    semel.web.bottle.init_app(app, idempotency)

    @app.post("/a/<n:int>")
    @idempotency.route(required=True)
    def a(n: int) -> str:
        return "a"

    @mounted.post("/b")
    @idempotency.route(required=True)
    def b() -> str:
        return "b"

    app.mount("/in/", mounted)
    client = Client(app)
    for path in ("/a/1", "/in/b"):
        assert problem(client.post(path)) == "key-missing"
        answers = [client.post(path, headers={"Idempotency-Key": path}) for _ in range(2)]
        assert [a.headers.get("Idempotent-Replayed") for a in answers] == [None, "true"]


def test_a_mark_that_no_adapter_finds_keeps_the_application_from_serving(service: Service) -> None:
    idempotency = Idempotency(service.url)
    app = make_falcon(service, idempotency)
    idempotency.route(required=True)(service.write.__func__)  # type: ignore[attr-defined]
    with pytest.raises(PolicyError, match="rules would be lost"):
        Client(app).post("/c/ok")


def test_bottle_is_not_given_another_caller_by_a_second_call(tmp_path: Path) -> None:
    app, idempotency = bottle.Bottle(), Idempotency("memory://")
    semel.web.bottle.init_app(app, idempotency, caller=lambda: "ann")
    semel.web.bottle.init_app(app, idempotency)
    for other in (
        lambda: semel.web.bottle.init_app(app, idempotency, caller=lambda: "bob"),
        lambda: semel.web.bottle.init_app(app, Idempotency("memory://")),
    ):
        with pytest.raises(PolicyError, match="protected already"):
            other()
