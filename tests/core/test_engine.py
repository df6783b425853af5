"""The engine's decisions, driven by hand: each test answers its commands and reads its outcome."""

from __future__ import annotations

from collections.abc import Generator
from datetime import timedelta
from typing import Any

import pytest

from semel.core import problems
from semel.core.commands import (
    Answer,
    Claim,
    Claimed,
    Complete,
    Found,
    Lookup,
    Park,
    Release,
    RunHandler,
    Sleep,
    StoreUnavailable,
    StoreUnknown,
    Takeover,
    Wait,
)
from semel.core.engine import Bypass, Deliver, Refuse, Replay, Request, run
from semel.core.policy import Policy
from semel.core.record import Record, Response, State

KEY = b"k" * 16
MINE = b"owner-me"
PRINT = b"\x01" + b"f" * 32
OTHER_PRINT = b"\x01" + b"g" * 32
CREATED = Response(201, ((b"content-type", b"text/plain"),), b"done")
FAILED = problems.HANDLER_FAILED.response()
NOW = 1000.0

Life = Generator[Any, Any, Any]


def begin(policy: Policy | None = None, found: Found | None = None) -> Life:
    return run(Request(KEY, MINE, lambda algorithm: PRINT), policy or Policy(), found)


def record(state: State, **changes: Any) -> Record:
    base = Record(KEY, state, 7, b"somebody", 1, PRINT, NOW + 30, NOW + 100, NOW + 200, None, None)
    return base._replace(**changes)


def found(state: State, **changes: Any) -> Found:
    return Found(record(state, **changes), NOW)


def outcome(life: Life, value: Any) -> Any:
    with pytest.raises(StopIteration) as end:
        life.send(value)
    return end.value.value


def running(policy: Policy | None = None) -> Life:
    """A life whose handler has just been started under token 8."""
    life = begin(policy)
    assert isinstance(next(life), Claim)
    assert life.send(Claimed(8, 1)) == RunHandler(8, 1)
    return life


def test_a_first_request_claims_runs_and_completes() -> None:
    life = begin()
    assert next(life) == Claim(KEY, PRINT, 30.0, MINE)
    assert life.send(Claimed(8, 1)) == RunHandler(8, 1)
    day, month = 86400.0, 30 * 86400.0
    assert life.send(Answer(CREATED)) == Complete(KEY, 8, CREATED, day, month)
    assert outcome(life, True) == Deliver(kept=True)


def test_a_completed_record_is_replayed_and_nothing_runs() -> None:
    life = begin()
    next(life)
    assert outcome(life, found(State.COMPLETED, response=CREATED)) == Replay(CREATED)


@pytest.mark.parametrize("state", [State.IN_FLIGHT, State.COMPLETED, State.PARKED])
def test_another_fingerprint_is_refused_in_every_state(state: State) -> None:
    life = begin()
    next(life)
    refused = outcome(life, found(state, fingerprint=OTHER_PRINT, response=CREATED))
    assert refused == Refuse(problems.KEY_REUSED)


def test_a_record_of_an_unknown_algorithm_is_not_guessed_at() -> None:
    def fingerprint(algorithm: int) -> bytes:
        if algorithm != 1:
            raise ValueError(algorithm)
        return PRINT

    life = run(Request(KEY, MINE, fingerprint), Policy())
    next(life)
    newer = found(State.COMPLETED, fingerprint=b"\x63" + b"f" * 32, response=CREATED)
    assert outcome(life, newer) == Refuse(problems.STORE_UNAVAILABLE)


def test_a_parked_record_says_so_with_its_reference() -> None:
    life = begin()
    next(life)
    refused = outcome(life, found(State.PARKED))
    assert refused.problem.slug == "outcome-unknown"
    assert refused.problem.reference == KEY[:6].hex()
    assert refused.problem.retry_after is None


@pytest.mark.parametrize("response", [None, CREATED._replace(body=None)])
def test_an_answer_that_was_not_kept_is_never_run_again(response: Response | None) -> None:
    life = begin()
    next(life)
    refused = outcome(life, found(State.COMPLETED, response=response))
    assert refused.problem.slug == "response-not-kept"


@pytest.mark.parametrize(
    "over", [found(State.COMPLETED, expires_at=NOW, response=CREATED), found(State.EXPIRED)]
)
def test_an_expired_key_is_refused(over: Found) -> None:
    life = begin()
    next(life)
    assert outcome(life, over) == Refuse(problems.KEY_EXPIRED)


