"""Invariants about records: S4 written once, S5 fencing, L1 nothing stays in flight."""

from __future__ import annotations

from typing import Final

from lab.judge.contract import Promise
from lab.judge.findings import Findings
from lab.judge.history import (
    STEP_ACTIONS,
    ClaimGranted,
    Effect,
    FinalRecord,
    Purged,
    ResponseSeen,
    Settled,
    State,
    Stored,
    Wrote,
)
from lab.judge.invariants.steps import steps_are_fenced
from lab.judge.key_history import Evidence, KeyHistory, StoryEvent

CHANGES: Final[frozenset[tuple[State, State]]] = frozenset(
    {
        ("absent", "in_flight"),
        ("in_flight", "in_flight"),
        ("in_flight", "completed"),
        ("in_flight", "parked"),
        ("in_flight", "absent"),
    }
)
"""The changes of state that need no further reason (design, section 2)."""

CLOSING: Final[dict[str, State]] = {
    "complete": "completed",
    "park": "parked",
    "release": "absent",
}
"""The state that each closing write leads to."""


def written_once(key_history: KeyHistory, evidence: Evidence, findings: Findings) -> None:
    """S4: "state=done at t => (resp,fp) unchanged for all t' in [t,exp); done never returns to
    inflight".

    Besides, every change of state is one of the table's; a record in flight or parked is never
    purged, and none before its expiry.
    """
    if not evidence.store_seen:
        return
    record = _ObservedRecord(evidence.promise)
    for _, event in key_history.story:
        following = _state_after(event)
        if following is not None:
            findings.checked["S4"] += 1
            wrong = record.follow(event, following)
            if wrong is not None:
                findings.violated("S4", key_history, wrong, event)
    if evidence.surveyed:
        findings.checked["S4"] += 1
        wrong = record.ends_as(key_history.final)
        if wrong is not None:
            findings.violated("S4", key_history, wrong, key_history.final)


class _ObservedRecord:
    """A record as the events tell of it, so far."""

    def __init__(self, promise: Promise) -> None:
        self.state: State = "absent"
        self._promise = promise
        self._token = 0
        self._digest: str | None = None
        self._fingerprint: str | None = None
        self._expires: float | None = None

    def follow(self, event: StoryEvent, following: State) -> str | None:
        """Take the event in; say what is wrong with it, or None."""
        wrong = None
        digest = fingerprint = None
        if type(event) is Stored:
            digest, fingerprint = event.response_digest, event.fingerprint
        elif type(event) is Wrote:
            digest = event.response_digest
        if following == self.state:
            if following == "completed" and self.differs(digest, fingerprint):
                wrong = "a completed record was changed"
            elif type(event) is Purged:
                wrong = "a record was purged that was not there"
        else:
            wrong = self._why_not(event, following)
            self._digest = self._fingerprint = self._expires = None
        self.state = following
        self._digest = self._digest or digest
        self._fingerprint = self._fingerprint or fingerprint
        if type(event) is Stored:
            self._token = event.token
            if event.expires is not None:
                self._expires = event.expires
        elif type(event) is ClaimGranted or type(event) is Wrote:
            self._token = event.token
        return wrong

    def ends_as(self, final: FinalRecord | None) -> str | None:
        """Say what is wrong with the record that was found in the end, or None."""
        found = "absent" if final is None else final.state
        if found != self.state and (self.state, found) != ("completed", "expired"):
            return f"the record was {self.state}, but in the end it is {found}"
        if final is not None and found == "completed":
            if self.differs(final.response_digest, final.fingerprint):
                return "a completed record was changed in the end"
        return None

    def differs(self, digest: str | None, fingerprint: str | None) -> bool:
        """Say whether these differ from what is known; None is not known."""
        return (None not in {digest, self._digest} and digest != self._digest) or (
            None not in {fingerprint, self._fingerprint} and fingerprint != self._fingerprint
        )

    def _why_not(self, event: StoryEvent, following: State) -> str | None:
        change = (self.state, following)
        if change in CHANGES and type(event) is not Purged:
            return None
        due = self._expires is None or event.time >= self._expires - self._promise.clock_error
        if type(event) is Purged:
            allowed = due and self.state in {"completed", "expired"}
        elif following == "in_flight" and self.state in {"completed", "expired"}:
            allowed = due and self._promise.after_expiry == "run"
        elif change == ("completed", "expired"):
            allowed = due
        elif change == ("absent", "completed"):
            # One transaction from claim to commit: the record is first seen when it is complete.
            first_seen = type(event) is Stored and event.token > self._token
            allowed = first_seen and self._promise.guarantee == "atomic"
        else:
            allowed = self.state == "parked" and type(event) is Settled
        if allowed:
            return None
        return f"{self.state} became {following}" + ("" if due else " before its expiry")


