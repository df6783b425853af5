"""Who asks, where only a session says so, or a function of the service's own."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import HttpResponse
from django.test import Client as Browser

from tests.django import views

pytestmark = pytest.mark.parametrize("vendor", ["sqlite"])

ENGINES = (
    "django.contrib.sessions.backends.db",
    "django.contrib.sessions.backends.cache",
    "django.contrib.sessions.backends.signed_cookies",
)
SIGNED = ENGINES[-1]


def logged_in(name: str) -> str:
    """The cookie of somebody who has just logged in."""
    browser = Browser()
    browser.force_login(User.objects.get_or_create(username=name)[0])
    return str(browser.cookies["sessionid"].value)


def cookie(value: str) -> list[tuple[str, str]]:
    return [("Cookie", f"sessionid={value}")]


def cookie_of(answer: Any, before: str) -> str:
    """The session cookie after a response."""
    given = answer.header("Set-Cookie") or ""
    return given.split("sessionid=")[1].split(";")[0] if "sessionid=" in given else before


@pytest.mark.parametrize("engine", ENGINES)
def test_a_retry_with_another_session_cookie_is_still_the_same_caller(
    serve: Any, engine: str
) -> None:
    client = serve(SESSION_ENGINE=engine)
    alice = logged_in("alice")
    first = client.send("/session", headers=cookie(alice))
    again = client.send("/session", headers=cookie(cookie_of(first, alice)))
    anew = client.send("/session", headers=cookie(logged_in("alice")))
    assert (again.body, again.replayed, anew.replayed) == (first.body, True, True)
    bob = client.send("/session", headers=cookie(logged_in("bob")))
    assert (json.loads(bob.body)["of"], bob.replayed) == ("bob", False)
    assert len(views.runs) == 2


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_a_visitor_whose_session_the_server_keeps_is_a_caller(serve: Any, engine: str) -> None:
    client = serve(SESSION_ENGINE=engine)
    ann, bob = (cookie_of(client.send("/session", key=None), "") for _ in range(2))
    first = client.send("/session", headers=cookie(ann))
    assert client.send("/session", headers=cookie(bob)).replayed is False
    assert client.send("/session", headers=cookie(ann)).body == first.body


def test_a_visitor_whose_cookie_carries_the_session_has_no_name(serve: Any) -> None:
    client = serve(
        {"policy": {"key": "payload", "window": timedelta(minutes=5)}}, SESSION_ENGINE=SIGNED
    )
    ann = cookie_of(client.send("/session", key=None), "")
    first = client.send("/session", headers=cookie(ann))
    changed = cookie_of(first, ann)
    assert changed != ann
    assert client.send("/session", headers=cookie(changed)).replayed
    # and none of what is found in the request is a key of hers
    orders = [client.send("/session", key=None, headers=cookie(ann)) for _ in range(2)]
    assert [each.replayed for each in orders] == [False, False]


@pytest.mark.parametrize("engine", ENGINES)
def test_two_people_may_order_the_same_within_a_payloads_window(serve: Any, engine: str) -> None:
    rules = {"policy": {"key": "payload", "window": timedelta(minutes=5)}}
    client = serve(rules, SESSION_ENGINE=engine)
    people = {name: logged_in(name) for name in ("ann", "bob")}
    for replayed in (False, True):
        for name, value in people.items():
            sent = client.send("/session", key=None, body=b"tea", headers=cookie(value))
            assert (json.loads(sent.body)["of"], sent.replayed) == (name, replayed)


def test_a_caller_is_found_before_a_claim_and_a_replay(serve: Any) -> None:
    for named in ("caller", "async_caller"):
        client = serve({"caller": f"tests.django.test_sessions.{named}"})
        first = client.send("/charge", key=named, headers=[("X-Who", "1")])
        assert (first.status, first.replayed) == (201, False)
        assert client.send("/charge", key=named, headers=[("X-Who", "1")]).replayed
        assert not client.send("/charge", key=named, headers=[("X-Who", "2")]).replayed
        assert client.send("/charge", key=named).status == 403
        gone = client.send("/charge", key=named, headers=[("X-Who", "gone")])
        assert (gone.status, gone.body) == (401, b"gone")


def caller(request: Any) -> Any:
    who = request.headers.get("X-Who")
    if who is None:
        raise PermissionDenied
    return HttpResponse("gone", status=401) if who == "gone" else {"sub": who}


async def async_caller(request: Any) -> Any:
    return caller(request)


def test_a_caller_of_rest_framework_is_given_its_request(serve: Any) -> None:
    from tests.django.test_callers import token

    client = serve({"caller": "tests.django.test_sessions.device_or_user"})
    alice = User.objects.create_user("alice")
    headers = token(alice)
    assert client.send("/for_both", headers=headers).status == 200
    alice.auth_token.delete()
    assert client.send("/for_both", headers=headers).status in (401, 403)
    renewed = token(User.objects.get(username="alice"))
    assert client.send("/for_both", headers=renewed).replayed


def device_or_user(request: Any) -> Any:
    return request.user


def test_a_lazy_user_of_a_caller_is_the_user(serve: Any) -> None:
    client = serve({"caller": "tests.django.test_sessions.device_or_user"})
    alice = cookie(logged_in("alice"))
    assert client.send("/charge", headers=alice).status == 201
    assert client.send("/charge", headers=cookie(logged_in("alice"))).replayed
    assert not client.send("/charge", headers=cookie(logged_in("bob"))).replayed


def test_further_headers_tell_callers_apart(serve: Any) -> None:
    client = serve({"credentials": ["X-Client-Cert"]})
    assert client.send("/charge", headers=[("X-Client-Cert", "a")]).status == 201
    assert not client.send("/charge", headers=[("X-Client-Cert", "b")]).replayed
    assert not client.send("/charge", headers=[("X-API-Key", "b")]).replayed
    assert client.send("/charge", headers=[("X-Client-Cert", "a")]).replayed


def test_keys_below_a_script_name_are_good_there(serve: Any) -> None:
    from semel import Issuer

    issuer = Issuer(bytes(range(32)))
    client = serve({"issuer": issuer, "policy": {"required": "issued"}}, FORCE_SCRIPT_NAME="/shop")
    for route in ("/charge", "/shop/charge", "POST /shop/charge"):
        asked = json.dumps({"count": 1, "route": route}).encode()
        issued = client.send("/idempotency-keys", None, asked)
        (key,) = json.loads(issued.body)["keys"]
        assert client.send("/charge", key).status == 201, route
        assert client.send("/charge", key).replayed
        assert client.send("/steps", key).problem == "key-invalid"


def test_a_redirect_to_the_slash_makes_no_claim(serve: Any) -> None:
    client = serve()
    assert client.send("/slashed", key="s").status in (301, 307, 308)
    assert client.send("/slashed/", key="s").status == 201
    assert client.send("/slashed", key="s").status in (301, 307, 308)
    assert client.send("/slashed/", key="s").replayed
