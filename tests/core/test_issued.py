"""Keys that the server signs: what they say, and what is refused."""

from __future__ import annotations

import os
import statistics
import time
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semel import Issuer
from semel.core.issued import KeyFormat, seal, unseal
from semel.core.keys import parse_key

SECRET = bytes(range(32))
FORMS = [KeyFormat(), KeyFormat("pay_", readable=True)]


def sealed(form: KeyFormat = FORMS[0], **other: Any) -> str:
    asked: dict[str, Any] = {"scope": "alice", "not_after": 1_800_000_000, "nonce": bytes(12)}
    return seal(SECRET, 7, form=form, **{**asked, **other})


def opened(text: str, form: KeyFormat = FORMS[0], **other: Any) -> Any:
    asked: dict[str, Any] = {"scope": "alice", "method": "POST", "path": "/charges"}
    return unseal(text, {7: SECRET}, form=form, **{**asked, **other})


@pytest.mark.parametrize("form", FORMS)
@given(
    scope=st.text(min_size=1, max_size=50),
    not_after=st.integers(0, 2**40 - 1),
    nonce=st.binary(min_size=12, max_size=12),
    route=st.sampled_from(["", "/charges", "POST /charges"]),
)
def test_a_key_says_what_was_sealed(
    form: KeyFormat, scope: str, not_after: int, nonce: bytes, route: str
) -> None:
    text = sealed(form, scope=scope, not_after=not_after, nonce=nonce, route=route)
    assert opened(text, form, scope=scope) == (True, not_after)
    assert parse_key([text.encode()]) == text, "a key is a bare token of the header"


@pytest.mark.parametrize("form", FORMS)
def test_no_character_can_be_changed_added_or_taken(form: KeyFormat) -> None:
    """Nor can one key be written in two ways: it would be two keys with the rights of one."""
    text = sealed(form)
    alphabet = "ABab01-_=+/ \n"
    for place in range(len(form.prefix), len(text)):
        for character in alphabet:
            other = text[:place] + character + text[place + 1 :]
            assert opened(other, form).genuine is (other == text)
        assert not opened(text[:place] + text[place + 1 :], form).genuine
    for character in alphabet:
        assert not opened(text + character, form).genuine


@pytest.mark.parametrize("form", FORMS)
def test_junk_is_refused(form: KeyFormat) -> None:
    for junk in ("", "x", "é" * 48, "A" * 48, "A" * 5000, "z" * 50, "1" * 50):
        assert not opened(form.prefix + junk, form).genuine


def test_a_key_is_its_callers_own() -> None:
    assert not opened(sealed(), scope="mallory").genuine
    assert not opened(sealed(scope="alice\0"), scope="alice").genuine


@pytest.mark.parametrize(
    ("route", "good", "bad"),
    [
        ("", [("POST", "/charges"), ("PATCH", "/orders")], []),
        ("/charges", [("POST", "/charges"), ("PATCH", "/charges")], [("POST", "/orders")]),
        ("POST /charges", [("POST", "/charges")], [("PATCH", "/charges"), ("POST", "/orders")]),
    ],
)
def test_a_key_may_be_for_one_route(route: str, good: Any, bad: Any) -> None:
    text = sealed(route=route)
    for genuine, asked in ((True, good), (False, bad)):
        for method, path in asked:
            assert opened(text, method=method, path=path).genuine is genuine


def test_a_secret_that_is_gone_or_another_opens_nothing() -> None:
    text = sealed()
    asked: Any = {"scope": "alice", "method": "POST", "path": "/charges"}
    assert not unseal(text, {}, **asked).genuine
    assert not unseal(text, {7: os.urandom(32)}, **asked).genuine
    nobodys = seal(bytes(32), 9, scope="alice", not_after=1_800_000_000, nonce=bytes(12))
    assert not unseal(nobodys, {7: SECRET}, **asked).genuine


def test_secrets_are_changed_one_by_one() -> None:
    old, new = os.urandom(32), os.urandom(32)
    (key,) = Issuer({1: old}).issue("alice").keys
    first_deploy = Issuer({1: old, 2: new}, signs_with=1)
    assert Issuer({1: old}).check(first_deploy.issue("alice").keys[0], "alice", "POST", "/")
    both = Issuer({1: old, 2: new})
    (newer,) = both.issue("alice").keys
    assert both.check(key, "alice", "POST", "/")
    assert Issuer({2: new}).check(newer, "alice", "POST", "/")
    assert Issuer({2: new}).check(key, "alice", "POST", "/") is None


def test_keys_are_all_different_and_expire_together() -> None:
    now = 1_700_000_000.5
    issuer = Issuer(SECRET, lifetime=timedelta(hours=1), clock=lambda: now)
    issued = issuer.issue("alice", 1000)
    assert len(set(issued.keys)) == 1000
    assert (issued.not_after, issued.not_after_text) == (1_700_003_600.0, "2023-11-14T23:13:20Z")
    assert {issuer.check(key, "alice", "POST", "/") for key in issued.keys} == {3599.5}
    now += 3600
    left = issuer.check(issued.keys[0], "alice", "POST", "/")
    assert left is not None
    assert left <= 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"secrets": b"short"}, "secrets: key 0 has 5 bytes; give 32 or more"),
        ({"secrets": {}}, "secrets: give at least one"),
        ({"secrets": {300: SECRET}}, "secrets: number them 0 to 255"),
        ({"lifetime": timedelta()}, "lifetime: give a timedelta longer than 0"),
        ({"prefix": "a b"}, "prefix: give 1 to 32"),
        ({"signs_with": 3}, "signs_with: there is no secret 3"),
        ({"prefix": ""}, "prefix: give 1 to 32"),
        ({"path": "keys"}, "path: give a path"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Issuer(**{"secrets": SECRET, **settings})


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_keys_come_one_to_a_thousand_at_a_time(count: int) -> None:
    with pytest.raises(ValueError, match="count: give 1 to 1000"):
        Issuer(SECRET).issue("alice", count)


@pytest.mark.parametrize("route", ["charges", "post /charges", " /charges"])
def test_a_route_that_is_none_is_named(route: str) -> None:
    with pytest.raises(ValueError, match="route: give"):
        Issuer(SECRET).issue("alice", route=route)


def test_what_is_wrong_with_a_key_cannot_be_told_from_the_time_it_takes() -> None:
    """Medians of interleaved rounds, as ratios: wrong early, wrong late, foreign, unknown."""
    issuer = Issuer({7: SECRET})
    (key,) = issuer.issue("alice").keys
    early = key[:3] + ("B" if key[3] == "A" else "A") + key[4:]
    late = key[:-1] + ("B" if key[-1] == "A" else "A")
    (unknown,) = Issuer({8: SECRET}).issue("alice").keys
    (foreign,) = issuer.issue("bob").keys
    spent: dict[str, list[float]] = {}
    for _ in range(60):
        for name, text in {
            "late": late,
            "foreign": foreign,
            "unknown": unknown,
            "early": early,
        }.items():
            started = time.perf_counter()
            for _ in range(50):
                assert issuer.check(text, "alice", "POST", "/") is None
            spent.setdefault(name, []).append(time.perf_counter() - started)
    medians = [statistics.median(times) for times in spent.values()]
    assert max(medians) / min(medians) < 1.5, spent.keys()
