"""Django: keys that are issued, and keys that are in what a request says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from semel import Issuer
from tests.django import views
from tests.django.test_middleware import orders

pytestmark = pytest.mark.parametrize("vendor", ["sqlite"])

ISSUER = Issuer(bytes(range(32)))
ALICE, BOB = [("Authorization", "alice")], [("Authorization", "bob")]
FORM = [("Content-Type", "application/x-www-form-urlencoded")]


def test_a_key_is_issued_to_one_caller_and_good_once(serve: Any) -> None:
    client = serve({"issuer": ISSUER, "policy": {"required": "issued", "next_key": True}})
    issued = client.send("/idempotency-keys", None, b'{"count": 3}', headers=ALICE)
    assert issued.status == 201, issued.body
    keys = json.loads(issued.body)["keys"]
    assert len(set(keys)) == 3
    first = client.send("/charge", keys[0], headers=ALICE)
    again = client.send("/charge", keys[0], headers=ALICE)
    assert (first.status, again.body, again.replayed) == (201, first.body, True)
    for key, who in (("made-up", ALICE), (keys[0] + "x", ALICE), (keys[1], BOB)):
        assert client.send("/charge", key, headers=who).problem == "key-invalid"
    assert len(orders()) == 1
    handed = first.header("Idempotency-Key")
    assert handed not in (None, again.header("Idempotency-Key"))
    assert client.send("/charge", handed, headers=ALICE).status == 201
    assert client.send("/charge", None, headers=ALICE).problem == "key-missing"
    assert len(orders()) == 2


def test_a_request_for_keys_that_is_not_understood_is_told_why(serve: Any) -> None:
    client = serve({"issuer": ISSUER})
    refused = client.send("/idempotency-keys", None, b'{"count": 0}')
    assert (refused.status, refused.problem) == (400, "keys-not-issued")
    assert client.send("/idempotency-keys", None, b"", method="PUT").status == 405


def test_the_same_natural_key_is_the_same_operation(serve: Any) -> None:
    client = serve(
        {"policy": {"key": lambda r: r.json()["email"], "fingerprint": "key", "shared": True}}
    )
    for replayed, name in ((False, "Ann"), (True, "Anna")):
        body = json.dumps({"email": "a@example.org", "name": name}).encode()
        answer = client.send("/charge", None, body)
        assert (answer.status, answer.replayed) == (201, replayed)
    assert client.send("/charge", None, b"{}").status == 201, "no key, and nothing promised"
    assert len(orders()) == 2


def test_a_forms_hidden_field_counts_as_the_header_would(serve: Any) -> None:
    client = serve({"policy": {"form_field": "key", "required": True}})
    body = b"amount=5&key=k-1"
    assert client.send("/raw", None, body, headers=FORM).status == 200
    assert client.send("/raw", None, body, headers=FORM).replayed
    assert client.send("/raw", "k-1", body, headers=FORM).replayed
    assert client.send("/raw", None, b"amount=5", headers=FORM).problem == "key-missing"
    assert views.runs == ["raw"]
