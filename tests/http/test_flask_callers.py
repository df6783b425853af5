"""Flask: who asks. `caller=`, Flask-Login's user, sessions read as what they mean, credentials."""

from __future__ import annotations

import logging
import types
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from flask import Flask, abort, flash, g, make_response, request, session
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from werkzeug.exceptions import Unauthorized
from werkzeug.local import LocalProxy

from semel import Idempotency, Policy
from semel.core.policy import PolicyError
from semel.web.flask import init_app

KEY = {"Idempotency-Key": "k"}
PAYLOAD = Policy(key="payload", window=timedelta(minutes=5))


class User:
    def __init__(self, id: Any, *, active: bool = True) -> None:
        self.id = id
        self.is_authenticated = active


class Shop:
    """A shop whose orders say how many there were; `login` sets a session's content."""

    def __init__(self, caller: Any = None, **settings: Any) -> None:
        self.app, self.made = Flask("shop"), 0
        self.app.secret_key = "x"
        self.app.add_url_rule("/order", "order", self.order, methods=["POST"])
        self.app.add_url_rule("/login", "login", self.login, methods=["PUT"])
        init_app(self.app, Idempotency("memory://", **settings), caller=caller)

    def order(self) -> str:
        self.made += 1
        flash("Your order is on its way!")
        return f"order {self.made}"

    def login(self) -> str:
        session.update(request.get_json())
        return ""

    def client(self, **logged_in: Any) -> Any:
        client = self.app.test_client()
        if logged_in:
            client.put("/login", json=logged_in)
        return client


def ordered(client: Any, **headers: str) -> str:
    answer = client.post("/order", json={"item": "tea"}, headers={**KEY, **headers})
    assert answer.status_code == 200, answer.text
    return str(answer.text)


# --- the session ---------------------------------------------------------------------------------

SESSIONS = [
    ({"_user_id": "1", "_fresh": True, "_id": "same browser"}, {"_user_id": "2", "_fresh": True}),
    ({"user_id": 1}, {"user_id": 2}),
    ({"user": "ann"}, {"user": "bob"}),
    ({"user": {"sub": "a|1", "name": "Ann"}}, {"user": {"sub": "a|2", "name": "Ann"}}),
    ({"user": {"userinfo": {"sub": "1"}, "id_token": ""}}, {"user": {"userinfo": {"sub": "2"}}}),
    ({"profile": {"user_id": "1", "name": "Ann"}}, {"profile": {"user_id": "2", "name": "Ann"}}),
    ({"username": "ann", "logged_in": True}, {"username": "bob", "logged_in": True}),
]


@pytest.mark.parametrize("settings", [{}, {"session_cookie": "session"}])
@pytest.mark.parametrize(("ann", "bob"), SESSIONS)
def test_a_session_is_whose_it_says(ann: Any, bob: Any, settings: Any) -> None:
    shop = Shop(**settings)
    first, second = shop.client(**ann), shop.client(**bob)
    assert [ordered(first) for _ in range(3)] == ["order 1"] * 3  # each flashes a message
    assert [ordered(second) for _ in range(2)] == ["order 2"] * 2
    assert ordered(shop.client(**ann, theme="dark")) == "order 1"  # another browser of hers
    assert shop.made == 2


@pytest.mark.parametrize("settings", [{}, {"session_cookie": "session"}])
def test_the_payload_of_two_people_who_are_logged_in_is_two_orders(settings: Any) -> None:
    shop = Shop(routes={"POST /order": PAYLOAD}, **settings)
    ann, bob = shop.client(user="ann"), shop.client(user="bob")
    for client, order in ((ann, "order 1"), (bob, "order 2"), (ann, "order 1")):
        assert client.post("/order", json={"item": "tea"}).text == order


def test_sessions_of_strangers_are_no_names() -> None:
    shop = Shop(routes={"POST /order": PAYLOAD})
    carts = [shop.client(cart=["tea"]), shop.client(cart=["milk"]), shop.client(logged_in=True)]
    assert [c.post("/order", json={}).text for c in carts] == ["order 1", "order 2", "order 3"]