def test_an_expired_key_starts_anew_where_the_route_says_so() -> None:
    life = begin(Policy(after_expiry="run"))
    next(life)
    expired = found(State.COMPLETED, expires_at=NOW, response=CREATED, fingerprint=OTHER_PRINT)
    assert life.send(expired) == Takeover(KEY, 7, PRINT, 30.0, MINE, expired=True)
    assert life.send(Claimed(9, 1)) == RunHandler(9, 1)
    answered = life.send(Answer(CREATED))
    assert answered.tombstone == 0.0


def test_a_repeat_in_flight_waits_and_gets_the_answer() -> None:
    life = begin()
    next(life)
    wait = life.send(found(State.IN_FLIGHT))
    assert wait == Wait(KEY, 0.02, 5.0, 100)
    assert life.send(0.5) == Lookup(KEY)
    assert outcome(life, found(State.COMPLETED, response=CREATED)) == Replay(CREATED)


def test_waiting_ends_with_409() -> None:
    life = begin(Policy(wait=timedelta(seconds=1)))
    next(life)
    waits = 0
    command = life.send(found(State.IN_FLIGHT))
    while True:
        assert isinstance(command, Wait)
        waits += 1
        assert life.send(0.4) == Lookup(KEY)
        try:
            command = life.send(found(State.IN_FLIGHT))
        except StopIteration as end:
            assert end.value == Refuse(problems.IN_FLIGHT)
            break
    assert waits == 3


def test_without_patience_the_409_comes_at_once() -> None:
    life = begin(Policy(wait=timedelta()))
    next(life)
    assert outcome(life, found(State.IN_FLIGHT)) == Refuse(problems.IN_FLIGHT)


def test_one_waiter_too_many_gets_409_at_once() -> None:
    life = begin()
    next(life)
    life.send(found(State.IN_FLIGHT))
    assert outcome(life, None) == Refuse(problems.IN_FLIGHT)


def test_a_released_key_is_claimed_by_the_waiter() -> None:
    life = begin()
    next(life)
    life.send(found(State.IN_FLIGHT))
    life.send(0.1)
    assert isinstance(life.send(None), Claim)


def test_a_lease_that_ended_is_taken_over() -> None:
    life = begin()
    next(life)
    assert life.send(found(State.IN_FLIGHT, lease_until=NOW)) == Takeover(
        KEY, 7, PRINT, 30.0, MINE, expired=False
    )
    assert life.send(Claimed(9, 2)) == RunHandler(9, 2)


def test_a_lost_takeover_race_waits_like_any_repeat() -> None:
    life = begin()
    next(life)
    life.send(found(State.IN_FLIGHT, lease_until=NOW))
    assert isinstance(life.send(found(State.IN_FLIGHT, token=9)), Wait)


def test_at_most_once_parks_what_crashed_and_never_runs_it() -> None:
    life = begin(Policy(guarantee="at-most-once"))
    next(life)
    park = life.send(found(State.IN_FLIGHT, lease_until=NOW))
    assert isinstance(park, Park)
    assert (park.token, park.lapsed) == (7, True)
    assert life.send(True) == Lookup(KEY)
    assert outcome(life, found(State.PARKED)).problem.slug == "outcome-unknown"


def test_a_claim_whose_answer_was_lost_is_recognised() -> None:
    life = begin()
    next(life)
    assert life.throw(StoreUnknown("cut")) == Lookup(KEY)
    assert life.send(found(State.IN_FLIGHT, owner=MINE)) == RunHandler(7, 1)


def test_a_claim_that_was_lost_is_made_again() -> None:
    life = begin()
    next(life)
    life.throw(StoreUnknown("cut"))
    assert isinstance(life.send(None), Claim)


def test_a_dead_store_refuses_and_nothing_runs() -> None:
    life = begin()
    next(life)
    with pytest.raises(StopIteration) as end:
        life.throw(StoreUnavailable("down"))
    assert end.value.value == Refuse(problems.STORE_UNAVAILABLE)


def test_a_dead_store_lets_pass_where_the_route_chose_so() -> None:
    life = begin(Policy(on_store_error="run"))
    next(life)
    with pytest.raises(StopIteration) as end:
        life.throw(StoreUnavailable("down"))
    assert end.value.value == Bypass()


