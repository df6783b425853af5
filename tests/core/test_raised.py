"""The engine's decisions where a handler raised, and where the policy judges the response."""

from __future__ import annotations

import logging
from collections.abc import Generator
from typing import Any

import pytest

from semel.core import failures, problems
from semel.core.commands import (
    Answer,
    Claim,
    Claimed,
    Complete,
    Found,
    Open,
    Release,
    RunHandler,
    Sleep,
    StoreUnavailable,
    StoreUnknown,
    Undo,
)
from semel.core.engine import Deliver, Refuse, Replay, Request, run
from semel.core.policy import Policy, PolicyError
from semel.core.record import Record, Response, State

KEY, MINE, PRINT = b"k" * 16, b"owner-me", b"\x01" + b"f" * 32
DECLINED = Response(402, (), b"declined")
RAISED = Answer(DECLINED, atomic=True, raised=True)
Life = Generator[Any, Any, Any]


def running(policy: Policy | None = None, *, opens: bool = False) -> Life:
    life = run(Request(KEY, MINE, lambda n: PRINT), policy or Policy(), opens=opens)
    assert isinstance(next(life), Open if opens else Claim)
    assert life.send(Claimed(8, 1, opened=opens)) == RunHandler(8, 1)
    return life


def outcome(life: Life, value: Any) -> Any:
    with pytest.raises(StopIteration) as end:
        life.send(value)
    return end.value.value


def completed(response: Response) -> Found:
    record = Record(KEY, State.COMPLETED, 9, b"other", 1, PRINT, 0, 100, 200, response, None)
    return Found(record, 10.0)


def test_it_is_undone_and_then_recorded_under_the_same_claim() -> None:
    life = running()
    assert life.send(RAISED) == Undo(KEY, 8)
    complete = life.send(None)
    assert isinstance(complete, Complete)
    assert (complete.token, complete.response) == (8, DECLINED)
    assert outcome(life, True) == Deliver(kept=True)


def test_where_the_transaction_was_the_claim_it_is_opened_anew() -> None:
    life = running(Policy(guarantee="atomic"), opens=True)
    assert life.send(RAISED) == Undo(KEY, 8)
    assert life.send(None) == Open(KEY, PRINT, MINE)
    complete = life.send(Claimed(9, 1, opened=True))
    assert isinstance(complete, Complete)
    assert complete.token == 9
    assert outcome(life, True) == Deliver(kept=True)


def test_whoever_took_the_key_in_between_has_the_last_word() -> None:
    life = running(Policy(guarantee="atomic"), opens=True)
    life.send(RAISED)
    life.send(None)
    assert isinstance(life.send(None), Sleep)  # another transaction holds the key
    assert isinstance(life.send(None), Open)
    created = Response(201, (), b"theirs")
    assert outcome(life, completed(created)) == Replay(created)


@pytest.mark.parametrize(
    ("stepped", "problem"),
    [(False, problems.IN_FLIGHT), (True, problems.OUTCOME_UNRECORDED)],
)
def test_a_key_that_stays_taken_is_in_flight(stepped: bool, problem: Any) -> None:
    life = running(Policy(guarantee="atomic"), opens=True)
    life.send(RAISED._replace(stepped=stepped))
    life.send(None)
    for _ in range(3):
        assert isinstance(life.send(None), Sleep)
        assert isinstance(life.send(None), Open)
    assert outcome(life, None) == Refuse(problem)


def test_where_the_key_cannot_be_had_again_the_store_is_unavailable() -> None:
    life = running(Policy(guarantee="atomic"), opens=True)
    life.send(RAISED)
    life.send(None)
    for _ in range(3):
        assert isinstance(life.throw(StoreUnavailable("down")), Sleep)
        assert isinstance(life.send(None), Open)
    with pytest.raises(StopIteration) as end:
        life.throw(StoreUnavailable("down"))
    assert end.value.value == Refuse(problems.STORE_UNAVAILABLE)


def test_an_undo_that_fails_gives_the_claim_back_and_records_nothing() -> None:
    life = running()
    life.send(RAISED)
    assert life.throw(StoreUnknown("?")) == Release(KEY, 8)
    assert outcome(life, True) == Refuse(problems.STORE_UNAVAILABLE)


