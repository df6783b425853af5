"""Invariants about effects: S1 at most one, S2 an answer means one, S8 a refusal means none."""

from __future__ import annotations

from collections.abc import Sequence

from lab.judge.contract import BESIDE, EffectKind, admits_repeat
from lab.judge.findings import Findings
from lab.judge.history import ClaimGranted, Effect, ResponseSeen, Settled, Stored, Wrote
from lab.judge.key_history import AttemptTrace, Evidence, KeyHistory

SERVER_ERROR = 500


def at_most_one_effect(key_history: KeyHistory, evidence: Evidence, findings: Findings) -> None:
    """S1: "for all (scope,key) within one retention epoch: |{e committed}| <= 1".

    Counted by kind: in the database, elsewhere, and each step by its name. A repeat is admitted
    where the guarantee says *can repeat* (`promise.REPEATS`) and the history shows why the second
    run could begin. At most once also forbids the second run itself, effect or none: "an unknown
    outcome is never run again".
    """
    if evidence.promise.guarantee == "at-most-once":
        _never_run_again(key_history, evidence, findings)
    for life, effects in enumerate(key_history.effects_by_life()):
        if not effects:
            continue
        findings.checked["S1"] += 1
        if len(effects) == 1:
            continue
        first: dict[tuple[str, str | None], tuple[int, Effect]] = {}
        acted: dict[tuple[str, str | None, str], tuple[int, Effect]] = {}
        for place, effect in effects:
            kind = (effect.where, effect.step)
            one = first.setdefault(kind, (place, effect))
            same = acted.setdefault((*kind, effect.attempt), (place, effect))
            if same[0] != place:
                _judge_repeat(key_history, life, evidence, findings, same, (place, effect))
            elif one[0] != place:
                _judge_repeat(key_history, life, evidence, findings, one, (place, effect))


def _judge_repeat(
    key_history: KeyHistory,
    life: int,
    evidence: Evidence,
    findings: Findings,
    first: tuple[int, Effect],
    second: tuple[int, Effect],
) -> None:
    kind: EffectKind = first[1].where if first[1].step is None else "step"
    what = kind if kind != "step" else f"step {first[1].step!r}"
    reason = admits_repeat(evidence.promise, kind)
    if reason is not None and _could_begin_again(key_history, life, evidence, first, second):
        findings.admit(
            "S1", key_history, f"repeated effect ({what}): {reason}", first[1], second[1]
        )
    else:
        findings.violated("S1", key_history, f"a second effect ({what})", first[1], second[1])


def _could_begin_again(
    key_history: KeyHistory,
    life: int,
    evidence: Evidence,
    first: tuple[int, Effect],
    second: tuple[int, Effect],
) -> bool:
    """Say whether the history shows why the second effect's run began: no record yet, and a cause.

    The cause: a server died or stood still, the first run gave its claim back, its end could not be
    recorded, or its claim was taken over (S5 judges whether it might be).
    """
    if first[1].attempt == second[1].attempt:
        return False
    begun = _run_began(key_history, evidence, second)
    if any(place < begun and key_history.life(place) == life for place in key_history.completions):
        return False
    again = evidence.attempts.get(second[1].attempt)
    answered = [  # by this life alone: one that overlaps its beginning may be of the one before
        attempt.answered_at
        for attempt, answer in key_history.oks
        if [*key_history.lives_of_answer(attempt, answer)] == [life]
    ]
    if again is not None and any(place < again.sent_at for place in answered):
        return False
    in_order = evidence.promise.effects_in_order
    # Either may have begun first: a process that stood still may wake and act as the second.
    runs = [evidence.attempts.get(effect.attempt) for _, effect in (first, second)]
    since = min(0 if run is None else run.sent_at for run in runs)
    # Both had begun before the record was complete, so the cause is older than any kept answer.
    until = min(answered, default=second[0])
    if any(since < place < min(until, second[0]) for place in evidence.faults):
        return True
    # Without a fault the first run was over when the second began; or the second, which had begun
    # first, was told at its end that it had lost its claim.
    one, other = runs
    if one is not None and _gave_up(one, evidence):
        return True
    lost = other is not None and other.answer is not None and _unrecorded(other.answer)
    if lost or (other is not None and not in_order and _gave_up(other, evidence)):
        return True
    granted = {event.token for _, event in key_history.story if type(event) is ClaimGranted}
    return {first[1].token, second[1].token} <= granted and first[1].token != second[1].token