@pytest.mark.parametrize("status", [401, 403, 408, 409, 425, 428, 429, 500, 503])
def test_what_is_no_outcome_is_released(status: int) -> None:
    life = running()
    assert life.send(Answer(Response(status, (), b""))) == Release(KEY, 8)
    assert outcome(life, True) == Deliver(kept=False)


@pytest.mark.parametrize("status", [200, 204, 303, 400, 404, 422])
def test_what_is_an_outcome_is_kept(status: int) -> None:
    assert isinstance(running().send(Answer(Response(status, (), b""))), Complete)


def test_a_handler_that_raised_is_released() -> None:
    life = running()
    assert life.send(Answer(FAILED)) == Release(KEY, 8)
    assert outcome(life, True) == Deliver(kept=False)


def test_at_most_once_keeps_5xx_and_exceptions() -> None:
    policy = Policy(guarantee="at-most-once")
    assert isinstance(running(policy).send(Answer(Response(500, (), b""))), Complete)
    life = running(policy)
    assert life.send(Answer(FAILED)).response == FAILED
    assert outcome(life, True) == Deliver(kept=True)


@pytest.mark.parametrize("policy", [Policy(), Policy(guarantee="at-most-once")])
@pytest.mark.parametrize("response", [CREATED, FAILED])
def test_a_handler_that_did_nothing_gives_the_key_back(policy: Policy, response: Response) -> None:
    life = running(policy)
    assert life.send(Answer(response, released=True)) == Release(KEY, 8)
    assert outcome(life, True) == Deliver(kept=False)


def test_keep_statuses_replaces_the_rule() -> None:
    policy = Policy(keep_statuses=frozenset({503}))
    assert isinstance(running(policy).send(Answer(Response(503, (), b""))), Complete)
    assert isinstance(running(policy).send(Answer(Response(201, (), b""))), Release)


def test_a_release_that_fails_is_left_to_the_lease() -> None:
    life = running()
    life.send(Answer(FAILED))
    with pytest.raises(StopIteration) as end:
        life.throw(StoreUnavailable("down"))
    assert end.value.value == Deliver(kept=False)


def test_a_broken_stream_completes_without_its_answer() -> None:
    life = running()
    complete = life.send(Answer(Response(200, (), None), sent=True))
    assert complete.response.body is None
    assert outcome(life, True) == Deliver(kept=True)


def test_declared_atomic_and_forgotten_is_an_error() -> None:
    policy = Policy(guarantee="atomic")
    life = running(policy)
    assert life.send(Answer(CREATED, atomic=False)) == Release(KEY, 8)
    assert outcome(life, True) == Refuse(problems.CONNECTION_NOT_TAKEN)
    assert isinstance(running(policy).send(Answer(CREATED, atomic=True)), Complete)


@pytest.mark.parametrize(("status", "kept"), [(412, True), (422, True), (428, False)])
def test_declared_atomic_and_refused_before_the_connection_was_taken_is_no_error(
    status: int, kept: bool
) -> None:
    life = running(Policy(guarantee="atomic"))
    command = life.send(Answer(Response(status, (), b""), atomic=False))
    assert isinstance(command, Complete if kept else Release)
    assert outcome(life, True) == Deliver(kept=kept)


def test_a_fenced_handler_answers_what_its_successor_recorded() -> None:
    life = running()
    life.send(Answer(CREATED, atomic=True))
    assert life.send(False) == Lookup(KEY)
    theirs = CREATED._replace(body=b"theirs")
    taken = found(State.COMPLETED, token=9, response=theirs)
    assert outcome(life, taken) == Replay(theirs)


@pytest.mark.parametrize(("atomic", "slug"), [(True, "in-flight"), (False, "outcome-unrecorded")])
def test_a_fenced_handler_says_what_it_knows(atomic: bool, slug: str) -> None:
    life = running()
    life.send(Answer(CREATED, atomic=atomic))
    life.send(False)
    assert outcome(life, found(State.IN_FLIGHT, token=9)).problem.slug == slug


@pytest.mark.parametrize(
    ("state", "slug"),
    [(State.IN_FLIGHT, "outcome-unrecorded"), (State.PARKED, "outcome-unknown")],
)
def test_a_fenced_handler_that_took_steps_is_not_reported_undone(state: State, slug: str) -> None:
    """Found by the simulator: S8."""
    life = running()
    life.send(Answer(CREATED, atomic=True, stepped=True))
    life.send(False)
    assert outcome(life, found(state, token=9)).problem.slug == slug


