"""Whose key it is, and that nothing is replayed to whoever may not have it now."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client as Browser
from django.test import RequestFactory

from semel.idempotency import Idempotency
from semel.web.django.asked import Asked
from semel.web.django.callers import django_caller
from semel.web.django.conf import Configured
from tests.django import views
from tests.django.test_middleware import orders

pytestmark = pytest.mark.parametrize("vendor", ["sqlite"])


def person(name: str, *permissions: str) -> User:
    user = User.objects.create_user(name, password="secret")
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


def token(user: User) -> list[tuple[str, str]]:
    from rest_framework.authtoken.models import Token

    return [("Authorization", f"Token {Token.objects.get_or_create(user=user)[0].key}")]


def forbid(request: Any, view: Any, args: Any, kwargs: Any) -> bool:
    return request.headers.get("X-Allowed") == "yes"


def by_account(request: Any) -> str:
    return f"account:{request.header('X-Account')}"


def test_two_people_may_send_the_same_key(serve: Any) -> None:
    client = serve()
    one, two = [("Authorization", "one")], [("Authorization", "two")]
    assert client.send("/charge", headers=one).status == 201
    assert not client.send("/charge", headers=two).replayed
    assert client.send("/charge", headers=one).replayed


def test_a_scope_may_be_named(serve: Any) -> None:
    client = serve({"scope": "tests.django.test_callers.by_account"})
    for credentials in ("old token", "new token"):
        headers = [("X-Account", "7"), ("Authorization", credentials)]
        answer = client.send("/charge", headers=headers)
    assert answer.replayed


def test_no_replay_where_the_present_request_may_have_none(serve: Any) -> None:
    client = serve({"authorize": "tests.django.test_callers.forbid"})
    allowed = [("X-Allowed", "yes")]
    assert client.send("/charge", headers=allowed).status == 201
    refused = client.send("/charge")
    assert (refused.status, refused.replayed) == (403, False)
    assert client.send("/charge", headers=allowed).replayed
    assert len(views.runs) == 1


def test_rest_framework_authenticates_before_a_replay(serve: Any) -> None:
    client, body = serve(), json.dumps({"order": "o1", "amount": 5}).encode()
    user = person("alice", "add_charge")
    headers = token(user)
    first, repeat = (client.send("/payments/", body=body, headers=headers) for _ in range(2))
    assert (first.status, repeat.body, repeat.replayed) == (201, first.body, True)
    nobody = client.send("/payments/", body=body)
    wrong = client.send("/payments/", body=body, headers=[("Authorization", "Token wrong")])
    # 403: by REST framework's rule, as SessionAuthentication is the first and has no challenge.
    assert (nobody.status, wrong.status, nobody.replayed, wrong.replayed) == (
        403,
        403,
        False,
        False,
    )
    user.user_permissions.clear()
    denied = client.send("/payments/", body=body, headers=headers)
    assert (denied.status, denied.replayed) == (403, False)
    assert (orders(), views.runs) == (["o1"], ["create"])


def test_a_refreshed_token_of_rest_framework_is_still_the_same_caller(serve: Any) -> None:
    client, body = serve(), json.dumps({"order": "o1", "amount": 5}).encode()
    user = person("alice", "add_charge")
    before = token(user)
    assert client.send("/payments/", body=body, headers=before).status == 201
    user.auth_token.delete()
    user = User.objects.get(pk=user.pk)
    after = token(user)
    assert before != after
    assert client.send("/payments/", body=body, headers=after).replayed


def test_a_serializers_errors_are_kept_and_a_corrected_body_needs_a_new_key(serve: Any) -> None:
    client, headers = serve(), token(person("alice", "add_charge"))
    wrong = json.dumps({"order": "o1", "amount": "much"}).encode()
    first = client.send("/payments/", body=wrong, headers=headers)
    assert (first.status, list(json.loads(first.body))) == (400, ["amount"])
    assert client.send("/payments/", body=wrong, headers=headers).replayed
    right = json.dumps({"order": "o1", "amount": 5}).encode()
    assert client.send("/payments/", body=right, headers=headers).problem == "key-reused"
    assert client.send("/payments/", key="2", body=right, headers=headers).status == 201


def test_a_mark_on_a_method_of_a_viewset_holds(serve: Any) -> None:
    client, headers = serve(), token(person("alice", "add_charge"))
    body = json.dumps({"order": "o1", "amount": 5}).encode()
    assert client.send("/payments/", key=None, headers=headers, body=body).problem == "key-missing"
    assert client.send("/payments/", key=None, body=body).status == 403  # first things first


def test_a_throttled_request_is_no_outcome(serve: Any) -> None:
    client, headers = serve(), token(person("alice", "add_charge"))
    body = json.dumps({"order": "o1", "amount": 5}).encode()
    views.Busy.allows = False
    views.Busy.wait = lambda self: 1  # type: ignore[method-assign]
    assert client.send("/throttled/", body=body, headers=headers).status == 429
    views.Busy.allows = True
    assert client.send("/throttled/", body=body, headers=headers).status == 201
    assert client.send("/throttled/", body=body, headers=headers).replayed


def test_a_session_of_rest_framework_needs_its_csrf_token_for_a_replay_too(serve: Any) -> None:
    client, user = serve(), person("alice", "add_charge")
    browser = Browser(enforce_csrf_checks=True)
    browser.force_login(user)
    browser.get("/admin/login/")
    secret = "a" * 32
    session = browser.cookies["sessionid"].value
    cookies = [("Cookie", f"sessionid={session}; csrftoken={secret}")]
    proof = [*cookies, ("X-CSRFToken", secret)]
    body = json.dumps({"order": "o1", "amount": 5}).encode()
    assert client.send("/payments/", body=body, headers=proof).status == 201
    assert client.send("/payments/", body=body, headers=proof).replayed
    forged = client.send("/payments/", body=body, headers=cookies)
    assert (forged.status, forged.replayed) == (403, False)


def test_a_form_without_its_csrf_token_is_refused_and_not_recorded(serve: Any) -> None:
    client = serve()
    secret = "a" * 32

    def form(given: str) -> bytes:
        fields = (("name", None, b"tea"), ("csrfmiddlewaretoken", None, given.encode()))
        parts = [
            b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (n.encode(), v)
            for n, _, v in fields
        ]
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        return b"".join(parts) + head + b"x" * 100_000 + b"\r\n--b--\r\n"

    headers = [
        ("Content-Type", "multipart/form-data; boundary=b"),
        ("Cookie", f"csrftoken={secret}"),
    ]
    assert client.send("/form", body=form("wrong"), headers=headers).status == 403
    first = client.send("/form", body=form(secret), headers=headers)
    assert json.loads(first.body) == {"name": "tea", "size": 100_000}
    assert client.send("/form", body=form(secret), headers=headers).replayed
    assert client.send("/form", body=form("wrong"), headers=headers).status == 403


def test_a_device_and_a_user_of_one_number_are_two_callers(serve: Any) -> None:
    client, user = serve(), person("alice")
    alice, device = token(user), [("X-Device", str(user.pk))]
    assert client.send("/for_both", headers=alice).body == b'"User"'
    other = client.send("/for_both", headers=device)
    assert (other.body, other.replayed) == (b'"Device"', False)
    assert client.send("/for_both", headers=alice).body == b'"User"'
    assert client.send("/for_both", headers=device).replayed


def test_a_lazy_user_is_a_user_and_another_model_goes_by_its_label(vendor: str) -> None:
    from django.utils.functional import SimpleLazyObject
    from rest_framework.authtoken.models import Token

    def named(user: Any) -> Any:
        service = Configured(Idempotency("memory://"), None)
        return django_caller(service, Asked(RequestFactory().post("/"), user)).caller[0]

    assert named(SimpleLazyObject(lambda: User(pk=1))) == "1"
    Token.is_authenticated = True
    try:
        assert named(Token(key="1")) == "authtoken.token:1"
    finally:
        del Token.is_authenticated


def test_basic_credentials_are_a_caller_of_their_own(serve: Any) -> None:
    client = serve()
    basic = base64.b64encode(b"alice:secret").decode()
    assert client.send("/charge", headers=[("Authorization", f"Basic {basic}")]).status == 201
    assert not client.send("/charge").replayed