def _gave_up(attempt: AttemptTrace, evidence: Evidence) -> bool:
    """Say whether the run may have ended without a record: it failed, or could not be recorded.

    Where the store is not seen, an answer that was lost may have told of such an end.
    """
    answer = attempt.answer
    if answer is None:
        return not evidence.store_seen
    lost = answer.kind == "unknown" and not evidence.store_seen
    return lost or answer.kind == "released" or _unrecorded(answer)


def _unrecorded(answer: ResponseSeen) -> bool:
    return answer.kind == "unknown" and answer.status >= SERVER_ERROR


def _run_began(key_history: KeyHistory, evidence: Evidence, effect: tuple[int, Effect]) -> int:
    """Return where the effect's run was claimed, or else sent, or else seen."""
    for place, event in key_history.story:
        if (
            type(event) is ClaimGranted
            and event.attempt == effect[1].attempt
            and event.token == effect[1].token
        ):
            return place
    attempt = evidence.attempts.get(effect[1].attempt)
    return effect[0] if attempt is None else attempt.sent_at


def _never_run_again(key_history: KeyHistory, evidence: Evidence, findings: Findings) -> None:
    """A claim neither completed nor given back is parked: whoever claims after it runs again."""
    holder: ClaimGranted | None = None
    bounds = iter(key_history.bounds)
    bound = next(bounds, -1)
    for place, event in key_history.story:
        while bound != -1 and place >= bound:
            holder = None
            bound = next(bounds, -1)
        if type(event) is ClaimGranted:
            if holder is not None:
                findings.checked["S1"] += 1
                if holder.attempt != event.attempt:
                    message = "claimed again while the outcome of the claim before it was unknown"
                    findings.violated("S1", key_history, message, holder, event)
            holder = event
        elif (
            (type(event) is Wrote and event.applied and event.action in {"complete", "release"})
            or (type(event) is Stored and event.state == "absent")
            or type(event) is Settled
        ):
            holder = None


def an_answer_means_a_durable_effect(
    key_history: KeyHistory, evidence: Evidence, findings: Findings
) -> None:
    """S2: "an observed stored-class response => record is done and, for success, exactly one
    effect, both survive any later crash".

    The record must have been completed before the answer arrived, and the survey must find it (or
    its expiry or purge in the history). That there is no second effect is S1. The converse holds
    too where the guarantee says so (`promise.BESIDE`): an effect stands beside its record. And no
    effect comes after the answer of its own attempt: that handler was over.
    """
    if key_history.oks:
        _answers_stand(key_history, evidence, findings)
    if key_history.effects and evidence.promise.effects_in_order:
        for place, effect in key_history.effects:
            attempt = evidence.attempts.get(effect.attempt)
            if attempt is not None and -1 < attempt.answered_at < place:
                answer = attempt.answer
                if answer is not None and answer.kind in {"ok", "released"}:
                    message = "an effect came after the answer of its own attempt"
                    findings.violated("S2", key_history, message, answer, effect)
    if key_history.effects and evidence.promise.guarantee != "at-least-once":
        _effects_stand_beside_records(key_history, evidence, findings)


def _answers_stand(key_history: KeyHistory, evidence: Evidence, findings: Findings) -> None:
    promise = evidence.promise
    # The first effect of each life; one that stands nowhere in particular counts from the start.
    effects = [
        (life[0][0] if promise.effects_in_order else -1) if life else None
        for life in key_history.effects_by_life()
    ]
    last = len(key_history.bounds)
    final = key_history.final.state if key_history.final is not None else "absent"
    lost = evidence.surveyed and final not in {"completed", "expired"}
    released: set[str] = set()
    for place, event in key_history.story:
        if type(event) is Wrote and event.action == "release" and event.applied:
            known = evidence.attempts.get(event.attempt)
            if known is not None and place < known.answered_at:  # later: a claim that came late
                released.add(event.attempt)
        elif type(event) is ClaimGranted:  # anew: the answer to its first claim was lost
            released.discard(event.attempt)
    for attempt, answer in key_history.oks:
        lives = key_history.lives_of_answer(attempt, answer)
        if evidence.store_seen:
            findings.checked["S2"] += 1
            if not _completed_before(key_history, lives, attempt.answered_at):
                findings.violated(
                    "S2", key_history, "answered before the record was complete", answer
                )
                continue
            if answer.attempt in released and not answer.replayed:
                message = "a kept answer was given, but its attempt had given its claim back"
                findings.violated("S2", key_history, message, answer)
        if promise.effect_per_success and 200 <= answer.status < 300:
            findings.checked["S2"] += 1
            stood = [at for life in lives if (at := effects[life]) is not None]
            if not stood:
                findings.violated(
                    "S2", key_history, "success was answered, but no effect stands", answer
                )
            elif min(stood) > attempt.answered_at:
                message = "success was answered before its effect was committed"
                findings.violated("S2", key_history, message, answer)
        if evidence.surveyed and lives and lives[0] == last:
            findings.checked["S2"] += 1
            if lost:
                message = f"a kept answer was given, but in the end the record is {final}"
                findings.violated("S2", key_history, message, answer, key_history.final)