@pytest.mark.parametrize("over", ["another request's", "expired"])
@pytest.mark.parametrize(
    ("answer", "undone"),
    [
        (Answer(CREATED, atomic=True), True),
        (Answer(CREATED, atomic=True, stepped=True), False),
        (Answer(CREATED), False),
    ],
)
def test_a_refusal_of_one_that_ran_says_so(over: str, answer: Answer, undone: bool) -> None:
    """Found by the simulator: S8. The record says "not executed", and this attempt did execute."""
    life = running()
    life.send(answer)
    life.send(False)
    taken = found(State.EXPIRED, token=9)
    slug = "key-expired"
    if over == "another request's":
        taken = found(State.COMPLETED, token=9, fingerprint=OTHER_PRINT, response=CREATED)
        slug = "key-reused"
    assert outcome(life, taken).problem.slug == (slug if undone else "outcome-unrecorded")


def test_an_atomic_commit_that_failed_does_not_undo_steps() -> None:
    """Found by the simulator: S8. Its rows are gone, what its steps did elsewhere is not."""
    life = running()
    life.send(Answer(CREATED, atomic=True, stepped=True))
    assert life.throw(StoreUnavailable("full")) == Release(KEY, 8)
    assert outcome(life, True) == Refuse(problems.OUTCOME_UNRECORDED)
    life = running()
    life.send(Answer(CREATED, atomic=True, stepped=True))
    life.throw(StoreUnknown("cut"))
    assert life.send(found(State.IN_FLIGHT, token=8)) == Release(KEY, 8)
    assert outcome(life, True) == Refuse(problems.OUTCOME_UNRECORDED)


def test_an_atomic_commit_that_failed_left_nothing() -> None:
    life = running()
    life.send(Answer(CREATED, atomic=True))
    assert life.throw(StoreUnavailable("full")) == Release(KEY, 8)
    assert outcome(life, True) == Refuse(problems.STORE_UNAVAILABLE)


def test_a_lost_commit_answer_is_read_back_and_found_done() -> None:
    life = running()
    life.send(Answer(CREATED, atomic=True))
    assert life.throw(StoreUnknown("cut")) == Lookup(KEY)
    assert outcome(life, found(State.COMPLETED, token=8)) == Deliver(kept=True)


def test_a_lost_commit_answer_is_settled_by_giving_the_claim_back() -> None:
    life = running()
    life.send(Answer(CREATED, atomic=True))
    life.throw(StoreUnknown("cut"))
    assert life.send(found(State.IN_FLIGHT, token=8)) == Release(KEY, 8)
    assert outcome(life, True) == Refuse(problems.STORE_UNAVAILABLE)


def test_a_commit_that_lands_during_the_read_back_counts() -> None:
    life = running()
    life.send(Answer(CREATED, atomic=True))
    life.throw(StoreUnknown("cut"))
    life.send(found(State.IN_FLIGHT, token=8))
    assert life.send(False) == Lookup(KEY)  # the release came too late: it has committed
    assert outcome(life, found(State.COMPLETED, token=8)) == Deliver(kept=True)


def test_a_plain_completion_is_tried_again_before_giving_up() -> None:
    life = running()
    command = life.send(Answer(CREATED))
    tries = sleeps = 0
    while True:
        if isinstance(command, Complete):
            tries += 1
            try:
                command = life.throw(StoreUnavailable("down"))
            except StopIteration as end:
                assert end.value == Refuse(problems.OUTCOME_UNRECORDED)
                break
        else:
            assert isinstance(command, Sleep)
            sleeps += 1
            command = life.send(None)
    assert (tries, sleeps) == (4, 3)


def test_a_read_back_that_fails_is_never_taken_for_a_no() -> None:
    life = running()
    life.send(Answer(CREATED, atomic=True))
    command = life.throw(StoreUnknown("cut"))
    while True:
        try:
            if isinstance(command, Lookup):
                command = life.throw(StoreUnavailable("down"))
            else:
                assert isinstance(command, Sleep)
                command = life.send(None)
        except StopIteration as end:
            assert end.value == Refuse(problems.OUTCOME_UNRECORDED)
            return