class KeptSession(SecureCookieSession):
    sid = ""


class KeptSessions(SecureCookieSessionInterface):
    """Sessions that the server keeps, the cookie an id: what Flask-Session does."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}
        self.last = 0

    def open_session(self, app: Any, request: Any) -> Any:
        sid = request.cookies.get(app.config["SESSION_COOKIE_NAME"])
        if sid is None:
            self.last += 1
            sid = f"sid-{self.last}"
        opened = KeptSession(self.kept.get(sid, {}))
        opened.sid = sid
        return opened

    def save_session(self, app: Any, session: Any, response: Any) -> None:
        if session:
            self.kept[session.sid] = dict(session)
            response.set_cookie(app.config["SESSION_COOKIE_NAME"], session.sid)


def test_a_session_that_the_server_keeps_is_a_caller_and_one_that_begins_is_none() -> None:
    shop = Shop()
    shop.app.config["SESSION_COOKIE_NAME"] = "sid"
    shop.app.session_interface = KeptSessions()
    first, second = shop.client(cart=["tea"]), shop.client(cart=["milk"])
    assert [ordered(c) for c in (first, second, first, second)] == [
        "order 1",
        "order 2",
        "order 1",
        "order 2",
    ]
    new = shop.app.test_client(use_cookies=False)
    assert [ordered(new) for _ in range(2)] == ["order 3"] * 2
    named = shop.client(user_id=7, cart=[])
    assert ordered(named) == ordered(shop.client(user_id=7)) == "order 4"


def test_another_cookie_and_the_credentials_tell_callers_apart_as_everywhere() -> None:
    shop = Shop(session_cookie="api_session")
    first, second = shop.client(), shop.client()
    first.set_cookie("api_session", "one")
    second.set_cookie("api_session", "two")
    assert [ordered(c) for c in (first, second, first)] == ["order 1", "order 2", "order 1"]
    client = Shop().client()
    tokens = [{"Authorization": "Bearer a"}, {"X_API_Key": "k"}, {"Authorization": "Bearer a"}]
    headers = [{name.replace("_", "-"): value for name, value in each.items()} for each in tokens]
    assert [ordered(client, **each) for each in headers] == ["order 1", "order 2", "order 1"]


def test_whom_the_server_has_authenticated_goes_before_the_session() -> None:
    shop = Shop()
    client = shop.client(user_id=1)
    environ = {"environ_overrides": {"REMOTE_USER": "ann"}, "json": {}}
    assert client.post("/order", headers=KEY, **environ).text == "order 1"
    assert client.post("/order", headers=KEY, json={}).text == "order 2"
    assert shop.client().post("/order", headers=KEY, **environ).text == "order 1"


# --- Flask-Login ---------------------------------------------------------------------------------


def test_flask_logins_user_is_the_caller_where_it_is_initialised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    users = {"a": User(1), "a2": User(1), "b": User(2), "none": User(None, active=False)}
    shop = Shop()
    login = types.ModuleType("flask_login")
    login.current_user = LocalProxy(lambda: users[request.headers["X-Who"]])  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "flask_login", login)
    client = shop.client()
    assert ordered(client, **{"X-Who": "a"}) == ordered(client, **{"X-Who": "b"}) == "order 1"
    shop.app.login_manager = object()  # type: ignore[attr-defined]
    who = [ordered(client, **{"X-Who": each}) for each in ("a", "a2", "b", "none")]
    assert who == ["order 2", "order 2", "order 3", "order 1"]


# --- caller= -------------------------------------------------------------------------------------


def bearer() -> Any:
    """A function as applications have it: finds the user of the token, or refuses."""
    users = {"a": User(1), "a2": User(1), "b": User(2)}
    user = users.get(request.headers.get("Authorization", ""))
    if user is None:
        abort(401)
    g.user = user
    return user


CALLERS = {
    "the user": bearer,
    "a proxy of it": lambda: LocalProxy(bearer),
    "its id": lambda: bearer().id,
    "a UUID": lambda: UUID(int=bearer().id),
    "claims": lambda: {"sub": str(bearer().id), "jti": request.headers["Authorization"]},
    "what get_id gives": lambda: types.SimpleNamespace(get_id=lambda: str(bearer().id)),
}


@pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS.keys())
def test_the_same_user_under_another_token_is_the_same_caller(caller: Any) -> None:
    shop = Shop(caller)
    client = shop.client()
    answers = [ordered(client, Authorization=token) for token in ("a", "a2", "b", "a")]
    assert answers == ["order 1", "order 1", "order 2", "order 1"]
    refused = client.post("/order", headers={**KEY, "Authorization": "revoked"}, json={})
    assert (refused.status_code, shop.made) == (401, 2)


REFUSALS = {
    "abort": lambda: abort(401),
    "an exception": lambda: (_ for _ in ()).throw(Unauthorized()),
    "a response": lambda: make_response({"error": "no"}, 401),
    "its own error": lambda: (_ for _ in ()).throw(PermissionError()),
}


@pytest.mark.parametrize("refuse", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_goes_out_through_the_error_handlers_and_claims_nothing(refuse: Any) -> None:
    let_in = [True]
    shop = Shop(lambda: "ann" if let_in else refuse())
    shop.app.register_error_handler(401, lambda error: ({"error": "no"}, 401))
    shop.app.register_error_handler(PermissionError, lambda error: ({"error": "no"}, 401))
    client = shop.client()
    let_in.clear()
    refused = client.post("/order", headers=KEY, json={"item": "tea"})
    assert (refused.status_code, refused.json, shop.made) == (401, {"error": "no"}, 0)
    let_in.append(True)
    assert [ordered(client) for _ in range(2)] == ["order 1"] * 2
    let_in.clear()
    assert client.post("/order", headers=KEY, json={"item": "tea"}).status_code == 401


def test_the_caller_is_asked_after_before_request_functions_and_may_read_the_body() -> None:
    shop = Shop(lambda: (g.tenant, request.get_json()["user"])[1])
    shop.app.before_request(lambda: setattr(g, "tenant", 1))
    client = shop.client()
    answers = [
        client.post("/order", headers=KEY, json={"user": user}).text for user in ("a", "b", "a")
    ]
    assert answers == ["order 1", "order 2", "order 1"]


def test_a_public_route_asks_nobody() -> None:
    public = Policy(key="payload", shared=True, window=timedelta(minutes=1))
    shop = Shop(lambda: abort(401), routes={"POST /order": public})
    clients = [shop.client(), shop.client()]
    assert [c.post("/order", json={}).text for c in clients] == ["order 1"] * 2


def test_nobody_is_asked_where_there_is_no_key() -> None:
    shop = Shop(lambda: abort(401))
    assert shop.client().post("/order", json={}).status_code == 200


def test_somebody_whom_nothing_names_is_an_error_that_says_so() -> None:
    shop = Shop(lambda: object())
    shop.app.testing = True
    with pytest.raises(TypeError, match="nothing names the user"):
        shop.client().post("/order", headers=KEY, json={})


def test_keys_from_content_are_refused_where_no_caller_can_be_told() -> None:
    app = Flask("shop")
    app.add_url_rule("/order", "order", lambda: "", methods=["POST"])
    init_app(app, Idempotency("memory://", routes={"POST /order": PAYLOAD}))
    with pytest.raises(PolicyError, match="nothing tells its callers apart"):
        app.test_client().post("/order", json={})


def test_a_start_where_callers_cannot_be_told_apart_warns(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "semel")
    for caller, warned in ((None, True), (lambda: "ann", False)):
        caplog.clear()
        app = Flask("shop")
        app.add_url_rule("/order", "order", lambda: "", methods=["POST"])
        init_app(app, Idempotency("memory://"), caller=caller)
        app.test_client().post("/order", headers=KEY)
        assert ("POST /order" in caplog.text) is warned
