"""What a client decides, without a socket and without waiting."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semel.client import Budget, Retry
from semel.client.retry import Broke, Ending, ReceivedResponse, RetryPause, SendAttempt, live
from semel.client.verdict import ResponseVerdict, judge, retry_after
from semel.core.problems import CATALOGUE, Problem
from semel.uploads.problems import CATALOGUE as UPLOADS

NOW = 1_800_000_000.0


def answer(status: int, problem: str = "", **headers: str) -> ReceivedResponse:
    shown = {name.replace("_", "-"): value for name, value in headers.items()}
    body = b""
    if problem:
        shown["content-type"] = "application/problem+json"
        body = json.dumps({"type": f"https://shop.example/problems/{problem}"}).encode()
    return ReceivedResponse(status, shown, body)


class Life:
    """A life with a clock of its own, told what came of each attempt."""

    def __init__(self, told: list[ReceivedResponse | Broke], **how: Any) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self.limits: list[float] = []
        self.took: float = how.pop("took", 0.0)
        options: dict[str, Any] = {"keyed": True, "begun": False, "random": lambda: 1.0, **how}
        retry = options.pop("retry", Retry())
        budget = options.pop("budget", Budget(1.0, 100))
        self._life = live(retry, budget, clock=lambda: self.now, wall=lambda: NOW, **options)
        self._told = iter(told)

    def run(self) -> Ending:
        command = next(self._life)
        try:
            while True:
                if isinstance(command, RetryPause):
                    self.slept.append(command.seconds)
                    self.now += command.seconds
                    command = next(self._life)
                else:
                    assert isinstance(command, SendAttempt)
                    self.limits.append(command.seconds)
                    self.now += self.took
                    command = self._life.send(next(self._told))
        except StopIteration as end:
            ending: Ending = end.value
            return ending


LOST = Broke("ReadTimeout", sent=True)
REFUSED = Broke("ConnectError", sent=False)
CREATED = answer(201)


@pytest.mark.parametrize(
    "first",
    [
        LOST,
        REFUSED,
        answer(409, "in-flight"),
        answer(409, retry_after="1"),
        answer(408),
        answer(425),
        answer(429),
        answer(500),
        answer(502),
        answer(503),
        answer(503, "store-unavailable", retry_after="2"),
        answer(503, "outcome-unrecorded"),
        answer(400, stripe_should_retry="true"),
    ],
)
def test_what_may_pass_is_tried_again(first: ReceivedResponse | Broke) -> None:
    life = Life([first, CREATED])
    ending = life.run()
    assert (ending.kind, len(ending.tries), len(life.slept)) == ("told", 2, 1)


REFUSALS = [
    *((answer(status)) for status in (400, 401, 403, 404, 405, 410, 413, 422, 409, 501)),
    answer(409, "response-not-kept"),
    answer(422, "key-reused"),
    answer(400, "key-invalid"),
    answer(500, "handler-failed"),
    answer(503, idempotent_replayed="true"),
]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_definite_refusal_is_the_end(refusal: ReceivedResponse) -> None:
    ending = Life([refusal]).run()
    assert (ending.kind, len(ending.tries)) == ("told", 1)


@pytest.mark.parametrize("slug", ["outcome-unknown", "key-expired", "connection-not-taken"])
def test_what_the_service_does_not_know_is_not_asked_again_and_is_unsettled(slug: str) -> None:
    ending = Life([answer(409, slug)]).run()
    assert (ending.kind, [t.result for t in ending.tries]) == ("unsettled", [f"409 {slug}"])


VERDICTS = {
    "key-missing": (False, "none"),
    "key-invalid": (False, "none"),
    "key-reused": (False, "none"),
    "key-expired": (False, "unknown"),
    "in-flight": (True, "unknown"),
    "outcome-unknown": (False, "unknown"),
    "outcome-unrecorded": (True, "unknown"),
    "response-not-kept": (False, "known"),
    "request-too-large": (False, "none"),
    "body-timeout": (True, "none"),
    "store-unavailable": (True, "none"),
    "handler-failed": (False, "known"),
    "connection-not-taken": (False, "unknown"),
    "keys-not-issued": (False, "known"),
    "precondition-failed": (False, "known"),
    "precondition-required": (False, "known"),
    "precondition-invalid": (False, "known"),
    "upstream-unavailable": (True, "none"),
    "upstream-failed": (True, "unknown"),
    "upstream-timeout": (True, "unknown"),
    # Uploads' own are judged by their status.
    "upload-invalid": (False, "known"),
    "upload-type": (False, "known"),
    "upload-method": (False, "known"),
    "upload-version": (False, "known"),
    "upload-length-missing": (False, "known"),
    "upload-not-found": (False, "known"),
    "offset-conflict": (False, "known"),
    "upload-locked": (False, "known"),
    "digest-mismatch": (False, "known"),
    "checksum-mismatch": (False, "known"),
    "quota-exceeded": (True, "none"),
    "storage-full": (True, "unknown"),
    "storage-unavailable": (True, "unknown"),
}
"""Of each problem: whether to send the request again, and what is known of its effect."""


@pytest.mark.parametrize("problem", [*CATALOGUE, *UPLOADS], ids=lambda problem: problem.slug)
def test_the_verdict_on_each_problem_stands(problem: Problem) -> None:
    status, fields, body = problem.response()
    headers = {name.decode(): value.decode() for name, value in fields}
    assert body is not None
    verdict = judge(ReceivedResponse(status, headers, body), NOW)
    assert (verdict.again, verdict.effect) == VERDICTS[problem.slug]
    if problem in CATALOGUE:
        assert (problem.retry, problem.effect) == VERDICTS[problem.slug]


def test_every_problem_of_the_catalogue_has_a_verdict() -> None:
    for problem in CATALOGUE:
        verdict = judge(answer(problem.status, problem.slug), NOW)
        asked_back = problem.retry_after is not None or problem.status in (408, 502, 504)
        assert verdict.again == asked_back, problem


@pytest.mark.parametrize("status", [401, 403, 413, 429])
def test_a_refusal_at_the_door_says_nothing_of_an_attempt_that_was_lost(status: int) -> None:
    once = Retry(attempts=2)
    assert Life([LOST, answer(status)], retry=once).run().kind == "unsettled"
    assert Life([REFUSED, answer(status)], retry=once).run().kind == "told"


def test_a_lost_attempt_is_settled_by_the_answer_of_the_next() -> None:
    assert Life([LOST, answer(404)]).run().kind == "told"


def test_a_request_that_never_got_through_is_no_unknown() -> None:
    assert Life([REFUSED] * 3, retry=Retry(attempts=3)).run().kind == "told"


def test_a_request_that_was_begun_by_a_process_that_died_is_one() -> None:
    assert Life([REFUSED] * 3, retry=Retry(attempts=3), begun=True).run().kind == "unsettled"
    assert Life([answer(401)], begun=True).run().kind == "unsettled"


def test_without_a_key_the_last_answer_is_handed_over() -> None:
    assert Life([answer(503)] * 3, retry=Retry(attempts=3), keyed=False).run().kind == "told"


def test_a_malformed_request_is_not_tried_again() -> None:
    ending = Life([Broke("InvalidURL", sent=False, again=False)]).run()
    assert (ending.kind, len(ending.tries)) == ("told", 1)


def test_pauses_double_up_to_the_longest_and_are_drawn_from_nothing_to_that() -> None:
    retry = Retry(attempts=6, pause=1, longest_pause=5, deadline=1000)
    assert Life([LOST] * 6, retry=retry).run().kind == "unsettled"
    highest, lowest = Life([LOST] * 6, retry=retry), Life([LOST] * 6, retry=retry, random=float)
    highest.run(), lowest.run()
    assert highest.slept == [1, 2, 4, 5, 5]
    assert lowest.slept == [0, 0, 0, 0, 0]


def test_retry_after_is_waited_and_a_drawn_pause_more_up_to_its_longest() -> None:
    retry = Retry(pause=0.5, longest_retry_after=20)
    told = [answer(503, retry_after="7"), answer(503, retry_after="3600"), CREATED]
    life = Life(told, retry=retry)
    life.run()
    assert life.slept == [7.5, 21.0]


def test_the_deadline_limits_attempts_and_is_not_slept_past() -> None:
    life = Life([LOST] * 9, retry=Retry(deadline=10, pause=1), took=3.0)
    ending = life.run()
    assert life.limits == [10.0, 6.0, 1.0]  # 3 s an attempt, pauses of 1 and 2 s
    assert life.slept == [1, 2]
    assert (ending.kind, [t.at for t in ending.tries]) == ("unsettled", [3.0, 7.0, 12.0])


def test_a_retry_after_that_comes_too_late_is_not_waited_for() -> None:
    life = Life([answer(429, retry_after="30")], retry=Retry(deadline=20))
    assert (life.run().kind, life.slept) == ("told", [])


def test_the_budget_lets_a_tenth_of_the_traffic_be_retries() -> None:
    budget = Budget()
    retries = 0
    for _ in range(1000):
        life = Life([answer(503)] * 9, budget=budget, retry=Retry(attempts=9))
        life.run()
        retries += len(life.slept)
    assert retries == 3 + 99  # the reserve, which cannot grow, and a tenth of the 999 after it


def test_waiting_for_what_is_in_flight_costs_nothing() -> None:
    told = [answer(409, "in-flight", retry_after="1")] * 8 + [CREATED]
    assert Life(told, budget=Budget(0, 0)).run().kind == "told"


def test_a_budget_without_reserve_never_retries_first() -> None:
    assert not Budget(0.1, 0).spend()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "120"}, 120.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT"}, 30.0),
        ({"retry-after": "Fri, 15 Jan 2027 07:00:00 GMT"}, 0.0),
        # The server's clock is an hour behind ours: 30 s by its own Date.
        (
            {
                "retry-after": "Fri, 15 Jan 2027 07:00:30 GMT",
                "date": "Fri, 15 Jan 2027 07:00:00 GMT",
            },
            30.0,
        ),
    ],
)
def test_retry_after_in_both_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


def test_the_server_may_say_not_to_retry() -> None:
    assert judge(answer(503, stripe_should_retry="false"), NOW).again is False
    assert judge(answer(409, stripe_should_retry="true"), NOW) == ResponseVerdict(
        True, "unknown", free=True
    )


@given(st.integers(100, 599), st.dictionaries(st.text(), st.text()), st.binary())
def test_no_answer_is_too_strange_to_be_judged(
    status: int, headers: dict[str, str], body: bytes
) -> None:
    shown = {**headers, "content-type": "application/problem+json"}
    verdict = judge(ReceivedResponse(status, shown, body), NOW)
    assert not (verdict.again and verdict.effect == "known")
    retry_after({"retry-after": body.decode("latin-1")}, NOW)


@pytest.mark.parametrize(
    "wrong",
    [
        {"deadline": 0},
        {"attempts": 0},
        {"pause": -1},
        {"longest_pause": "5"},
        {"max_body": True},
        {"longest_retry_after": float("nan")},
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Retry(**wrong)


@pytest.mark.parametrize("wrong", [{"ratio": 2}, {"ratio": -0.1}, {"reserve": -1}])
def test_a_wrong_budget_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Budget(**wrong)
