"""Invariant about steps: S10."""

from __future__ import annotations

from bisect import bisect_right

from lab.judge.contract import UNFENCED
from lab.judge.findings import Findings
from lab.judge.history import (
    ClaimGranted,
    Foreign,
    StepBegun,
    StepsForgotten,
    StepSkipped,
    Wrote,
)
from lab.judge.key_history import Evidence, KeyHistory


def steps_are_fenced(
    key_history: KeyHistory,
    evidence: Evidence,
    findings: Findings,
    holder: ClaimGranted | None,
    wrote: Wrote,
    wrong: str | None,
) -> None:
    """S10, its fence: `wrong` says why the write should have been refused, or None."""
    findings.checked["S10"] += 1
    if wrong is None:
        return
    if evidence.promise.unfenced_steps:
        findings.admit("S10", key_history, f"{wrong}: {UNFENCED}", wrote)
    else:
        findings.violated("S10", key_history, wrong, holder, wrote)


def steps(key_history: KeyHistory, evidence: Evidence, findings: Findings) -> None:
    """S10: "output of step i is write-once; step i+1 starts only after i is committed; a derived
    foreign key is a pure function of (scope,key,step-name), not of the attempt".

    A recorded step is not called again by whoever came to it after it was recorded, and goes on
    with just the result that was recorded. Where the far side ignores derived keys, a step that it
    has done is never called again (`on_unknown="park"`), or not by whoever came to it after that
    and could have probed. Two steps never share a derived
    key. That nothing is recorded under a stale token is judged with S5 (`steps_are_fenced`).
    """
    if key_history.steps or key_history.steps_written:
        _Steps(key_history, evidence, findings).judge()


class _Steps:
    """The steps of one key, and what is known of each."""

    def __init__(self, key_history: KeyHistory, evidence: Evidence, findings: Findings) -> None:
        self.key_history = key_history
        self.evidence = evidence
        self.findings = findings
        self.forgotten = [at for at, e in key_history.story if type(e) is StepsForgotten]
        self.recorded: dict[tuple[int, int, str], tuple[int, Wrote]] = {}
        """By name (see `_name`): where its result was written."""
        self.results: dict[str, list[tuple[int, Wrote]]] = {}
        """By step, in any life."""
        self.claimed: dict[str, list[int]] = {}
        """By attempt: where its claims were granted."""
        self.begun: dict[tuple[str, str], int] = {}
        """By attempt and step: where it was come to last."""
        self.last: dict[str, StepBegun | Foreign] = {}
        """By attempt: the step it is at."""
        self.done: dict[tuple[int, int, str], int] = {}
        """By name: where the far side did it first."""

    def judge(self) -> None:
        """Judge all of them."""
        key_history, checked = self.key_history, self.findings.checked
        for place, event in key_history.story:
            if type(event) is ClaimGranted:
                self.claimed.setdefault(event.attempt, []).append(place)
            elif type(event) is Wrote and event.action == "step" and event.applied:
                self._record(place, event)
        for place, effect in key_history.effects:
            if effect.step is not None:
                self.done.setdefault(self._name(place, effect.step), place)
        for place, act in key_history.steps:
            checked["S10"] += 1
            if type(act) is StepBegun:
                self._follow(place, act)
                self.begun[act.attempt, act.step] = place
            elif type(act) is Foreign:
                self._follow(place, act)
                self._judge_derived_key(act)
                self._call(place, act)
            elif type(act) is StepSkipped:
                self._skip(place, act)

    def _name(self, place: int, step: str) -> tuple[int, int, str]:
        """Tell a step from its like in another life, or before steps were forgotten."""
        return self.key_history.life(place), bisect_right(self.forgotten, place), step

    def _record(self, place: int, wrote: Wrote) -> None:
        step = wrote.step or ""
        self.results.setdefault(step, []).append((place, wrote))
        name = self._name(place, step)
        earlier = self.recorded.setdefault(name, (place, wrote))
        if earlier[0] != place:
            message = f"step {step!r} was recorded twice"
            self.findings.violated("S10", self.key_history, message, earlier[1], wrote)

    def _skip(self, place: int, skipped: StepSkipped) -> None:
        before = [wrote for at, wrote in self.results.get(skipped.step, ()) if at < place]
        wrong = None
        if not before:
            wrong = f"step {skipped.step!r} was skipped, though nothing was recorded"
        elif None not in {skipped.result_digest, before[-1].response_digest}:
            if skipped.result_digest != before[-1].response_digest:
                wrong = f"step {skipped.step!r} gave another result than was recorded"
        if wrong is not None and self.evidence.store_seen:
            self.findings.violated("S10", self.key_history, wrong, *before[-1:], skipped)

    def _follow(self, place: int, event: StepBegun | Foreign) -> None:
        """The step before must have been recorded."""
        before = self.last.get(event.attempt)
        self.last[event.attempt] = event
        if before is None or before.step == event.step or not self.evidence.store_seen:
            return
        if not any(at < place for at, _ in self.results.get(before.step, ())):
            message = f"step {event.step!r} began before step {before.step!r} was recorded"
            self.findings.violated("S10", self.key_history, message, before, event)

    def _call(self, place: int, call: Foreign) -> None:
        promise = self.evidence.promise
        name = self._name(place, call.step)
        recorded = self.recorded.get(name)
        sent = self.evidence.attempts.get(call.attempt)
        run = sent.sent_at if sent is not None else place
        run = max((at for at in self.claimed.get(call.attempt, ()) if at < place), default=run)
        came = max(run, self.begun.get((call.attempt, call.step), run))
        if recorded is not None and recorded[0] < came:
            message = f"step {call.step!r} was called again though it was recorded"
            self.findings.violated("S10", self.key_history, message, recorded[1], call)
        if promise.far_side == "honours-keys" or promise.on_unknown == "rerun":
            return
        # A probe tells what was done before it; whoever stood still may act after it.
        known = place if promise.on_unknown == "park" else came
        if self.done.get(name, known) < known:
            message = f"step {call.step!r} was called again though the far side had done it"
            if promise.unfenced_steps:
                self.findings.admit("S10", self.key_history, f"{message}: {UNFENCED}", call)
            else:
                self.findings.violated("S10", self.key_history, message, call)

    def _judge_derived_key(self, call: Foreign) -> None:
        name = (call.scope, call.key, call.step)
        owner = self.evidence.derived.setdefault(call.derived_key, name)
        if owner != name:
            message = f"its derived key is also that of {'/'.join(owner)}"
            self.findings.violated("S10", self.key_history, message, call)
        first = self.evidence.derived_of.setdefault(name, call)
        if first.derived_key != call.derived_key:
            message = f"step {call.step!r} was called under two derived keys"
            self.findings.violated("S10", self.key_history, message, first, call)