def _state_after(event: StoryEvent) -> State | None:
    if type(event) is Stored or type(event) is Settled:
        return event.state
    if type(event) is ClaimGranted:
        return "in_flight"
    if type(event) is Purged:
        return "absent"
    if type(event) is Wrote and event.applied:
        return CLOSING.get(event.action)
    return None


def fencing(key_history: KeyHistory, evidence: Evidence, findings: Findings) -> None:
    """S5: "tokens per key strictly increase; a write (complete, step, heartbeat, RELEASE/unlock,
    effect) under token k is applied only if k = current token and state=inflight".

    Writes of steps are found here too, and reported as S10.

    Tokens increase across lives too: a stopped process may wake in a later one. Effects are fenced
    by the atomic guarantee only; there none follows a kept answer either. A claim is taken over, or
    parked by another, only after its lease has ended by the store's clock (judged where
    `lease_until` is known).
    """
    fence = _Fence(evidence.promise.clock_error)
    atomic = evidence.promise.guarantee == "atomic"
    unfenced_steps = evidence.promise.unfenced_steps
    for _, event in key_history.story:
        holder = fence.holder
        wrong = None
        if type(event) is ClaimGranted:
            findings.checked["S5"] += holder is not None
            wrong = fence.grant(event)
        elif type(event) is Wrote and event.applied:
            if event.action in STEP_ACTIONS:
                steps_are_fenced(key_history, evidence, findings, holder, event, fence.apply(event))
                continue
            findings.checked["S5"] += 1
            wrong = fence.apply(event)
        elif type(event) is Effect:
            if fence.knows(event):
                findings.checked["S5"] += 1
                fenced = atomic and event.where == "database"
                wrong = fence.commit(event, fenced=fenced, unfenced_steps=unfenced_steps)
        elif type(event) is Purged or type(event) is Settled:
            fence.closed = "by its end"
            fence.absent = type(event) is Purged or (
                type(event) is Settled and event.state == "absent"
            )
        elif type(event) is Stored:
            if event.state == "absent":
                fence.closed = fence.closed or "by its end"
                fence.absent = True
            elif holder is not None and event.token < holder.token:
                wrong = f"a record of token {event.token} was stored over that of {holder.token}"
        if wrong is not None:
            findings.violated("S5", key_history, wrong, holder, event)
    if atomic and evidence.promise.effects_in_order and key_history.oks and key_history.effects:
        _none_follows_an_answer(key_history, findings)


def _none_follows_an_answer(key_history: KeyHistory, findings: Findings) -> None:
    """What was answered and kept is complete, so nothing can be in flight after it."""
    answered: dict[int, tuple[int, ResponseSeen]] = {}
    for attempt, answer in key_history.oks:
        lives = key_history.lives(attempt)
        if len(lives) == 1:
            answered.setdefault(lives.start, (attempt.answered_at, answer))
    for life, effects in enumerate(key_history.effects_by_life()):
        if life not in answered:
            continue
        until, answer = answered[life]
        for place, effect in effects:
            if effect.where == "database":
                findings.checked["S5"] += 1
                if place > until:
                    message = "an effect was committed after a kept answer was given"
                    findings.violated("S5", key_history, message, answer, effect)


