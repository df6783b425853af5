"""The checker and the exhaustive oracle agree on small histories, legal and damaged."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

import pytest

from lab.judge.checker import check
from lab.judge.contract import Guarantee, Promise
from lab.judge.findings import summary
from lab.judge.history import (
    ClaimGranted,
    Effect,
    Event,
    FinalRecord,
    Foreign,
    History,
    Purged,
    ResponseSeen,
    Restarted,
    Sent,
    Stored,
    Surveyed,
    Wrote,
)
from lab.judge.history_file import dump_event
from lab.judge.legal_histories import Size, grow
from lab.judge.oracle import MOST_ATTEMPTS, Slot, legal, service

GUARANTEES: tuple[Guarantee, ...] = ("atomic", "at-least-once", "at-most-once")
AFTER_EXPIRY: tuple[Literal["refuse", "run"], ...] = ("refuse", "refuse", "run")
SEED = 20_261_124
RAISED = 404
"""What the handlers of the specimens answer without an effect."""

Damage = Callable[[random.Random, History], History | None]
E = TypeVar("E", bound=Event)


def _places(history: Sequence[Event], kind: type[E]) -> list[tuple[int, E]]:
    return [(place, event) for place, event in enumerate(history) if isinstance(event, kind)]


def _pick(rng: random.Random, found: list[tuple[int, E]]) -> tuple[int, E] | None:
    return rng.choice(found) if found else None


def _replaced(history: History, place: int, *events: Event) -> History:
    return [*history[:place], *events, *history[place + 1 :]]


def an_effect_is_doubled(rng: random.Random, history: History) -> History | None:
    found = _pick(rng, _places(history, Effect))
    if found is None:
        return None
    later = rng.randint(found[0] + 1, len(_before_survey(history)))
    return [*history[:later], found[1], *history[later:]]


def _before_survey(history: History) -> History:
    return [event for event in history if not isinstance(event, Surveyed | FinalRecord)]


def another_attempt_has_the_effect_too(rng: random.Random, history: History) -> History | None:
    found = _pick(rng, _places(history, Effect))
    if found is None:
        return None
    place, effect = found
    others = [
        sent
        for at, sent in _places(history, Sent)
        if (sent.scope, sent.key) == (effect.scope, effect.key) and sent.attempt != effect.attempt
    ]
    if not others:
        return None
    other = rng.choice(others)
    tokens = [c.token for _, c in _places(history, ClaimGranted) if c.attempt == other.attempt]
    token = None if effect.token is None else (tokens or [effect.token])[0]
    copy = effect._replace(attempt=other.attempt, token=token)
    sent_at = history.index(other)
    later = rng.randint(max(place, sent_at) + 1, len(_before_survey(history)))
    return [*history[:later], copy, *history[later:]]


def an_effect_is_lost(rng: random.Random, history: History) -> History | None:
    found = _pick(rng, _places(history, Effect))
    return None if found is None else _replaced(history, found[0])


def an_effect_is_made_under_another_scope(rng: random.Random, history: History) -> History | None:
    found = _pick(rng, _places(history, Effect))
    if found is None:
        return None
    return _replaced(history, found[0], found[1]._replace(scope="tenant-9"))


def _kept(history: History) -> list[tuple[int, ResponseSeen]]:
    return [(place, a) for place, a in _places(history, ResponseSeen) if a.kind == "ok"]


def a_byte_of_an_answer_is_changed(rng: random.Random, history: History) -> History | None:
    found = _pick(rng, _kept(history))
    if found is None:
        return None
    return _replaced(history, found[0], found[1]._replace(body=found[1].body + b" "))


def a_status_is_changed(rng: random.Random, history: History) -> History | None:
    found = _pick(rng, _kept(history))
    return None if found is None else _replaced(history, found[0], found[1]._replace(status=202))


def a_header_is_changed(rng: random.Random, history: History) -> History | None:
    found = _pick(rng, _kept(history))
    if found is None:
        return None
    headers = ((b"Content-Type", b"text/plain"),)
    return _replaced(history, found[0], found[1]._replace(headers=headers))


def two_answers_are_swapped(rng: random.Random, history: History) -> History | None:
    found = _places(history, ResponseSeen)
    if len(found) < 2:
        return None
    (i, one), (j, other) = rng.sample(found, 2)
    history = _replaced(history, i, other._replace(attempt=one.attempt, time=one.time))
    return _replaced(history, j, one._replace(attempt=other.attempt, time=other.time))


def an_unknown_answer_becomes_anothers(rng: random.Random, history: History) -> History | None:
    kept = _pick(rng, _kept(history))
    lost = _pick(rng, [(i, a) for i, a in _places(history, ResponseSeen) if a.kind != "ok"])
    if kept is None or lost is None:
        return None
    answer = kept[1]._replace(attempt=lost[1].attempt, time=lost[1].time)
    return _replaced(history, lost[0], answer)


def an_answer_comes_too_early(rng: random.Random, history: History) -> History | None:
    found = _pick(rng, _kept(history))
    if found is None:
        return None
    place, answer = found
    sent = next(i for i, e in _places(history, Sent) if e.attempt == answer.attempt)
    earlier = rng.randint(sent + 1, place)
    rest = _replaced(history, place)
    return [*rest[:earlier], answer, *rest[earlier:]]


def an_attempt_is_told_no(rng: random.Random, history: History) -> History | None:
    found = _pick(rng, _places(history, ResponseSeen))
    if found is None:
        return None
    status = rng.choice((400, 409, 422, 503))
    answer = found[1]._replace(kind="refused", status=status, body=b"")
    return _replaced(history, found[0], answer)


def a_final_record_is_missing(rng: random.Random, history: History) -> History | None:
    found = _pick(rng, _places(history, FinalRecord))
    return None if found is None else _replaced(history, found[0])


def a_record_stays_in_flight(rng: random.Random, history: History) -> History | None:
    found = _pick(rng, _places(history, FinalRecord))
    if found is None:
        return None
    final = found[1]._replace(state="in_flight", response_digest=None)
    return _replaced(history, found[0], final)


def a_request_is_another(rng: random.Random, history: History) -> History | None:
    found = _pick(rng, _places(history, Sent))
    if found is None:
        return None
    other = "fp" if found[1].fingerprint != "fp" else "fp-other"
    return _replaced(history, found[0], found[1]._replace(fingerprint=other))


def a_record_is_purged(rng: random.Random, history: History) -> History | None:
    sent = _pick(rng, _places(history, Sent))
    if sent is None or not _places(history, ClaimGranted):
        return None  # from outside nobody can say when a record may be purged
    place = rng.randint(sent[0] + 1, len(_before_survey(history)))
    time = history[place - 1].time
    purge = Purged(time, sent[1].scope, sent[1].key)
    return [*history[:place], purge, *history[place:]]


def a_purge_was_not_made(rng: random.Random, history: History) -> History | None:
    found = _pick(rng, _places(history, Purged))
    return None if found is None else _replaced(history, found[0])


def a_token_is_used_again(rng: random.Random, history: History) -> History | None:
    claims = _places(history, ClaimGranted)
    if len(claims) < 2:
        return None
    place, claim = rng.choice(claims[1:])
    return _replaced(history, place, claim._replace(token=rng.choice(claims)[1].token))


def a_fenced_write_is_applied(rng: random.Random, history: History) -> History | None:
    found = _pick(rng, [(i, w) for i, w in _places(history, Wrote) if not w.applied])
    return None if found is None else _replaced(history, found[0], found[1]._replace(applied=True))


def a_write_names_an_old_token(rng: random.Random, history: History) -> History | None:
    found = _pick(rng, [(i, w) for i, w in _places(history, Wrote) if w.applied])
    if found is None:
        return None
    return _replaced(history, found[0], found[1]._replace(token=found[1].token - 1))


def a_write_is_lost(rng: random.Random, history: History) -> History | None:
    found = _pick(rng, [(i, w) for i, w in _places(history, Wrote) if w.applied])
    return None if found is None else _replaced(history, found[0])


def a_stored_answer_is_changed(rng: random.Random, history: History) -> History | None:
    done = [(i, s) for i, s in _places(history, Stored) if s.state == "completed"]
    found = _pick(rng, done)
    if found is None:
        return None
    later = rng.randint(found[0] + 1, len(_before_survey(history)))
    return [*history[:later], found[1]._replace(response_digest="other"), *history[later:]]


def a_done_record_runs_again(rng: random.Random, history: History) -> History | None:
    done = [(i, s) for i, s in _places(history, Stored) if s.state == "completed"]
    found = _pick(rng, done)
    if found is None:
        return None
    back = found[1]._replace(state="in_flight", response_digest=None, expires=None)
    return [*history[: found[0] + 1], back, *history[found[0] + 1 :]]


def a_derived_key_depends_on_the_attempt(rng: random.Random, history: History) -> History | None:
    found = _pick(rng, _places(history, Foreign))
    if found is None:
        return None
    return _replaced(history, found[0], found[1]._replace(derived_key=found[1].attempt))


def a_step_is_recorded_twice(rng: random.Random, history: History) -> History | None:
    steps = [(i, w) for i, w in _places(history, Wrote) if w.action == "step" and w.applied]
    found = _pick(rng, steps)
    return None if found is None else _replaced(history, found[0], found[1], found[1])


def a_crash_did_not_happen(rng: random.Random, history: History) -> History | None:
    found = _pick(rng, _places(history, Restarted))
    return None if found is None else _replaced(history, found[0])


def a_raised_response_leaves_an_effect(rng: random.Random, history: History) -> History | None:
    made = [a for _, a in _kept(history) if a.status == RAISED and not a.replayed]
    if not made:
        return None
    attempt = rng.choice(made).attempt
    sent = next(s for _, s in _places(history, Sent) if s.attempt == attempt)
    tokens = [c.token for _, c in _places(history, ClaimGranted) if c.attempt == attempt]
    for place, event in enumerate(history):
        completes = isinstance(event, Wrote) and event.action == "complete"
        answers = isinstance(event, ResponseSeen)
        if (completes or answers) and event.attempt == attempt:  # type: ignore[union-attr]
            token = tokens[-1] if tokens else None
            effect = Effect(event.time, *sent[1:4], token, "database")
            return [*history[:place], effect, *history[place:]]
    return None


DAMAGES: tuple[Damage, ...] = (
    a_raised_response_leaves_an_effect,
    an_effect_is_doubled,
    another_attempt_has_the_effect_too,
    an_effect_is_lost,
    an_effect_is_made_under_another_scope,
    a_byte_of_an_answer_is_changed,
    a_status_is_changed,
    a_header_is_changed,
    two_answers_are_swapped,
    an_unknown_answer_becomes_anothers,
    an_answer_comes_too_early,
    an_attempt_is_told_no,
    a_final_record_is_missing,
    a_record_stays_in_flight,
    a_request_is_another,
    a_record_is_purged,
    a_purge_was_not_made,
    a_token_is_used_again,
    a_fenced_write_is_applied,
    a_write_names_an_old_token,
    a_write_is_lost,
    a_stored_answer_is_changed,
    a_done_record_runs_again,
    a_derived_key_depends_on_the_attempt,
    a_step_is_recorded_twice,
    a_crash_did_not_happen,
)


class Verdicts(NamedTuple):
    """How often checker and oracle agreed, and where they did not."""

    agreed: Counter[tuple[str, bool]]
    false_alarms: list[str]
    missed: list[str]


@functools.cache
def _verdicts(seed: int, histories: int, *, inside: bool) -> Verdicts:
    rng = random.Random(seed)
    verdicts = Verdicts(Counter(), [], [])
    while verdicts.agreed.total() + len(verdicts.missed) < histories:
        promise = Promise(
            rng.choice(GUARANTEES),
            after_expiry=rng.choice(AFTER_EXPIRY),
            raised=rng.choice((0, RAISED)),
        )
        history = grow(rng, promise, Size(attempts=rng.randint(2, 5)), inside=inside)
        name = "legal"
        if rng.random() < 0.75:
            damage = rng.choice(DAMAGES)
            damaged = damage(rng, history)
            if damaged is None:
                continue
            name, history = damage.__name__, damaged
        if len(_places(history, Sent)) > MOST_ATTEMPTS:
            continue
        expected = legal(history, promise)
        report = check(history, promise)
        if report.ok == expected:
            verdicts.agreed[name, expected] += 1
            continue
        case = "\n".join([name, str(promise), *map(dump_event, history), summary(report)])
        (verdicts.false_alarms if expected else verdicts.missed).append(case)
    return verdicts


def test_told_from_inside_the_checker_and_the_oracle_agree_on_every_history() -> None:
    verdicts = _verdicts(SEED, 12_000, inside=True)
    disagreements = verdicts.false_alarms + verdicts.missed
    assert not disagreements, disagreements[0]


def test_told_from_outside_the_checker_never_cries_wolf_and_hardly_ever_misses() -> None:
    verdicts = _verdicts(SEED, 12_000, inside=False)
    assert not verdicts.false_alarms, verdicts.false_alarms[0]
    caught = sum(count for (_, expected), count in verdicts.agreed.items() if not expected)
    assert len(verdicts.missed) <= caught / 200, verdicts.missed[0]


@pytest.mark.parametrize("inside", [True, False])
def test_every_undamaged_specimen_is_legal_to_both(inside: bool) -> None:
    agreed = _verdicts(SEED + 1, 4_000, inside=inside).agreed
    assert agreed["legal", True] > 500
    assert agreed["legal", False] == 0


def test_every_kind_of_damage_is_illegal_in_some_history_and_caught() -> None:
    caught: Counter[str] = Counter()
    for inside in (True, False):
        for (name, expected), count in _verdicts(SEED, 12_000, inside=inside).agreed.items():
            caught[name] += 0 if expected else count
    harmless = {a_write_is_lost.__name__, a_crash_did_not_happen.__name__}
    for damage in DAMAGES:
        assert caught[damage.__name__] or damage.__name__ in harmless, caught


def test_the_oracle_refuses_histories_that_are_too_long_to_search() -> None:
    history: History = [Sent(0.0, f"attempt-{n}", "tenant", "key", "fp") for n in range(9)]
    with pytest.raises(ValueError, match="too many"):
        legal(history, Promise("atomic"))


def test_the_specification_refuses_what_the_state_machine_has_no_step_for() -> None:
    promise = Promise("atomic")
    done = Slot(state="completed", by="a", ran=frozenset({("a", 0)}))
    assert service(done, "complete", "a", promise) is None
    assert service(done, "release", "a", promise) is None
    assert service(done, "take over", "b", promise) is None
    assert service(done._replace(state="parked"), "claim", "b", promise) is None
