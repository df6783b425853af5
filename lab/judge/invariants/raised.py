"""S15: what was raised is undone, and its response is kept."""

from __future__ import annotations

from lab.judge.findings import Findings
from lab.judge.key_history import Evidence, KeyHistory


def what_was_raised_is_undone(
    key_history: KeyHistory, evidence: Evidence, findings: Findings
) -> None:
    """S15: a handler wrote, and then raised what its framework answers with a kept status.

    Judged of atomic operations, where the promise names that status (`Promise.raised`): no effect
    in the database stands beside a response with it, and no attempt is told that it was not kept.
    """
    promise = evidence.promise
    if not promise.raised or promise.guarantee != "atomic":
        return
    written = [
        next((effect for _, effect in effects if effect.where == "database"), None)
        for effects in key_history.effects_by_life()
    ]
    for attempt, answer in key_history.oks:
        if answer.status != promise.raised:
            continue
        findings.checked["S15"] += 1
        beside = [written[life] for life in key_history.lives_of_answer(attempt, answer)]
        if beside and all(beside):
            message = "the handler raised this response, but what it wrote stands"
            findings.violated("S15", key_history, message, answer, beside[0])
    for attempt in key_history.attempts:
        told = attempt.answer
        if told is not None and told.kind == "released" and told.status == promise.raised:
            findings.checked["S15"] += 1
            message = "the handler raised this response, but it was not kept"
            findings.violated("S15", key_history, message, told)
