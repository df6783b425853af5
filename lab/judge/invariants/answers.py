"""Invariants about answers: S3 replays are equal, S6 scopes do not interfere, S7 fingerprints."""

from __future__ import annotations

from lab.judge.findings import Findings
from lab.judge.history import ClaimGranted, Effect, ResponseSeen, Stored, Wrote
from lab.judge.key_history import AttemptTrace, Evidence, KeyHistory
from lab.judge.responses import digest_of, same_response

IN_FLIGHT_OR_PARKED = 409
KEY_REUSED = 422


def replays_are_equal(key_history: KeyHistory, evidence: Evidence, findings: Findings) -> None:
    """S3: "any two stored-class responses for (scope,key,fp) are equal in status, body bytes and
    the stored header subset".

    Left out by name: `history.OF_THE_MOMENT`. Where the store's digest of the answer is known, the
    answers must also be the stored one.
    """
    oks = key_history.oks
    if not oks:
        return
    if key_history.bounds:
        _equal_within_lives(key_history, findings)
        return
    first: dict[str, ResponseSeen] = {}
    for attempt, answer in oks:
        fingerprint = attempt.sent.fingerprint
        model = first.setdefault(fingerprint, answer)
        if model is not answer:
            findings.checked["S3"] += 1
            if not same_response(model, answer):
                findings.violated("S3", key_history, _difference(model, answer), model, answer)
    digests = _stored_digests(key_history)
    if digests:
        for fingerprint, answer in first.items():
            _judge_stored(key_history, findings, answer, digests.get((0, fingerprint), set()))


def _equal_within_lives(key_history: KeyHistory, findings: Findings) -> None:
    """An attempt that overlaps the end of a life may answer from any life it overlaps."""
    models: dict[tuple[int, str], ResponseSeen] = {}
    overlapping: list[tuple[AttemptTrace, ResponseSeen]] = []
    for attempt, answer in key_history.oks:
        lives = key_history.lives(attempt)
        if len(lives) > 1:
            overlapping.append((attempt, answer))
            continue
        model = models.setdefault((lives[0], attempt.sent.fingerprint), answer)
        if model is not answer:
            findings.checked["S3"] += 1
            if not same_response(model, answer):
                findings.violated("S3", key_history, _difference(model, answer), model, answer)
    digests = _stored_digests(key_history)
    for attempt, answer in overlapping:
        names = [(life, attempt.sent.fingerprint) for life in key_history.lives(attempt)]
        _judge_stored(
            key_history, findings, answer, set().union(*(digests.get(n, ()) for n in names))
        )
        known = [models[name] for name in names if name in models]
        if len(known) == len(names):
            findings.checked["S3"] += 1
            if not any(same_response(model, answer) for model in known):
                findings.violated(
                    "S3", key_history, _difference(known[-1], answer), known[-1], answer
                )
    for name, answer in models.items():
        _judge_stored(key_history, findings, answer, digests.get(name, set()))


def _stored_digests(key_history: KeyHistory) -> dict[tuple[int, str], set[str]]:
    """Return the digests of completed records, by life and fingerprint."""
    digests: dict[tuple[int, str], set[str]] = {}
    for place, event in key_history.story:
        if type(event) is Stored and event.state == "completed" and event.response_digest:
            name = (key_history.life(place), event.fingerprint)
            digests.setdefault(name, set()).add(event.response_digest)
    final = key_history.final
    if final is not None and final.response_digest and final.fingerprint is not None:
        name = (len(key_history.bounds), final.fingerprint)
        digests.setdefault(name, {final.response_digest})
    return digests


def _judge_stored(
    key_history: KeyHistory, findings: Findings, answer: ResponseSeen, digests: set[str]
) -> None:
    if not digests:
        return
    findings.checked["S3"] += 1
    if digest_of(answer.status, answer.headers, answer.body) not in digests:
        findings.violated("S3", key_history, "the answer is not the one that was stored", answer)


def _difference(one: ResponseSeen, other: ResponseSeen) -> str:
    if one.status != other.status:
        return f"two answers to one request: status {one.status}, then {other.status}"
    if one.body != other.body:
        return "two answers to one request: their bodies differ"
    return "two answers to one request: their headers differ"


