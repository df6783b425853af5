from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from semel.core.policy import Policy, PolicyError
from semel.core.routes import Routes


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"methods": "POST"}, "methods: give a tuple"),
        ({"methods": ("post",)}, "methods: give a tuple"),
        ({"methods": ("GET", "POST")}, "GET"),
        ({"guarantee": "exactly-once"}, "guarantee: give one of"),
        ({"required": "signed"}, "required: give one of"),
        ({"lease": timedelta()}, "lease: give a timedelta"),
        ({"lease": 30}, "lease: give a timedelta"),
        ({"wait": timedelta(seconds=-1)}, "wait: give a timedelta"),
        ({"max_request_body": -1}, "max_request_body: give a whole number"),
        ({"on_store_error": "run", "guarantee": "atomic"}, "on_store_error"),
        ({"on_store_error": "run", "guarantee": "at-most-once"}, "on_store_error"),
        ({"after_expiry": "rerun"}, "after_expiry"),
        ({"fingerprint": "md5"}, "fingerprint"),
    ],
)
def test_a_rule_that_makes_no_sense_is_named(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        Policy(**rules)


ROUTES = {
    "/charges": Policy(required=True),
    "GET /charges": None,
    "/charges/{id}": Policy(expires=timedelta(days=2)),
    "PUT /files/{name:path}": Policy(methods=("PUT",)),
    "/hooks/{name}": None,
    "/n/{number:int}": Policy(required=True),
}


@pytest.mark.parametrize(
    ("method", "path", "pattern"),
    [
        ("POST", "/charges", "/charges"),
        ("POST", "/charges/7", "/charges/{id}"),
        ("POST", "/charges/7/refund", "default"),
        ("PUT", "/files/a/b.txt", "PUT /files/{name:path}"),
        ("POST", "/files/a/b.txt", "default"),
        ("POST", "/hooks/x", None),
        ("GET", "/charges", None),
        ("GET", "/anything", None),
        ("PUT", "/charges/7", None),
        ("POST", "/other", "default"),
        ("POST", "/n/12", "/n/{number:int}"),
        ("POST", "/n/twelve", "default"),
        ("POST", "/charges.", "default"),
    ],
)
def test_the_first_matching_pattern_gives_the_policy(
    method: str, path: str, pattern: str | None
) -> None:
    routes = Routes(Policy(), ROUTES)
    expected = {"default": routes.default, None: None}.get(pattern, ROUTES.get(pattern or ""))
    assert routes.find(method, path) is expected


@pytest.mark.parametrize(
    "pattern", ["charges", "post /charges", "/a/{b", "/a/{b:nothing}", "/a/b}"]
)
def test_a_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(PolicyError, match="route"):
        Routes(Policy(), {pattern: Policy()})


def test_a_pattern_for_a_method_its_policy_leaves_out_is_refused() -> None:
    with pytest.raises(PolicyError, match="leave PUT out"):
        Routes(Policy(), {"PUT /x": Policy()})


def test_steps_of_an_issued_key_are_kept_as_long_as_anybody_may_claim_under_it() -> None:
    """Found by the simulator: S10, S13. A key may be checked in time, and claimed with later."""
    rules = Policy().until(60.0, timedelta(hours=1))
    assert rules.seconds.expires == 60.0
    assert rules.seconds.keep_steps == 60.0 + 3600.0
    assert Policy().seconds.keep_steps == Policy().seconds.expires
