"""What the cases decide, without a network: the generators are handed their answers.

Above all, what the draft or Stripe allow is no fault.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, cycle, repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semel.checker.case import Case
from semel.checker.cases import (
    CASES,
    callers,
    conflicts,
    keys,
    network,
    outcomes,
    replays,
    requests,
)
from semel.checker.exchange import Count, Pause, Together, WireResponse
from semel.checker.scene import Scene
from semel.checker.target import Effects, Target
from semel.checker.verdict import CaseVerdict, NotRun, Outcome

TARGET = Target(
    "http://127.0.0.1/charges",
    body='{"amount": 5}',
    effects=Effects("/count"),
    other_path="/refunds",
    other_caller=(("Authorization", b"bob"),),
    failing_body="{}",
    expires=1.0,
    patience=1.0,
    together=3,
)
CREATED = WireResponse(201, (("Location", "/charges/1"), ("X-Id", "1")), b"{}", seconds=0.1)
NUMBERS = count()


def scene(target: Target = TARGET) -> Scene:
    key = f"key-{next(NUMBERS)}"
    body = target.body.encode()
    return Scene(target, key, body, target.other(body, 1), lambda: scene(target))


def decide(
    case: Case,
    *answers: WireResponse,
    effects: Iterator[int] | None = None,
    target: Target = TARGET,
) -> CaseVerdict:
    """Run a case on these answers; the last one is repeated. `effects`: what each count says."""
    given = iter(answers)
    last = answers[-1]
    counts = repeat(None) if effects is None else effects
    steps = case.run(scene(target))
    result: object = None
    try:
        while True:
            action = steps.send(result)
            if isinstance(action, Count):
                result = next(counts)
            elif isinstance(action, Pause):
                result = None
            elif isinstance(action, Together):
                result = [next(given, last) for _ in action.requests]
            else:
                result = next(given, last)
    except StopIteration as stop:
        assert isinstance(stop.value, CaseVerdict)
        return stop.value


def says(status: int, *headers: tuple[str, str], body: bytes = b"no") -> WireResponse:
    return WireResponse(status, headers, body, seconds=0.1)


ONE = (0, 1)
ALLOWED = {
    "409 at once, as the draft says": (
        conflicts.concurrent_answers,
        [CREATED, says(409, ("Retry-After", "1")), says(409, ("Retry-After", "1")), CREATED],
        None,
    ),
    "waiting for the first one's response": (conflicts.concurrent_answers, [CREATED], None),
    "422 for another body, as the draft says": (requests.other_body, [CREATED, says(422)], ONE),
    "400 for another body, as Stripe does": (requests.other_body, [CREATED, says(400)], ONE),
    "the same JSON replayed": (requests.same_json, [CREATED], ONE),
    "the same JSON refused": (requests.same_json, [CREATED, says(422)], ONE),
    "another path refused": (requests.other_path, [CREATED, says(422)], ONE),
    "another path as its own": (requests.other_path, [CREATED, says(201)], (0, 2)),
    "a failure kept, as Stripe does": (outcomes.failure_repeated, [says(500)], (0, 0)),
    "a failure's key used up": (outcomes.failure_corrected, [says(402), says(422)], (0, 0)),
    "a failure's key run again": (outcomes.failure_corrected, [says(402), CREATED], ONE),
    "an expired key run anew": (outcomes.expiry, [CREATED], (0, 1, 1, 2)),
    "an expired key refused": (outcomes.expiry, [CREATED, CREATED, says(410)], (0, 1, 1, 1)),
    "an optional key": (keys.key_missing, [CREATED], ONE),
    "a required key": (keys.key_missing, [says(400)], (0, 0)),
    "odd keys taken as they are": (keys.key_malformed, [CREATED], (0, 1, 1, 2, 2, 3)),
    "long keys taken": (keys.key_overlong, [CREATED], ONE),
}


@pytest.mark.parametrize("what", ALLOWED)
def test_what_the_sources_allow_passes(what: str) -> None:
    case, answers, effects = ALLOWED[what]
    verdict = decide(case, *answers, effects=None if effects is None else iter(effects))
    assert verdict.outcome is Outcome.PASSED, verdict


DISCOURAGED = {
    "423 where the draft says 409": (
        conflicts.concurrent_answers,
        [CREATED, says(423, ("Retry-After", "1")), CREATED],
        None,
    ),
    "409 without Retry-After": (conflicts.concurrent_answers, [CREATED, says(409), CREATED], None),
    "a replay that is not marked": (replays.replay_marked, [CREATED], None),
    "a header of the API's own that is lost": (
        replays.replay_headers,
        [CREATED, replace(CREATED, headers=CREATED.headers[:1])],
        None,
    ),
    "a session issued again": (
        replays.replay_headers,
        [replace(CREATED, headers=(("Set-Cookie", "s=1"),))],
        None,
    ),
    "shared caches": (
        replays.replay_not_cached,
        [replace(CREATED, headers=(("Cache-Control", "public, max-age=60"),))],
        None,
    ),
    "the draft's quotes refused": (keys.key_quoted, [says(400)], (0, 0)),
    "keys shorter than Stripe's": (keys.key_long, [says(400)], (0, 0)),
    "two keys taken": (keys.key_doubled, [CREATED], ONE),
    "another caller told of the key": (callers.other_caller, [CREATED, says(422)], ONE),
    "an answer kept too long": (outcomes.expiry, [CREATED], (0, 1, 1, 1)),
    "an expired key that looks busy": (
        outcomes.expiry,
        [CREATED, CREATED, says(409)],
        (0, 1, 1, 1),
    ),
}


@pytest.mark.parametrize("what", DISCOURAGED)
def test_what_clients_trip_over_is_a_warning(what: str) -> None:
    case, answers, effects = DISCOURAGED[what]
    verdict = decide(case, *answers, effects=None if effects is None else iter(effects))
    assert verdict.outcome is Outcome.WARNING, verdict


def test_where_effects_are_not_counted_differing_answers_tell_of_two_runs() -> None:
    other = replace(CREATED, body=b"{2}")
    assert decide(replays.replay_runs_once, CREATED, other).outcome is Outcome.FAULT
    assert decide(replays.replay_runs_once, CREATED).outcome is Outcome.PASSED


def test_a_retry_that_is_refused_for_ever_is_a_fault() -> None:
    verdict = decide(network.lost_answer, CREATED, WireResponse(0), says(409), effects=iter((0, 1)))
    assert verdict.outcome is Outcome.FAULT
    assert "it never ends" in verdict.said


def test_an_api_that_lets_retries_wait_for_long_is_asked_again() -> None:
    slow = replace(says(423), seconds=10.0)
    answers = [CREATED, WireResponse(0), slow, slow, CREATED]
    verdict = decide(network.lost_answer, *answers, effects=cycle((0, 1)))
    assert verdict.outcome is Outcome.PASSED, verdict


def test_a_case_whose_first_request_fails_says_nothing() -> None:
    with pytest.raises(NotRun, match="429"):
        decide(replays.replay_status, says(429))


STRANGE = st.builds(
    WireResponse,
    st.sampled_from([0, 200, 201, 204, 304, 400, 401, 409, 422, 423, 500, 503, 599]),
    st.lists(
        st.tuples(
            st.sampled_from(
                ["Retry-After", "Content-Type", "Location", "Cache-Control", "Link", "X-A"]
            ),
            st.one_of(
                st.text(max_size=8), st.sampled_from(["application/problem+json", "1", "\u00b2"])
            ),
        ),
        max_size=4,
    ).map(tuple),
    st.one_of(
        st.binary(max_size=12),
        st.sampled_from([b'{"type": []}', b'{"type": 1, "status": "x"}', b'{"keys": [{}]}', b"[]"]),
    ),
    seconds=st.just(0.3),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@settings(max_examples=20, deadline=None)
@given(st.lists(STRANGE, min_size=1, max_size=8), st.lists(st.integers(0, 3), min_size=1))
def test_whatever_a_server_says_there_is_a_verdict(
    case: Case, answers: list[WireResponse], effects: list[int]
) -> None:
    needing = replace(TARGET, keys_path="/keys", other_method="PATCH", no_auth=True, kills=2)
    with contextlib.suppress(NotRun):
        decide(case, *answers, effects=cycle(effects), target=needing)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_answers_at_all_pass_no_case(case: Case) -> None:
    needing = replace(TARGET, keys_path="/keys", other_method="PATCH", no_auth=True, kills=2)
    try:
        verdict = decide(case, WireResponse(0, failure="reset"), effects=repeat(0), target=needing)
    except NotRun:
        return
    assert verdict.outcome is not Outcome.PASSED, verdict
