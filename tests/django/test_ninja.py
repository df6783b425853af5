"""Django Ninja: who asks, what is raised, marks, and the key in its OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from rest_framework.authtoken.models import Token

from semel.web.django.checks import check_views
from tests.django import ninja_api, views
from tests.django.test_middleware import orders

BODY = b'{"item": "tea"}'
PATHS = ("/api/orders", "/api/async_orders")


@pytest.fixture(params=["sqlite"])
def vendor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def shop(database: Any) -> None:
    ninja_api.tokens.clear()
    ninja_api.asked.clear()
    ninja_api.Counted.count = 0


def bearer(token: str) -> list[tuple[str, str]]:
    return [("Authorization", f"Bearer {token}")]


@pytest.mark.parametrize("path", PATHS)
def test_its_authenticators_are_asked_before_a_replay_and_once(serve: Any, path: str) -> None:
    client, tokens = serve(), ninja_api.tokens
    tokens["a"] = User.objects.create_user("alice")
    first, repeat = (client.send(path, body=BODY, headers=bearer("a")) for _ in range(2))
    assert (first.status, repeat.body, repeat.replayed) == (201, first.body, True)
    assert ninja_api.asked == ["a", "a"]
    del tokens["a"]  # revoked
    revoked = client.send(path, body=BODY, headers=bearer("a"))
    assert (revoked.status, json.loads(revoked.body)) == (401, {"detail": "Unauthorized"})
    assert client.send(path, body=BODY).status == 401
    tokens["b"] = User.objects.get(username="alice")
    assert client.send(path, body=BODY, headers=bearer("b")).replayed
    tokens["c"] = User.objects.create_user("bob")
    assert not client.send(path, body=BODY, headers=bearer("c")).replayed
    assert len(views.runs) == 2


@pytest.mark.parametrize("found", ["claims", "number", "token"])
def test_what_an_authenticator_returned_names_the_caller(serve: Any, found: str) -> None:
    client, alice = serve(), User.objects.create_user("alice")

    class Token:
        user = alice

    kinds = {"claims": {"sub": str(alice.pk)}, "number": alice.pk, "token": Token()}
    ninja_api.tokens.update({"one": kinds[found], "two": kinds[found], "user": alice})
    assert client.send(PATHS[0], body=BODY, headers=bearer("one")).status == 201
    assert client.send(PATHS[0], body=BODY, headers=bearer("two")).replayed
    other = client.send(PATHS[0], body=BODY, headers=bearer("user"))
    assert other.replayed is (found == "token")  # of another kind is another


@pytest.mark.parametrize(
    ("path", "header", "value"),
    [("/api/keyed/pay", "X-Shop-Key", "{}"), ("/api/cookie", "Cookie", "shop={}")],
)
def test_one_whom_an_api_key_lets_in_gets_no_others_response(
    serve: Any, path: str, header: str, value: str
) -> None:
    client = serve()
    ninja_api.tokens.update({"key-of-A": True, "key-of-B": True})
    assert client.send(path, headers=[(header, value.format("key-of-A"))]).body == b"1"
    assert client.send(path, headers=[(header, value.format("key-of-B"))]).body == b"2"
    assert client.send(path, headers=[(header, value.format("key-of-A"))]).replayed
    assert client.send(path, headers=[(header, value.format("none"))]).status == 401
    assert client.send(path).status == 401


def test_its_session_authentication_asks_for_the_csrf_token_of_a_replay(serve: Any) -> None:
    from django.test import Client as Browser

    client, browser = serve(), Browser()
    browser.force_login(User.objects.create_user("alice"))
    secret = "a" * 32
    cookies = [("Cookie", f"sessionid={browser.cookies['sessionid'].value}; csrftoken={secret}")]
    proof = [*cookies, ("X-CSRFToken", secret)]
    assert client.send("/api/session", headers=proof).body == b'"alice"'
    assert client.send("/api/session", headers=proof).replayed
    assert client.send("/api/session", headers=cookies).status == 403
    assert client.send("/api/session").status in (401, 403)


@pytest.mark.parametrize("vendor", ["sqlite", "postgresql"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("how", ["http", "domain", "returned"])
def test_what_is_raised_is_undone_and_what_is_returned_stays(
    serve: Any, path: str, how: str
) -> None:
    client = serve()
    ninja_api.tokens["a"] = "alice"
    sent = [client.send(f"{path}?how={how}", body=BODY, headers=bearer("a")) for _ in range(2)]
    assert [(each.status, each.replayed) for each in sent] == [(402, False), (402, True)]
    assert orders() == (["tea"] if how == "returned" else [])
    assert len(views.runs) == 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("debug", [False, True])
def test_what_broke_may_be_tried_again(serve: Any, path: str, debug: bool) -> None:
    client = serve(DEBUG=debug)
    ninja_api.tokens["a"] = "alice"
    for _ in range(2):
        assert client.send(f"{path}?how=broken", body=BODY, headers=bearer("a")).status == 500
    assert (orders(), len(views.runs)) == ([], 2)


def test_a_request_that_it_does_not_understand_is_kept(serve: Any) -> None:
    client = serve()
    ninja_api.tokens["a"] = "alice"
    first, repeat = (client.send(PATHS[0], body=b"{}", headers=bearer("a")) for _ in range(2))
    assert (first.status, repeat.status, repeat.replayed) == (422, 422, True)


def test_its_throttles_are_asked_in_the_view_only(serve: Any) -> None:
    client = serve()
    ninja_api.tokens["a"] = "alice"
    client.send(PATHS[0], body=BODY, headers=bearer("a"))
    assert ninja_api.Counted.count == 1


@pytest.mark.parametrize("path", ["/api/above", "/api/below/7", "/api/marked"])
def test_a_mark_above_or_below_its_decorator_holds(serve: Any, path: str) -> None:
    client = serve()
    assert client.send(path, key=None).problem == "key-missing"
    assert client.send(path).status == 200
    assert client.send(path).replayed


@pytest.mark.parametrize("debug", [False, True])
def test_a_view_that_asks_for_the_operation_needs_a_key(serve: Any, kind: str, debug: bool) -> None:
    client = serve(DEBUG=debug)
    paths = ["/api/asks", "/lax/asks", "/lax/asks?current=1"]
    if kind == "asgi":
        paths += ["/api/async_asks", "/lax/async_asks"]
    for path in paths:
        refused = client.send(path, key=None)
        assert (refused.status, refused.problem) == (400, "key-missing"), path
        assert client.send(path, key=path).body == b"1"


def test_a_caller_of_the_services_own_sees_what_it_has_found(serve: Any) -> None:
    client = serve({"caller": "tests.django.test_ninja.by_tenant"})
    ninja_api.tokens.update({"a": "red", "b": "red", "c": "blue"})
    assert client.send(PATHS[0], body=BODY, headers=bearer("a")).status == 201
    assert client.send(PATHS[0], body=BODY, headers=bearer("b")).replayed
    assert not client.send(PATHS[0], body=BODY, headers=bearer("c")).replayed


def by_tenant(request: Any) -> str:
    return str(request.auth)


def test_its_document_names_the_key_and_the_problems(serve: Any) -> None:
    client = serve({"routes": {"/api/async_orders": None}})
    schema = json.loads(client.send("/api/openapi.json", key=None, method="GET", body=b"").body)
    paths = schema["paths"]
    order = paths["/api/orders"]["post"]
    (header,) = (each for each in order["parameters"] if each["in"] == "header")
    assert (header["name"], header["required"]) == ("Idempotency-Key", False)
    assert {"201", "400", "402", "409", "422"} <= set(order["responses"])
    assert "application/problem+json" in order["responses"]["409"]["content"]
    assert "Idempotent-Replayed" in order["responses"]["201"]["headers"]
    assert paths["/api/below/{number}"]["post"]["parameters"][-1]["required"] is True
    assert paths["/api/above"]["post"]["parameters"][-1]["required"] is True
    assert "409" not in paths["/api/async_orders"]["post"]["responses"]
    assert "409" not in paths["/api/both"]["get"]["responses"]
    assert "409" in paths["/api/both"]["patch"]["responses"]
    assert "IdempotencyProblem" in schema["components"]["schemas"]


def test_no_mark_of_its_operations_is_taken_for_lost(serve: Any) -> None:
    serve()
    assert not [each for each in check_views() if "ninja_api" in each.msg]


@pytest.mark.parametrize("place", ["bare", "polite"])
def test_below_decorators_it_is_asked_all_the_same(serve: Any, place: str) -> None:
    client = serve(ROOT_URLCONF="tests.django.wrapped")
    ninja_api.tokens["a"] = alice = User.objects.create_user("alice")
    for path in ("orders", "async_orders"):
        url = f"/{place}/{path}"
        sent = [client.send(url, path, BODY, headers=bearer("a")) for _ in range(2)]
        assert [(each.status, each.replayed) for each in sent] == [(201, False), (201, True)]
        assert client.send(url, path, BODY, headers=bearer("x")).status == 401
    for path in ("above", "marked", "below/7"):
        assert client.send(f"/{place}/{path}", key=None).problem == "key-missing"
    headers = [("Authorization", f"Token {Token.objects.create(user=alice).key}")]
    assert client.send(f"/{place}/devices", headers=headers).status == 200
    assert client.send(f"/{place}/devices", headers=headers).replayed
    alice.auth_token.delete()
    assert client.send(f"/{place}/devices", headers=headers).status in (401, 403)


def test_atomic_requests_changes_nothing(serve: Any, database: Any) -> None:
    path = PATHS[0]  # Django refuses async views
    database.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        client = serve()
        ninja_api.tokens["a"] = "alice"
        raised = f"{path}?how=domain"
        for key, where, status in (("one", path, 201), ("two", raised, 402)):
            sent = [client.send(where, key, BODY, headers=bearer("a")) for _ in range(2)]
            assert [(each.status, each.replayed) for each in sent] == [
                (status, False),
                (status, True),
            ]
        assert orders() == ["tea"]
    finally:
        database.settings_dict["ATOMIC_REQUESTS"] = False