def scopes_do_not_interfere(
    key_history: KeyHistory, evidence: Evidence, findings: Findings
) -> None:
    """S6: "the answer to a request of scope A is a function of A's requests only (body, status,
    headers, and existence: no 409/422 that reveals B's key)".

    A successful body belongs to one key of one scope (`Promise.unique_bodies`); a 409 needs another
    attempt of the same scope and key behind it (or the attempt's own claim: told as unknown, or one
    that it had given up on and that stands), a
    422 one with another fingerprint; and an attempt claims and acts under its own scope and key.
    """
    several = len(evidence.scopes) > 1
    if evidence.promise.unique_bodies:
        for _, answer in key_history.oks:
            if answer.body and 200 <= answer.status < 300:
                findings.checked["S6"] += several
                owner = evidence.bodies.setdefault(answer.body, key_history)
                if owner is not key_history:
                    whose = f"{owner.scope}/{owner.key}"
                    message = f"the body of another's operation was answered: that of {whose}"
                    findings.violated("S6", key_history, message, answer)
    if key_history.refusals:
        _refusals_have_a_cause(key_history, evidence, several, findings)
    for _, event in key_history.story:
        if type(event) is ClaimGranted or type(event) is Effect:
            attempt = evidence.attempts.get(event.attempt)
            if attempt is None:
                continue
            sent = attempt.sent
            if sent.key != event.key or sent.scope != event.scope:
                message = "an attempt acted under a scope or key that is not its own"
                findings.violated("S6", key_history, message, sent, event)


def _refusals_have_a_cause(
    key_history: KeyHistory, evidence: Evidence, several: bool, findings: Findings
) -> None:
    suspects = [
        (attempt, answer)
        for attempt, answer in key_history.refusals
        if answer.status in {IN_FLIGHT_OR_PARKED, KEY_REUSED}
        and (answer.kind == "refused" or evidence.store_seen)
    ]
    if not suspects:
        return
    causes = _possible_holders(key_history, evidence)
    bound = _bound_from(key_history, evidence)
    for attempt, answer in suspects:
        findings.checked["S6"] += several
        until = attempt.answered_at
        asked: str | None = None
        if answer.status == KEY_REUSED:
            asked = attempt.sent.fingerprint
            until = min(until, bound.get(asked, until))
        if not any(
            place < until and (name != answer.attempt or answer.kind == "unknown")
            for fingerprint, earliest in causes.items()
            if asked is None or fingerprint != asked
            for place, name in earliest
        ) and not (answer.status != KEY_REUSED and _holds_by_itself(key_history, attempt)):
            message = f"{answer.status}, though nothing of this scope and key can be the cause"
            findings.violated("S6", key_history, message, attempt.sent, answer)


def _holds_by_itself(key_history: KeyHistory, attempt: AttemptTrace) -> bool:
    """Say whether a claim that the attempt had given up on came late, and stands in its own way.

    A transaction that was to be a claim can do that; it is rolled back, as nobody is behind it.
    """
    holds = False
    for place, event in key_history.story:
        if place > attempt.answered_at:
            break
        if type(event) is ClaimGranted:
            holds = event.attempt == attempt.sent.attempt
        elif type(event) is Stored and event.state != "in_flight":
            holds = False
    return holds


def _possible_holders(
    key_history: KeyHistory, evidence: Evidence
) -> dict[str, list[tuple[int, str]]]:
    """Return by fingerprint the first two attempts that may have held the key, and since when.

    From outside: all but those that were turned away at once.
    """
    holders: dict[str, list[tuple[int, str]]] = {}
    found: list[tuple[str, int, str]] = []
    if evidence.store_seen:
        for place, event in key_history.story:
            if type(event) is ClaimGranted:
                asked = _fingerprint(evidence, event.attempt) or ""
                found.append((asked, place, event.attempt))
    else:
        for attempt in key_history.attempts:
            answer = attempt.answer
            if answer is None or answer.kind != "refused" or answer.status >= 500:
                found.append((attempt.sent.fingerprint, attempt.sent_at, attempt.sent.attempt))
    for asked, place, name in found:
        earliest = holders.setdefault(asked, [])
        if len(earliest) < 2 and all(name != known for _, known in earliest):
            earliest.append((place, name))
    return holders