class _Fence:
    """The claim that is current, and what it still allows."""

    def __init__(self, clock_error: float) -> None:
        self.holder: ClaimGranted | None = None
        self.closed: str | None = None
        """How the claim ended, if it has."""
        self.absent = False
        """Whether there is no record: then a step may be recorded under any token, because what the
        far side has done is true whoever says so, and nobody runs meanwhile."""
        self._lease_until: float | None = None
        self._highest = 0
        self._granted: dict[int, str] = {}
        self._over: set[int] = set()
        """Tokens whose run has written what became of it."""
        self._clock_error = clock_error

    def grant(self, claimed: ClaimGranted) -> str | None:
        """Make this the current claim; say what is wrong with it, or None."""
        wrong = None
        holder = self.holder
        again = (
            holder is not None
            and claimed.token == holder.token
            and claimed.attempt == holder.attempt
            and self.closed is None
        )
        if not again and holder is not None:
            if claimed.token <= self._highest:
                wrong = f"token {claimed.token} was granted after {self._highest}"
            elif self.closed is None and self._lease_holds(claimed.time):
                wrong = "a claim was taken over before its lease had ended"
        self.holder = claimed
        self.closed = None
        self.absent = False
        self._lease_until = claimed.lease_until
        self._highest = max(self._highest, claimed.token)
        self._granted[claimed.token] = claimed.attempt
        return wrong

    def apply(self, wrote: Wrote) -> str | None:
        """Apply the write; say why it should have been refused, or None."""
        wrong = self._why_refused(wrote)
        if wrong is not None:
            wrong = f"{wrote.action} applied {wrong}"
        elif wrote.action == "renew" and wrote.lease_until is not None:
            self._lease_until = wrote.lease_until
        if wrote.action in CLOSING:
            self.closed = f"by {wrote.action}"
            self.absent = wrote.action == "release"
            if wrote.action != "park":
                self._over.add(wrote.token)
        return wrong

    def knows(self, effect: Effect) -> bool:
        """Say whether there is a token on either side to compare."""
        return self.holder is not None and effect.token is not None

    def commit(self, effect: Effect, *, fenced: bool, unfenced_steps: bool) -> str | None:
        """Say why the effect cannot, or (fenced) must not, have been made under its token.

        It may stand before or after its own completion: they are one commit.
        """
        assert self.holder is not None
        assert effect.token is not None
        if self._granted.get(effect.token) != effect.attempt:
            return "an effect was made under a token that its attempt was not granted"
        if fenced:
            current = effect.token == self.holder.token and self.closed in {None, "by complete"}
            return None if current else "an effect was committed under a claim no longer held"
        if effect.token in self._over and not (unfenced_steps and effect.step is not None):
            return "an effect was made after its own run was over"
        return None

    def _why_refused(self, wrote: Wrote) -> str | None:
        if self.holder is None:
            return "without any claim"
        if self.absent and wrote.action in STEP_ACTIONS:
            return None
        if wrote.token != self.holder.token:
            return f"under token {wrote.token} while {self.holder.token} was current"
        if self.closed is not None:
            return f"after the claim was ended {self.closed}"
        if wrote.attempt != self.holder.attempt:
            if wrote.action != "park":
                return "by another than the claim's holder"
            if self._lease_holds(wrote.time):
                return "by another before the lease had ended"
        return None

    def _lease_holds(self, time: float) -> bool:
        return self._lease_until is not None and time < self._lease_until - self._clock_error


def nothing_stays_in_flight(
    key_history: KeyHistory, evidence: Evidence, findings: Findings
) -> None:
    """L1: "every inflight record reaches done or parked within lease + scan + attempts x
    T_handler" (or is absent: given back).

    Judged by the survey, which the harness makes when that time has passed.
    """
    if not evidence.surveyed:
        return
    findings.checked["L1"] += 1
    if key_history.final is not None and key_history.final.state == "in_flight":
        last = key_history.story[-1][1] if key_history.story else None
        findings.violated("L1", key_history, "still in flight in the end", last, key_history.final)
