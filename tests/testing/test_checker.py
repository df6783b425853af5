"""The history checker: what breaks each invariant, what does not, and what it has not looked at."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.judge.checker import check, main
from lab.judge.contract import Promise
from lab.judge.findings import INVARIANTS, HistoryReport, merged, summary, upper_bound
from lab.judge.history import (
    Action,
    ClaimGranted,
    Effect,
    Event,
    FinalRecord,
    Foreign,
    Headers,
    History,
    HistoryError,
    Kind,
    Note,
    Paused,
    Purged,
    ResponseSeen,
    Restarted,
    Sent,
    Settled,
    State,
    StepBegun,
    StepsForgotten,
    StepSkipped,
    Stored,
    Surveyed,
    Where,
    Wrote,
)
from lab.judge.history_file import EVENTS, dump, dump_event, load, load_event
from lab.judge.invariants.judges import JUDGES
from lab.judge.responses import digest_of

ATOMIC = Promise("atomic")
AT_LEAST_ONCE = Promise("at-least-once")
AT_MOST_ONCE = Promise("at-most-once")
EVERY_PROMISE = pytest.mark.parametrize("promise", [ATOMIC, AT_LEAST_ONCE, AT_MOST_ONCE])
TYPE: Headers = ((b"Content-Type", b"application/json"),)


class Tale:
    """Writes a history down; the clock ticks a second with each event unless it is told to wait."""

    def __init__(self, scope: str = "alice", key: str = "k") -> None:
        self.history: History = []
        self.now = 0.0
        self.name = (scope, key)

    def tell(self, kind: type[Any], *fields: Any, **named: Any) -> Tale:
        self.now += 1
        self.history.append(kind(self.now, *fields, **named))
        return self

    def of(self, scope: str, key: str = "k") -> Tale:
        self.name = (scope, key)
        return self

    def wait(self, seconds: float) -> Tale:
        self.now += seconds
        return self

    def sent(self, attempt: str, fingerprint: str = "fp", **named: Any) -> Tale:
        return self.tell(Sent, attempt, *self.name, fingerprint, **named)

    def answered(
        self,
        attempt: str,
        kind: Kind = "ok",
        status: int = 201,
        body: str | None = None,
        **named: Any,
    ) -> Tale:
        text = f"made by {attempt}" if body is None else body
        named.setdefault("headers", TYPE)
        return self.tell(ResponseSeen, attempt, kind, status, text.encode(), **named)

    def replayed(self, attempt: str, body: str, status: int = 201) -> Tale:
        return self.answered(attempt, "ok", status, body, replayed=True)

    def claimed(self, attempt: str, token: int, lease: float | None = 30.0) -> Tale:
        until = None if lease is None else self.now + 1 + lease
        return self.tell(ClaimGranted, attempt, *self.name, token, until)

    def wrote(
        self, attempt: str, token: int, action: Action, applied: bool = True, **named: Any
    ) -> Tale:
        return self.tell(Wrote, attempt, *self.name, token, action, applied, **named)

    def stored(self, state: State, token: int, fingerprint: str = "fp", **named: Any) -> Tale:
        return self.tell(Stored, *self.name, state, token, fingerprint, **named)

    def effect(
        self,
        attempt: str,
        token: int | None = None,
        where: Where = "database",
        step: str | None = None,
    ) -> Tale:
        return self.tell(Effect, attempt, *self.name, token, where, step)

    def called(self, attempt: str, step: str, derived: str = "derived") -> Tale:
        return self.tell(Foreign, attempt, *self.name, step, derived)

    def came_to(self, attempt: str, step: str) -> Tale:
        return self.tell(StepBegun, attempt, *self.name, step)

    def skipped(self, attempt: str, step: str, digest: str | None = None) -> Tale:
        return self.tell(StepSkipped, attempt, *self.name, step, digest)

    def purged(self) -> Tale:
        return self.tell(Purged, *self.name)

    def settled(self, state: State) -> Tale:
        return self.tell(Settled, *self.name, state)

    def crashed(self) -> Tale:
        return self.tell(Restarted, "server-1")

    def surveyed(self) -> Tale:
        return self.tell(Surveyed)

    def final(self, state: State, token: int | None = None, **named: Any) -> Tale:
        return self.tell(FinalRecord, *self.name, state, token, **named)

    def copy(self) -> Tale:
        copy = Tale(*self.name)
        copy.history, copy.now = list(self.history), self.now
        return copy

    def ran(self, attempt: str, token: int, **named: Any) -> Tale:
        """Claim, act, complete, answer: an operation as it should be, told from inside."""
        digest = digest_of(201, TYPE, f"made by {attempt}".encode())
        self.claimed(attempt, token).stored("in_flight", token)
        self.effect(attempt, token).wrote(attempt, token, "complete", response_digest=digest)
        return self.stored("completed", token, response_digest=digest, **named).answered(attempt)


def broken(tale: Tale, promise: Promise) -> set[str]:
    return {violation.invariant for violation in check(tale.history, promise).violations}


def only_violation(tale: Tale, promise: Promise) -> tuple[str, str]:
    report = check(tale.history, promise)
    assert len(report.violations) == 1, summary(report)
    return report.violations[0].invariant, report.violations[0].message


# ---------------------------------------------------------------- histories that keep the promise


@EVERY_PROMISE
def test_an_operation_and_its_replays_keep_every_promise(promise: Promise) -> None:
    tale = Tale().sent("a").ran("a", 1).sent("b").replayed("b", "made by a")
    tale.sent("c", "other").answered("c", "refused", 422)
    tale.surveyed().final("completed", 1)
    report = check(tale.history, promise)
    report.require("S1", "S2", "S3", "S4", "S5", "S7", "S8", "L1")
    assert report.admitted == ()


@EVERY_PROMISE
def test_a_history_told_only_by_clients_and_effects_is_judged_as_far_as_it_goes(
    promise: Promise,
) -> None:
    tale = Tale().sent("a").effect("a").answered("a").sent("b").replayed("b", "made by a")
    report = check(tale.surveyed().final("completed").history, promise)
    report.require("S1", "S2", "S3", "L1")
    assert {"S4", "S9", "S10", "S6"} <= set(report.unchecked)


def test_an_empty_history_is_clean_but_nothing_was_looked_at() -> None:
    report = check([], ATOMIC)
    assert report.ok
    assert report.unchecked == tuple(INVARIANTS)
    with pytest.raises(AssertionError, match="S1 was not judged"):
        report.require("S1")


def test_a_crash_before_the_commit_lets_the_next_request_run() -> None:
    tale = Tale().sent("a").claimed("a", 1).stored("in_flight", 1).crashed().wait(40)
    tale.sent("b").ran("b", 2).answered("a", "unknown", 0).surveyed().final("completed", 2)
    check(tale.history, ATOMIC).require("S1", "S2", "S4", "S5")


def test_a_failed_handler_gives_its_claim_back_and_a_retry_runs() -> None:
    tale = Tale().sent("a").claimed("a", 1).stored("in_flight", 1)
    tale.wrote("a", 1, "release").stored("absent", 1).answered("a", "released", 500)
    tale.sent("b", "other").claimed("b", 2).stored("in_flight", 2, "other")
    assert check(tale.history, ATOMIC).ok


def test_an_unknown_outcome_is_parked_by_the_next_request() -> None:
    tale = Tale().sent("a").claimed("a", 1).stored("in_flight", 1).effect("a", 1).crashed()
    tale.wait(40).sent("b").wrote("b", 1, "park").stored("parked", 1)
    tale.answered("b", "unknown", 409).answered("a", "unknown", 0).surveyed().final("parked", 1)
    check(tale.history, AT_MOST_ONCE).require("S1", "S2", "S4", "S5", "L1")


# ---------------------------------------------------------------- S1


@EVERY_PROMISE
def test_s1_the_same_attempt_never_acts_twice(promise: Promise) -> None:
    tale = Tale().sent("a").effect("a").effect("a").answered("a")
    assert only_violation(tale, promise) == ("S1", "a second effect (database)")


@EVERY_PROMISE
def test_s1_a_second_run_beside_the_first_is_caught(promise: Promise) -> None:
    tale = Tale().sent("a").sent("b").effect("a").effect("b").answered("a")
    tale.replayed("b", "made by a")
    assert "S1" in broken(tale, promise)


def test_s1_a_repeat_after_a_crash_is_admitted_at_least_once_and_nowhere_else() -> None:
    def tale() -> Tale:
        told = Tale().sent("a").effect("a").crashed().answered("a", "unknown", 0)
        return told.sent("b").effect("b").answered("b").surveyed().final("completed")

    report = check(tale().history, AT_LEAST_ONCE)
    assert report.ok
    assert [admitted.invariant for admitted in report.admitted] == ["S1"]
    assert "cut off" in report.admitted[0].message
    assert only_violation(tale(), ATOMIC)[0] == "S1"
    assert only_violation(tale(), AT_MOST_ONCE)[0] == "S1"


def test_s1_a_repeat_after_a_kept_answer_is_never_admitted() -> None:
    tale = Tale().sent("a").crashed().effect("a").answered("a")
    tale.sent("b").effect("b").answered("b", body="made by a")
    assert only_violation(tale, AT_LEAST_ONCE)[0] == "S1"


def test_s1_a_process_that_stood_still_may_act_after_its_successor_at_least_once() -> None:
    tale = Tale().sent("a").claimed("a", 1).tell(Paused, "server-1").wait(40)
    tale.sent("b").claimed("b", 2).effect("b", 2).wrote("b", 2, "complete").effect("a", 1)
    tale.answered("b").answered("a", "unknown", 503)
    report = check(tale.history, AT_LEAST_ONCE)
    assert report.ok, summary(report)
    assert len(report.admitted) == 1


def test_s1_a_foreign_effect_outside_a_step_may_repeat_in_atomic_mode() -> None:
    tale = Tale().sent("a").effect("a", where="elsewhere").crashed().sent("b")
    tale.effect("b", where="elsewhere").effect("b").answered("b")
    report = check(tale.history, ATOMIC)
    assert report.ok, summary(report)
    assert "not tied" in report.admitted[0].message


def test_s1_a_step_repeats_only_where_the_far_side_ignores_keys() -> None:
    def tale() -> Tale:
        told = Tale().sent("a").effect("a", where="elsewhere", step="charge").crashed()
        told.sent("b").effect("b", where="elsewhere", step="charge")
        return told.effect("b").answered("b")

    assert only_violation(tale(), ATOMIC) == ("S1", "a second effect (step 'charge')")
    ignoring = ATOMIC._replace(far_side="ignores-keys")
    assert len(check(tale().history, ignoring).admitted) == 1
    assert broken(tale(), ignoring._replace(on_unknown="park")) == {"S1"}
    assert broken(tale(), ignoring._replace(guarantee="at-most-once")) == {"S1"}


def test_s1_two_steps_are_two_effects() -> None:
    tale = Tale().sent("a").effect("a", where="elsewhere", step="one")
    tale.effect("a", where="elsewhere", step="two").effect("a").answered("a")
    assert check(tale.history, ATOMIC).ok


def test_s1_at_most_once_forbids_the_second_run_itself() -> None:
    tale = Tale().sent("a").claimed("a", 1).crashed().wait(40).sent("b").claimed("b", 2)
    assert only_violation(tale, AT_MOST_ONCE)[0] == "S1"
    assert check(tale.history, AT_LEAST_ONCE).ok


# ---------------------------------------------------------------- S2


@EVERY_PROMISE
def test_s2_a_kept_answer_without_its_record_is_caught(promise: Promise) -> None:
    tale = Tale().sent("a").answered("a", status=404).surveyed()
    assert only_violation(tale, promise)[0] == "S2"


@pytest.mark.parametrize("state", ["absent", "in_flight", "parked"])
def test_s2_a_kept_answer_needs_a_completed_record_in_the_end(state: State) -> None:
    tale = Tale().sent("a").answered("a", status=404).surveyed().final(state)
    assert "S2" in broken(tale, AT_LEAST_ONCE)


@EVERY_PROMISE
def test_s2_success_without_an_effect_is_caught(promise: Promise) -> None:
    tale = Tale().sent("a").answered("a")
    assert only_violation(tale, promise) == ("S2", "success was answered, but no effect stands")
    assert check(tale.history, promise._replace(effect_per_success=False)).ok


def test_s2_success_before_its_effect_is_caught_where_effects_are_told_in_order() -> None:
    tale = Tale().sent("a").answered("a").sent("b").effect("b")
    assert "S2" in broken(tale, AT_LEAST_ONCE)
    assert check(tale.history, AT_LEAST_ONCE._replace(effects_in_order=False)).ok


def test_s2_an_answer_before_the_completion_is_caught() -> None:
    tale = Tale().sent("a").claimed("a", 1).answered("a", status=404).wrote("a", 1, "complete")
    assert only_violation(tale, AT_LEAST_ONCE) == ("S2", "answered before the record was complete")


def test_s2_an_atomic_effect_without_its_record_is_caught() -> None:
    tale = Tale().sent("a").claimed("a", 1).stored("in_flight", 1).effect("a", 1)
    assert only_violation(tale, ATOMIC) == ("S2", "an effect was committed without its record")
    assert check(tale.history, AT_LEAST_ONCE).ok


def test_s2_at_most_once_forgets_no_effect() -> None:
    tale = Tale().sent("a").effect("a").crashed().surveyed()
    assert only_violation(tale, AT_MOST_ONCE)[0] == "S2"
    assert check(tale.final("parked").history, AT_MOST_ONCE).ok
    assert only_violation(tale, ATOMIC)[0] == "S2"


# ---------------------------------------------------------------- S3


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"body": "made by a "}, "bodies"),
        ({"status": 200, "body": "made by a"}, "status"),
        ({"body": "made by a", "headers": ((b"content-type", b"text/html"),)}, "headers"),
    ],
)
@EVERY_PROMISE
def test_s3_a_replay_that_differs_is_caught(
    promise: Promise, change: dict[str, Any], what: str
) -> None:
    tale = Tale().sent("a").effect("a").answered("a").sent("b").answered("b", **change)
    invariant, message = only_violation(tale, promise)
    assert invariant == "S3"
    assert what in message


def test_s3_headers_of_the_moment_may_differ() -> None:
    first = (*TYPE, (b"Date", b"Mon"), (b"X-RateLimit-Left", b"9"), (b"Content-Length", b"9"))
    again = ((b"content-type", b"application/json"), (b"idempotent-replayed", b"true"))
    tale = Tale().sent("a").effect("a").answered("a", headers=first)
    tale.sent("b").answered("b", body="made by a", headers=again)
    check(tale.history, ATOMIC).require("S3")
    assert digest_of(201, first, b"") == digest_of(201, again, b"")


def test_s3_an_answer_other_than_the_stored_one_is_caught_though_only_one_client_saw_it() -> None:
    tale = Tale().sent("a").claimed("a", 1).effect("a", 1).wrote("a", 1, "complete")
    tale.stored("completed", 1, response_digest="something else").answered("a")
    assert only_violation(tale, ATOMIC) == ("S3", "the answer is not the one that was stored")


# ---------------------------------------------------------------- S4


def _completed(**named: Any) -> Tale:
    tale = Tale().sent("a").claimed("a", 1).stored("in_flight", 1).wrote("a", 1, "complete")
    return tale.stored("completed", 1, response_digest="first", **named)


def test_s4_a_completed_record_never_changes() -> None:
    tale = _completed().stored("completed", 1, response_digest="second")
    assert only_violation(tale, AT_LEAST_ONCE) == ("S4", "a completed record was changed")


@pytest.mark.parametrize("state", ["in_flight", "parked", "absent"])
def test_s4_a_completed_record_never_goes_back(state: State) -> None:
    tale = _completed().stored(state, 1)
    assert only_violation(tale, AT_LEAST_ONCE) == ("S4", f"completed became {state}")


def test_s4_a_record_is_neither_purged_nor_expired_before_its_time() -> None:
    assert only_violation(_completed(expires=99.0).purged(), ATOMIC)[0] == "S4"
    early = _completed(expires=99.0).stored("expired", 1)
    assert only_violation(early, ATOMIC) == ("S4", "completed became expired before its expiry")
    assert check(_completed(expires=99.0).wait(99).purged().history, ATOMIC).ok


def test_s4_a_record_in_flight_is_never_purged() -> None:
    tale = Tale().sent("a").claimed("a", 1).stored("in_flight", 1).purged()
    assert only_violation(tale, ATOMIC) == ("S4", "in_flight became absent")


def test_s4_a_claim_over_a_completed_record_is_caught() -> None:
    tale = _completed().sent("b").claimed("b", 2)
    assert "S4" in broken(tale, AT_LEAST_ONCE)


def test_s4_a_parked_record_stays_until_it_is_settled() -> None:
    tale = Tale().sent("a").claimed("a", 1).wrote("a", 1, "park").stored("parked", 1)
    assert only_violation(tale.copy().stored("completed", 1), AT_LEAST_ONCE)[0] == "S4"
    assert check(tale.settled("completed").stored("completed", 1).history, AT_LEAST_ONCE).ok


def test_s4_a_key_that_was_settled_to_run_again_begins_a_new_life() -> None:
    tale = Tale().sent("a").claimed("a", 1).effect("a", 1).wrote("a", 1, "park").settled("absent")
    tale.sent("b").claimed("b", 2).effect("b", 2).wrote("b", 2, "complete").answered("b")
    assert check(tale.history, AT_MOST_ONCE).ok


def test_s4_one_transaction_may_show_only_the_completed_record_if_it_is_atomic() -> None:
    tale = Tale().sent("a").stored("completed", 1)
    assert check(tale.history, ATOMIC).ok
    assert only_violation(tale, AT_LEAST_ONCE)[0] == "S4"


def test_s4_the_survey_finds_what_was_last_written() -> None:
    lost = _completed().surveyed()
    assert only_violation(lost, AT_LEAST_ONCE)[0] == "S4"
    changed = _completed().surveyed().final("completed", 1, response_digest="second")
    assert only_violation(changed, AT_LEAST_ONCE)[1] == "a completed record was changed in the end"


# ---------------------------------------------------------------- S5


def _held() -> Tale:
    return Tale().sent("a").claimed("a", 1).sent("b")


@pytest.mark.parametrize("token", [1, 0])
def test_s5_tokens_only_grow(token: int) -> None:
    tale = _held().wait(40).claimed("b", token)
    assert only_violation(tale, AT_LEAST_ONCE)[0] == "S5"


def test_s5_tokens_grow_across_lives() -> None:
    tale = _held().wrote("a", 1, "release").claimed("b", 1)
    assert only_violation(tale, AT_LEAST_ONCE)[0] == "S5"


def test_s5_an_attempt_may_find_its_own_claim_again() -> None:
    assert check(_held().claimed("a", 1).history, ATOMIC).ok


@pytest.mark.parametrize("action", ["complete", "release", "renew", "park", "step"])
def test_s5_a_write_under_an_old_token_is_caught(action: Action) -> None:
    tale = _held().wait(40).claimed("b", 2)
    assert check(tale.copy().wrote("a", 1, action, applied=False).history, AT_LEAST_ONCE).ok
    invariant, message = only_violation(tale.wrote("a", 1, action), AT_LEAST_ONCE)
    assert invariant == ("S10" if action == "step" else "S5")
    assert "token 1 while 2 was current" in message


@pytest.mark.parametrize("action", ["renew", "step"])
def test_s5_a_write_after_the_claim_has_ended_is_caught(action: Action) -> None:
    tale = _held().wrote("a", 1, "complete").wrote("a", 1, action)
    assert only_violation(tale, AT_LEAST_ONCE)[0] == ("S10" if action == "step" else "S5")


def test_s5_a_write_by_another_than_the_holder_is_caught() -> None:
    assert only_violation(_held().wrote("b", 1, "release"), AT_LEAST_ONCE)[0] == "S5"
    assert only_violation(Tale().wrote("a", 1, "release"), AT_LEAST_ONCE)[0] == "S5"


def test_s5_nobody_takes_over_or_parks_under_a_living_lease() -> None:
    assert only_violation(_held().claimed("b", 2), AT_LEAST_ONCE)[0] == "S5"
    assert only_violation(_held().wrote("b", 1, "park"), AT_MOST_ONCE)[0] == "S5"
    assert check(_held().wait(40).wrote("b", 1, "park").history, AT_MOST_ONCE).ok
    slow_clock = AT_LEAST_ONCE._replace(clock_error=60.0)
    assert check(_held().claimed("b", 2).history, slow_clock).ok


def test_s5_a_renewal_lengthens_the_lease() -> None:
    tale = _held().wrote("a", 1, "renew", lease_until=100.0).wait(40).claimed("b", 2)
    assert only_violation(tale, AT_LEAST_ONCE)[0] == "S5"


def test_s5_an_atomic_effect_of_a_lost_claim_is_caught() -> None:
    tale = _held().wait(40).claimed("b", 2).wrote("b", 2, "complete").effect("a", 1)
    assert only_violation(tale, ATOMIC) == (
        "S5",
        "an effect was committed under a claim no longer held",
    )
    assert check(tale.history, AT_LEAST_ONCE).ok


def test_s5_an_atomic_effect_may_stand_before_or_after_its_own_completion() -> None:
    before = Tale().sent("a").claimed("a", 1).effect("a", 1).wrote("a", 1, "complete")
    after = Tale().sent("a").claimed("a", 1).wrote("a", 1, "complete").effect("a", 1)
    check(before.history, ATOMIC).require("S5")
    check(after.history, ATOMIC).require("S5")


def test_s5_an_effect_under_anothers_token_is_caught() -> None:
    tale = _held().effect("b", 1)
    assert only_violation(tale, AT_LEAST_ONCE)[0] == "S5"


# ---------------------------------------------------------------- S6


def test_s6_another_scopes_body_is_caught() -> None:
    tale = Tale().sent("a").effect("a").answered("a")
    tale.of("bob").sent("b").effect("b").replayed("b", "made by a")
    invariant, message = only_violation(tale, AT_LEAST_ONCE)
    assert invariant == "S6"
    assert "alice/k" in message
    assert check(tale.history, AT_LEAST_ONCE._replace(unique_bodies=False)).ok


@pytest.mark.parametrize("status", [409, 422])
def test_s6_a_conflict_that_reveals_another_scopes_key_is_caught(status: int) -> None:
    tale = Tale().sent("a").effect("a").answered("a")
    tale.of("bob").sent("b", "other").answered("b", "refused", status)
    assert only_violation(tale, AT_LEAST_ONCE)[0] == "S6"
    own = Tale().of("bob").sent("b").sent("c", "other").answered("c", "refused", status)
    check(own.of("alice").sent("a").history, AT_LEAST_ONCE).require("S6")


def test_s6_told_from_inside_a_conflict_needs_a_claim() -> None:
    tale = Tale().sent("x").claimed("x", 1).stored("in_flight", 1)
    tale.of("bob").sent("a").sent("b").answered("b", "refused", 409)
    assert only_violation(tale, AT_LEAST_ONCE)[0] == "S6"


def test_s6_a_key_reused_needs_another_request_that_can_have_held_the_key() -> None:
    tale = Tale().sent("a").sent("b").answered("b", "refused", 422)
    assert only_violation(tale, AT_LEAST_ONCE)[0] == "S6"
    late = Tale().sent("a").effect("a").answered("a").sent("x", "other")
    assert only_violation(late.sent("b").answered("b", "refused", 422), ATOMIC)[0] == "S6"


def test_s6_an_outcome_that_is_unknown_may_be_the_attempts_own() -> None:
    tale = Tale().sent("a").claimed("a", 1).wrote("a", 1, "park").answered("a", "unknown", 409)
    assert check(tale.history, AT_LEAST_ONCE).ok


def test_s6_acting_under_anothers_name_is_caught() -> None:
    tale = Tale().sent("a").of("bob").effect("a")
    assert only_violation(tale, AT_LEAST_ONCE)[0] == "S6"


# ---------------------------------------------------------------- S7


def test_s7_a_replay_to_another_request_is_caught() -> None:
    tale = Tale().sent("a").effect("a").answered("a").sent("b", "other")
    assert only_violation(tale.replayed("b", "made by a"), AT_LEAST_ONCE) == (
        "S7",
        "a kept answer was given to another request",
    )


def test_s7_success_without_having_run_is_caught_though_the_first_answer_was_lost() -> None:
    tale = Tale().sent("a").effect("a").answered("a", "unknown", 0)
    tale.sent("b", "other").replayed("b", "made by a")
    assert only_violation(tale, AT_LEAST_ONCE)[0] == "S7"


def test_s7_a_claim_by_another_request_is_caught() -> None:
    tale = Tale().sent("a").claimed("a", 1).wait(40).sent("b", "other").claimed("b", 2)
    assert only_violation(tale, AT_LEAST_ONCE) == ("S7", "a claim was granted to another request")


def test_s7_the_record_holds_the_fingerprint_of_its_claim() -> None:
    tale = Tale().sent("a").claimed("a", 1).stored("in_flight", 1, "other")
    assert only_violation(tale, AT_LEAST_ONCE)[0] == "S7"


def test_s7_another_request_may_run_once_the_first_has_given_its_claim_back() -> None:
    tale = Tale().sent("a").claimed("a", 1).wrote("a", 1, "release").sent("b", "other")
    tale.claimed("b", 2).wrote("b", 2, "complete").answered("b", status=404)
    check(tale.history, AT_LEAST_ONCE).require("S7")


def test_s7_an_effect_of_another_request_after_a_kept_answer_is_caught() -> None:
    tale = Tale().sent("a").answered("a", status=404).sent("b", "other").effect("b")
    assert broken(tale, AT_LEAST_ONCE) == {"S7"}


# ---------------------------------------------------------------- S8


@pytest.mark.parametrize("status", [400, 401, 413, 503])
@EVERY_PROMISE
def test_s8_a_refused_attempt_leaves_no_effect_then_or_later(promise: Promise, status: int) -> None:
    tale = Tale().sent("a").answered("a", "refused", status).effect("a")
    assert only_violation(tale, promise)[0] == "S8"
    foreign = Tale().sent("a").effect("a", where="elsewhere", step="charge")
    assert only_violation(foreign.answered("a", "refused", status), promise)[0] == "S8"


def test_s8_a_refused_attempt_has_not_completed_the_record() -> None:
    tale = Tale().sent("a").claimed("a", 1).wrote("a", 1, "complete")
    assert only_violation(tale.answered("a", "refused", 503), AT_LEAST_ONCE)[0] == "S8"


def test_s8_a_released_answer_means_a_rollback_in_atomic_mode() -> None:
    tale = Tale().sent("a").effect("a").answered("a", "released", 500)
    assert only_violation(tale, ATOMIC)[0] == "S8"
    assert check(tale.history, AT_LEAST_ONCE).ok


def test_s6_a_claim_of_ones_own_that_came_late_may_stand_in_ones_way() -> None:
    tale = Tale().sent("a").claimed("a", 1).stored("in_flight", 1)
    assert check(tale.copy().answered("a", "refused", 409).history, ATOMIC).ok
    released = tale.wrote("a", 1, "release").stored("absent", 1).answered("a", "refused", 409)
    assert only_violation(released, ATOMIC)[0] == "S6"


def test_s2_a_claim_that_came_late_and_was_given_back_takes_no_answer_back() -> None:
    tale = Tale().sent("a").ran("a", 1, expires=9.0).wait(99).stored("expired", 1).purged()
    tale.claimed("a", 2).wrote("a", 2, "release")
    assert check(tale.history, ATOMIC).ok


def test_s8_if_every_attempt_was_refused_there_is_no_record() -> None:
    tale = Tale().sent("a").answered("a", "refused", 400).surveyed().final("completed")
    assert only_violation(tale, AT_LEAST_ONCE)[0] == "S8"


# ---------------------------------------------------------------- S9


def _expired() -> Tale:
    return Tale().sent("a").ran("a", 1, expires=50.0).wait(50).stored("expired", 1)


@EVERY_PROMISE
def test_s9_a_replay_while_a_tombstone_stands_is_caught(promise: Promise) -> None:
    tale = _expired().sent("b").replayed("b", "made by a")
    assert only_violation(tale, promise) == ("S9", "a kept answer was replayed after its expiry")
    refused = _expired().sent("b").answered("b", "refused", 410)
    check(refused.history, promise).require("S9")


def test_s9_a_replay_after_the_expiry_is_caught_though_no_sweep_has_marked_it() -> None:
    tale = Tale().sent("a").ran("a", 1, expires=50.0).wait(50).sent("b")
    assert only_violation(tale.copy().replayed("b", "made by a"), ATOMIC)[0] == "S9"
    slow = ATOMIC._replace(clock_error=60.0)
    assert check(tale.replayed("b", "made by a").history, slow).ok


def test_s9_a_run_while_a_tombstone_stands_is_caught() -> None:
    tale = Tale().sent("a").answered("a", status=404).stored("expired", 1).sent("b").effect("b")
    assert only_violation(tale, AT_LEAST_ONCE) == ("S9", "ran although the key had expired")


@EVERY_PROMISE
def test_s9_after_the_purge_a_key_runs_as_new(promise: Promise) -> None:
    tale = _expired().wait(99).purged().sent("b").ran("b", 2).sent("c").replayed("c", "made by b")
    check(tale.history, promise).require("S9", "S1", "S3", "S4", "S5")


@EVERY_PROMISE
def test_s9_an_expired_key_runs_as_new_where_it_may(promise: Promise) -> None:
    promise = promise._replace(after_expiry="run")
    check(_expired().sent("b").ran("b", 2).history, promise).require("S9", "S1", "S4", "S5")
    unswept = Tale().sent("a").ran("a", 1, expires=50.0).wait(50).sent("b").ran("b", 2)
    check(unswept.history, promise).require("S9", "S1", "S4", "S5")
    early = Tale().sent("a").ran("a", 1, expires=50.0).sent("b").ran("b", 2)
    assert {"S1", "S4"} <= broken(early, promise)


def test_s9_a_stale_replay_in_a_new_life_is_caught() -> None:
    tale = _expired().wait(99).purged().sent("b").ran("b", 2).sent("c").replayed("c", "made by a")
    assert "S9" in broken(tale, ATOMIC)
    told_by_clients = Tale().sent("a").answered("a", status=404).purged()
    told_by_clients.sent("b").replayed("b", "made by a", 404)
    assert check(told_by_clients.history, ATOMIC).ok  # a 404 may look like any other
    told_by_clients = Tale().sent("a").effect("a").answered("a").purged()
    told_by_clients.sent("b").effect("b").replayed("b", "made by a")
    assert only_violation(told_by_clients, ATOMIC) == (
        "S9",
        "the answer of an earlier life of the key",
    )


def test_s9_an_answer_on_its_way_while_the_record_goes_is_not_stale() -> None:
    tale = Tale().sent("a").ran("a", 1, expires=50.0).sent("b").wait(50)
    tale.stored("expired", 1).wait(99).purged().replayed("b", "made by a")
    assert check(tale.history, ATOMIC).ok


def test_s9_an_issued_key_is_refused_for_ever_after_its_not_after() -> None:
    late = Tale().wait(100).sent("a", not_after=50.0)
    assert only_violation(late.copy().effect("a"), ATOMIC)[0] == "S9"
    check(late.copy().claimed("a", 1).history, ATOMIC).require("S9")  # clears up after a crash
    assert only_violation(late.copy().answered("a", status=404), ATOMIC)[0] == "S9"
    check(late.answered("a", "refused", 410).history, ATOMIC).require("S9")


def test_s9_a_clock_that_is_set_back_makes_the_expired_valid_again() -> None:
    tale = Tale().sent("a").ran("a", 1, expires=50.0).wait(50).sent("b")
    tale.now -= 30  # the store's clock, while the request is on its way
    tale.replayed("b", "made by a")
    assert only_violation(tale, ATOMIC)[0] == "S9"
    report = check(tale.history, ATOMIC._replace(clock_jumps=30.0))
    assert report.ok
    assert not report.checked["S9"]


# ---------------------------------------------------------------- S10


def _stepped() -> Tale:
    return Tale().sent("a").claimed("a", 1).called("a", "one").wrote("a", 1, "step", step="one")


def test_s10_a_step_is_recorded_once() -> None:
    tale = _stepped().wrote("a", 1, "step", step="one")
    assert only_violation(tale, ATOMIC) == ("S10", "step 'one' was recorded twice")
    second = _stepped().called("a", "two", "derived two").wrote("a", 1, "step", step="two")
    check(second.history, ATOMIC).require("S10")


def test_s10_a_step_begins_only_after_the_one_before_was_recorded() -> None:
    tale = Tale().sent("a").claimed("a", 1).called("a", "one").called("a", "two", "derived two")
    assert only_violation(tale.wrote("a", 1, "step", step="one"), ATOMIC)[0] == "S10"


def test_s10_a_recorded_step_is_not_called_again() -> None:
    tale = _stepped().crashed().wait(40).sent("b").claimed("b", 2).called("b", "one")
    assert only_violation(tale, ATOMIC)[0] == "S10"


def test_s10_an_unrecorded_step_is_called_again_under_the_same_key() -> None:
    tale = Tale().sent("a").claimed("a", 1).called("a", "one").crashed().wait(40)
    check(tale.sent("b").claimed("b", 2).called("b", "one").history, ATOMIC).require("S10")


def test_s10_a_derived_key_does_not_depend_on_the_attempt() -> None:
    tale = Tale().sent("a").claimed("a", 1).called("a", "one").crashed().wait(40)
    tale.sent("b").claimed("b", 2).called("b", "one", "another")
    assert only_violation(tale, ATOMIC) == ("S10", "step 'one' was called under two derived keys")


def test_s10_two_keys_never_share_a_derived_key() -> None:
    tale = Tale().sent("a").called("a", "one").of("bob").sent("b").called("b", "one")
    assert only_violation(tale, ATOMIC)[0] == "S10"


def test_s10_a_step_begins_only_after_the_one_before_was_recorded_even_if_it_is_not_called() -> (
    None
):
    tale = Tale().sent("a").claimed("a", 1).came_to("a", "one").called("a", "one")
    early = tale.copy().came_to("a", "two").wrote("a", 1, "step", step="one")
    assert only_violation(early, ATOMIC) == (
        "S10",
        "step 'two' began before step 'one' was recorded",
    )
    check(tale.wrote("a", 1, "step", step="one").came_to("a", "two").history, ATOMIC).require("S10")


def test_s10_a_step_that_its_own_attempt_has_recorded_is_not_called_again() -> None:
    tale = _stepped().came_to("a", "one")
    check(tale.copy().skipped("a", "one").history, ATOMIC).require("S10")
    assert only_violation(tale.called("a", "one"), ATOMIC) == (
        "S10",
        "step 'one' was called again though it was recorded",
    )


def test_s10_what_is_skipped_is_what_was_recorded() -> None:
    tale = Tale().sent("a").claimed("a", 1).stored("in_flight", 1).came_to("a", "one")
    assert only_violation(tale.copy().skipped("a", "one"), ATOMIC) == (
        "S10",
        "step 'one' was skipped, though nothing was recorded",
    )
    tale.called("a", "one").wrote("a", 1, "step", step="one", response_digest="d1")
    check(tale.copy().skipped("a", "one", "d1").history, ATOMIC).require("S10")
    assert only_violation(tale.skipped("a", "one", "d2"), ATOMIC) == (
        "S10",
        "step 'one' gave another result than was recorded",
    )


def test_s10_a_far_side_that_ignores_keys_is_not_called_twice_where_the_step_parks() -> None:
    def tale(done: bool) -> Tale:
        told = Tale().sent("a").claimed("a", 1).called("a", "one")
        if done:
            told.effect("a", 1, where="elsewhere", step="one")
        return told.crashed().wait(40).sent("b").claimed("b", 2).called("b", "one")

    parks = ATOMIC._replace(far_side="ignores-keys", on_unknown="park")
    assert only_violation(tale(done=True), parks) == (
        "S10",
        "step 'one' was called again though the far side had done it",
    )
    check(tale(done=False).history, parks).require("S10")  # it was certainly not done
    check(tale(done=True).history, parks._replace(on_unknown="rerun")).require("S10")
    assert check(tale(done=True).history, parks._replace(unfenced_steps=True)).admitted


@pytest.mark.parametrize("action", ["begin-step", "step", "forget-step"])
def test_s10_nothing_of_a_step_is_written_under_a_stale_token(action: Action) -> None:
    tale = _held().wait(40).claimed("b", 2).wrote("a", 1, action, step="one")
    assert only_violation(tale, AT_LEAST_ONCE)[0] == "S10"
    unfenced = check(tale.history, ATOMIC._replace(unfenced_steps=True))
    assert unfenced.ok
    assert [each.invariant for each in unfenced.admitted] == ["S10"]


def test_s10_a_step_may_be_recorded_while_there_is_no_record() -> None:
    tale = _held().called("a", "one").wrote("a", 1, "release").wrote("a", 1, "step", step="one")
    check(tale.history, AT_LEAST_ONCE).require("S10")
    parked = _held().called("a", "one").wrote("a", 1, "park").wrote("a", 1, "step", step="one")
    assert only_violation(parked, AT_LEAST_ONCE)[0] == "S10"


def test_s10_steps_that_were_forgotten_for_their_age_begin_anew() -> None:
    tale = _stepped().wrote("a", 1, "release")
    again = tale.copy().sent("b").claimed("b", 2).called("b", "one")
    assert only_violation(again, ATOMIC)[0] == "S10"
    anew = tale.tell(StepsForgotten, *tale.name).sent("b").claimed("b", 2).called("b", "one")
    check(anew.history, ATOMIC).require("S10")


def test_s1_a_probe_cannot_bind_who_stood_still() -> None:
    tale = Tale().sent("a").claimed("a", 1).called("a", "one").crashed().wait(40)
    tale.sent("b").claimed("b", 2).called("b", "one").effect("b", 2, "elsewhere", "one")
    tale.effect("a", 1, "elsewhere", "one")
    probes = ATOMIC._replace(far_side="ignores-keys", on_unknown="probe")
    report = check(tale.history, probes)
    assert report.ok
    assert report.admitted
    assert "S1" in broken(tale, probes._replace(on_unknown="park"))


# ---------------------------------------------------------------- L1


@EVERY_PROMISE
def test_l1_nothing_stays_in_flight(promise: Promise) -> None:
    tale = Tale().sent("a").surveyed().final("in_flight")
    assert only_violation(tale, promise) == ("L1", "still in flight in the end")
    for state in ("absent", "parked", "completed", "expired"):
        check(Tale().sent("a").surveyed().final(state).history, promise).require("L1")


# ---------------------------------------------------------------- reports


def test_every_invariant_is_named_and_judged_by_a_function_that_quotes_its_rule() -> None:
    assert tuple(JUDGES) == tuple(INVARIANTS)
    for name, judge in JUDGES.items():
        assert (judge.__doc__ or "").startswith(f"{name}: ")


def test_reports_of_many_histories_add_up() -> None:
    good = check(Tale().sent("a").effect("a").answered("a").history, ATOMIC)
    bad = check(Tale().sent("a").effect("a").effect("a").answered("a").history, ATOMIC)
    total = merged([good, bad, good])
    assert total.histories == 3
    assert total.events == 3 + 4 + 3
    assert total.checked["S1"] == 3
    assert [violation.invariant for violation in total.violations] == ["S1"]
    assert not total.ok


def test_the_summary_puts_a_bound_beside_each_zero_and_says_what_was_not_checked() -> None:
    report = merged([check(Tale().sent("a").effect("a").answered("a").history, ATOMIC)] * 300)
    text = summary(report)
    assert "300 histories, 900 events: 0 violations" in text
    assert " S1 at most one effect: 0 in 300 judgments (95% bound 1.0e-02)" in text
    assert "S10 steps: not checked" in text


def test_the_summary_shows_violations_with_their_events_and_counts_the_rest() -> None:
    bad = check(Tale().sent("a").effect("a").effect("a").answered("a").history, ATOMIC)
    text = summary(merged([bad] * 12), most=2)
    assert text.count("S1 alice/k: a second effect (database)") == 2
    assert "Effect(time=2.0" in text
    assert text.endswith("… and 10 more")


def test_the_bound_is_the_rule_of_three() -> None:
    assert upper_bound(100_000) == pytest.approx(3e-5)
    assert upper_bound(0) == upper_bound(1) == 1.0


def test_require_names_the_violations() -> None:
    report = check(Tale().sent("a").effect("a").effect("a").answered("a").history, ATOMIC)
    with pytest.raises(AssertionError, match="S1 alice/k: a second effect"):
        report.require()


# ---------------------------------------------------------------- contradictions


@pytest.mark.parametrize(
    ("history", "complaint"),
    [
        (Tale().sent("a").sent("a").history, "sent twice"),
        (Tale().answered("a").history, "never sent"),
        (Tale().sent("a").answered("a").answered("a").history, "answered before"),
        (Tale().final("completed").history, "outside a survey"),
        (Tale().surveyed().final("completed").final("completed").history, "found twice"),
        ([("what", "is", "this")], "not an event"),
    ],
)
def test_a_history_that_contradicts_itself_is_refused(history: Any, complaint: str) -> None:
    with pytest.raises(HistoryError, match=complaint):
        check(history, ATOMIC)


def test_a_history_without_a_promise_is_refused_and_one_that_begins_with_it_is_not() -> None:
    history = Tale().sent("a").answered("a", status=404).history
    with pytest.raises(HistoryError, match="Promise"):
        check(history)
    assert check([ATOMIC, *history]).ok


# ---------------------------------------------------------------- files

TIMES = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(max_size=8)
DIGESTS = st.none() | TEXTS
BYTES = st.binary(max_size=16)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "headers": st.lists(st.tuples(BYTES, BYTES), max_size=3).map(tuple),
    "body": BYTES,
    "token": st.integers(min_value=0),
    "status": st.integers(0, 599),
    "applied": st.booleans(),
    "replayed": st.booleans(),
    "unique_bodies": st.booleans(),
    "effect_per_success": st.booleans(),
    "effects_in_order": st.booleans(),
    "kind": st.sampled_from(("ok", "refused", "released", "unknown")),
    "guarantee": st.sampled_from(("atomic", "at-least-once", "at-most-once")),
    **dict.fromkeys(("time", "clock_error"), TIMES),
    **dict.fromkeys(("lease_until", "expires", "not_after"), st.none() | TIMES),
    **dict.fromkeys(("response_digest", "step"), DIGESTS),
}


def _events_of(kind: type[Event]) -> st.SearchStrategy[Event]:
    fields = (FIELDS.get(field, TEXTS) for field in kind._fields)
    return st.tuples(*fields).map(lambda values: kind(*values))


EVENTS_OF_ALL_KINDS = st.one_of(*map(_events_of, EVENTS.values()))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(EVENTS_OF_ALL_KINDS, max_size=12))
def test_a_history_survives_its_file(history: History) -> None:
    file = io.StringIO()
    dump(history, file)
    file.seek(0)
    assert list(load(file)) == history
    assert len(file.getvalue().splitlines()) == len(history)


def test_ascii_stays_readable_in_the_file_and_defaults_are_left_out() -> None:
    line = dump_event(ResponseSeen(1.0, "a", "ok", 201, b'{"id": 7}\xff', TYPE))
    assert r"{\"id\": 7}\u00ff" in line
    assert '[["Content-Type", "application/json"]]' in line
    assert "replayed" not in line


def test_a_torn_last_line_is_passed_over_and_any_other_is_refused() -> None:
    whole, note = dump_event(Note(1.0, "one")), Note(1.0, "one")
    assert list(load([whole + "\n", "\n", whole[:-3]])) == [note]
    assert list(load([whole, whole])) == [note, note]
    with pytest.raises(HistoryError):
        list(load([whole[:-3] + "\n", whole + "\n"]))
    with pytest.raises(HistoryError):
        list(load([whole + "\n", whole[:-3] + "\n"]))


@pytest.mark.parametrize("line", ["", "[]", "7", '{"event": "None"}', '{"event": "Note", "x": 1}'])
def test_a_line_that_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(HistoryError, match="not an event"):
        load_event(line)


def test_files_are_judged_again_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def file(name: str, history: History) -> str:
        with open(tmp_path / name, "w", encoding="utf-8") as opened:
            dump(history, opened)
        return str(tmp_path / name)

    doubled = Tale().sent("a").effect("a").effect("a").answered("a").history
    good = file("good", [ATOMIC, *doubled[:2], *doubled[3:]])
    bad = file("bad", [ATOMIC, *doubled])
    unpromised = file("unpromised", doubled)
    assert main([good]) == 0
    assert main([good, bad]) == 1
    assert "a second effect (database)" in capsys.readouterr().out
    assert main([unpromised]) == 2
    assert "Promise" in capsys.readouterr().err
    assert main(["--guarantee", "atomic", unpromised]) == 1
    assert main([str(tmp_path / "missing")]) == 2


# ---------------------------------------------------------------- speed


def _long_history(keys: int) -> History:
    tale = Tale()
    for number in range(keys):
        tale.of(f"tenant-{number % 7}", f"key-{number}").sent(f"a{number}")
        tale.ran(f"a{number}", number + 1, expires=1e9).sent(f"b{number}")
        tale.replayed(f"b{number}", f"made by a{number}")
    return tale.history


def _seconds(history: History) -> tuple[HistoryReport, float]:
    began = time.process_time()
    report = check(history, ATOMIC)
    return report, time.process_time() - began


def test_long_histories_take_time_in_proportion_to_their_length() -> None:
    short, long = _long_history(2_000), _long_history(16_000)
    report, took = _seconds(long)
    report.require("S1", "S2", "S3", "S4", "S5", "S6")
    assert took < 24 * min(_seconds(short)[1] for _ in range(3))
    assert len(long) / took > 60_000  # a fifth of what an idle machine of 2026 does


def test_a_hot_key_takes_time_in_proportion_to_its_attempts() -> None:
    tale = Tale().sent("a").ran("a", 1)
    for number in range(20_000):
        tale.sent(f"r{number}")
        if number % 2:
            tale.answered(f"r{number}", "refused", 409)
        else:
            tale.replayed(f"r{number}", "made by a")
    report, took = _seconds(tale.history)
    assert report.ok
    assert len(tale.history) / took > 60_000