def _bound_from(key_history: KeyHistory, evidence: Evidence) -> dict[str, int]:
    """Return from where on the record is known to be complete, and nobody else's, by fingerprint.

    Told from outside, in a single life: by a kept answer, or (atomic) by an effect.
    """
    bound: dict[str, int] = {}
    if key_history.bounds or evidence.store_seen or not evidence.promise.effects_in_order:
        return bound
    for attempt, _ in key_history.oks:
        bound.setdefault(attempt.sent.fingerprint, attempt.answered_at)
    if evidence.promise.guarantee == "atomic":
        for place, effect in key_history.effects:
            asked = _fingerprint(evidence, effect.attempt)
            if asked is not None and effect.where == "database":
                bound[asked] = min(place, bound.get(asked, place))
    return bound


def another_request_is_not_the_same(
    key_history: KeyHistory, evidence: Evidence, findings: Findings
) -> None:
    """S7: "same (scope,key), different fp => no execution, no replay, no state change (422)".

    A record is bound to the fingerprint of its claim until it is released, purged or settled.
    """
    if not key_history.attempts:
        return
    first = key_history.attempts[0].sent.fingerprint
    others = 0
    for attempt in key_history.attempts:
        others += attempt.sent.fingerprint != first
    for _, event in key_history.story:
        others += type(event) is Stored and event.fingerprint != first
    if not others:
        return
    findings.checked["S7"] += others
    bound = _judge_claims(key_history, evidence, findings)
    effects: list[dict[str | None, Effect]] = [
        {
            _fingerprint(evidence, effect.attempt): effect
            for _, effect in life
            if effect.step is None
        }
        for life in key_history.effects_by_life()
    ]
    answered: dict[int, AttemptTrace] = {}
    for attempt, answer in key_history.oks:
        lives = key_history.lives(attempt)
        asked = attempt.sent.fingerprint
        if len(lives) > 1:
            known = {bound[life] for life in lives if life in bound}
            if known and asked not in known and evidence.store_seen:
                message = "a kept answer was given to another request"
                findings.violated("S7", key_history, message, attempt.sent, answer)
            continue
        owner = answered.setdefault(lives[0], attempt)
        acted = effects[lives[0]]
        if asked != bound.get(lives[0], owner.sent.fingerprint):
            message = "a kept answer was given to another request"
            findings.violated("S7", key_history, message, owner.sent, attempt.sent, answer)
        elif acted and 200 <= answer.status < 300 and not {asked, None} & acted.keys():
            message = "success was answered to a request other than the one that took effect"
            findings.violated("S7", key_history, message, attempt.sent, answer, *acted.values())
    for life, owner in answered.items():
        asked = bound.get(life, owner.sent.fingerprint)
        for fingerprint, effect in effects[life].items():
            if fingerprint is None or fingerprint == asked or effect.where == "elsewhere":
                continue
            run = evidence.attempts[effect.attempt]
            if run.sent_at > owner.answered_at or evidence.promise.guarantee == "atomic":
                message = "another request under the same key took effect"
                findings.violated("S7", key_history, message, owner.sent, run.sent, effect)


def _judge_claims(
    key_history: KeyHistory, evidence: Evidence, findings: Findings
) -> dict[int, str]:
    """Judge who may claim; return the fingerprint of each life's completed record."""
    completed: dict[int, str] = {}
    holder: ClaimGranted | None = None
    life = 0
    for place, event in key_history.story:
        if key_history.bounds and key_history.life(place) != life:
            life = key_history.life(place)
            holder = None
        if type(event) is ClaimGranted:
            asked = _fingerprint(evidence, event.attempt)
            held = _fingerprint(evidence, holder.attempt) if holder is not None else None
            if asked is not None and held is not None and asked != held:
                message = "a claim was granted to another request"
                findings.violated("S7", key_history, message, holder, event)
            holder = event
        elif type(event) is Wrote and event.applied:
            if event.action == "complete":
                asked = _fingerprint(evidence, event.attempt)
                if asked is not None:
                    completed.setdefault(life, asked)
            elif event.action == "release":
                holder = None
        elif type(event) is Stored:
            asked = _fingerprint(evidence, holder.attempt) if holder is not None else None
            if event.state == "in_flight" and asked not in {None, event.fingerprint}:
                message = "the record does not hold the fingerprint of its claim"
                findings.violated("S7", key_history, message, holder, event)
            if event.state == "absent":
                holder = None
            elif event.state == "completed":
                completed.setdefault(life, event.fingerprint)
    return completed


def _fingerprint(evidence: Evidence, attempt: str) -> str | None:
    known = evidence.attempts.get(attempt)
    return None if known is None else known.sent.fingerprint