def _completed_before(key_history: KeyHistory, lives: Sequence[int], place: int) -> bool:
    if not key_history.bounds:
        return bool(key_history.completions) and key_history.completions[0] < place
    return any(done < place and key_history.life(done) in lives for done in key_history.completions)


def _effects_stand_beside_records(
    key_history: KeyHistory, evidence: Evidence, findings: Findings
) -> None:
    guarantee = evidence.promise.guarantee
    completed = {key_history.life(place) for place in key_history.completions}
    last = len(key_history.bounds)
    final = key_history.final.state if key_history.final is not None else "absent"
    for life, effects in enumerate(key_history.effects_by_life()):
        for _, effect in effects:
            if effect.step is not None or (guarantee == "atomic" and effect.where == "elsewhere"):
                continue
            message = None
            if guarantee == "atomic" and evidence.store_seen and life not in completed:
                message = "an effect was committed without its record"
            elif evidence.surveyed and life == last and final not in BESIDE[guarantee]:
                message = f"an effect stands, but in the end the record is {final}"
            elif not evidence.surveyed and not (guarantee == "atomic" and evidence.store_seen):
                continue
            findings.checked["S2"] += 1
            if message is not None:
                findings.violated("S2", key_history, message, effect, key_history.final)


def no_means_no(key_history: KeyHistory, evidence: Evidence, findings: Findings) -> None:
    """S8: a response classed "not executed" => "this attempt left no effect and will not later
    leave one".

    Nor has it completed the record. Of an answer that was *released* the same holds for the
    record, and under the atomic guarantee for the database: everything was rolled back.
    """
    if len(key_history.oks) == len(key_history.attempts):
        return
    if evidence.effects_seen or evidence.store_seen:
        _refused_attempts_left_nothing(key_history, evidence, findings)
    if key_history.final is not None and key_history.final.state != "absent":
        findings.checked["S8"] += 1
        if all(_came_to_nothing(attempt) for attempt in key_history.attempts) and not any(
            type(event) is ClaimGranted and event.attempt not in evidence.attempts
            for _, event in key_history.story
        ):
            message = f"no attempt came to anything, yet the record is {key_history.final.state}"
            findings.violated("S8", key_history, message, key_history.final)


def _came_to_nothing(attempt: AttemptTrace) -> bool:
    return attempt.answer is not None and attempt.answer.kind in {"refused", "released"}


def _refused_attempts_left_nothing(
    key_history: KeyHistory, evidence: Evidence, findings: Findings
) -> None:
    acted: dict[str, Effect | Wrote] = {effect.attempt: effect for _, effect in key_history.effects}
    stays: dict[str, Effect | Wrote] = {}
    if evidence.promise.guarantee == "atomic":
        stays = {
            name: e for name, e in acted.items() if type(e) is Effect and e.where == "database"
        }
    for _, event in key_history.story:
        if type(event) is Wrote and event.applied and event.action == "complete":
            acted.setdefault(event.attempt, event)
            stays.setdefault(event.attempt, event)
    for attempt in key_history.attempts:
        answer = attempt.answer
        if answer is None or answer.kind not in {"refused", "released"}:
            continue
        findings.checked["S8"] += 1
        left = acted if answer.kind == "refused" else stays
        if answer.attempt in left:
            said = "not executed" if answer.kind == "refused" else "not kept"
            message = f"answered {answer.status}, {said}, yet it took effect"
            findings.violated(
                "S8", key_history, message, attempt.sent, answer, left[answer.attempt]
            )