def test_a_completion_that_fails_is_tried_again_for_there_is_nothing_left_to_commit() -> None:
    life = running()
    life.send(RAISED)
    life.send(None)
    assert isinstance(life.throw(StoreUnavailable("down")), Sleep)
    assert isinstance(life.send(None), Complete)
    assert outcome(life, True) == Deliver(kept=True)


def test_fenced_by_one_who_runs_it_says_in_flight() -> None:
    life = running()
    life.send(RAISED)
    life.send(None)
    life.send(False)
    record = Record(KEY, State.IN_FLIGHT, 9, b"other", 2, PRINT, 99, 0, 0, None, None)
    assert outcome(life, Found(record, 10.0)) == Refuse(problems.IN_FLIGHT)


@pytest.mark.parametrize("policy", [Policy(), Policy(guarantee="at-most-once")])
def test_without_a_transaction_there_is_nothing_to_undo(policy: Policy) -> None:
    life = running(policy)
    assert isinstance(life.send(RAISED._replace(atomic=False)), Complete)


@pytest.mark.parametrize("status", [401, 409, 500, 503])
def test_what_is_not_kept_is_released(status: int) -> None:
    life = running()
    answer = Answer(Response(status, (), b""), atomic=True, raised=True)
    assert life.send(answer) == Release(KEY, 8)
    assert outcome(life, True) == Deliver(kept=False)


def test_a_failure_that_is_kept_keeps_none_of_what_was_written() -> None:
    life = running(Policy(guarantee="at-most-once"))
    assert life.send(failures.failed(atomic=True)) == Undo(KEY, 8)
    assert isinstance(life.send(None), Complete)


def test_a_stream_that_broke_off_stays_as_it_was_sent() -> None:
    sent = failures.failed(atomic=True, sent=Response(200, (), None))
    assert isinstance(running().send(sent), Complete)


def test_a_raise_before_any_write_needs_no_connection() -> None:
    life = running(Policy(guarantee="atomic"))
    assert isinstance(life.send(RAISED._replace(atomic=False)), Complete)


# --- Policy(keep=...) ---------------------------------------------------------------------------


def keeps(rule: Any, answer: Answer, **rules: Any) -> bool:
    command = running(Policy(keep=rule, **rules)).send(answer)
    assert isinstance(command, (Complete, Release))
    return isinstance(command, Complete)


def test_keep_sees_the_response_and_decides_alone() -> None:
    seen: list[Response] = []

    def keep(response: Response) -> bool:
        seen.append(response)
        return response.body != b"no"

    assert keeps(keep, Answer(Response(200, ((b"a", b"b"),), b"yes")))
    assert not keeps(keep, Answer(Response(200, (), b"no")))
    assert keeps(keep, Answer(Response(503, (), b"busy")))
    assert keeps(keep, Answer(Response(401, (), b"who")))
    assert seen[0] == Response(200, ((b"a", b"b"),), b"yes")


def test_an_exception_that_became_a_500_is_not_kept_by_it() -> None:
    assert not keeps(lambda response: True, failures.failed(atomic=False))
    flask = Answer(Response(500, (), b"Internal Server Error"), raised=True)
    assert not keeps(lambda response: True, flask)
    assert keeps(lambda response: False, flask, guarantee="at-most-once")


def test_where_it_raises_the_rule_without_it_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    def keep(response: Response) -> bool:
        assert response.body is not None
        return bool(response.body[0])

    with caplog.at_level(logging.ERROR, "semel"):
        assert keeps(keep, Answer(Response(200, (), b"")))
        assert not keeps(keep, Answer(Response(500, (), b"")))
        assert keeps(keep, Answer(Response(200, (), None), sent=True))
    assert len(caplog.records) == 3
    assert "Policy.keep" in caplog.text


def test_release_goes_before_it() -> None:
    assert not keeps(lambda response: True, Answer(Response(201, (), b""), released=True))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"keep": lambda response: True, "keep_statuses": frozenset({201})}, "keep_statuses"),
        ({"keep": {201}}, "keep: give a function"),
    ],
)
def test_rules_of_it_that_make_no_sense(rules: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        Policy(**rules)
