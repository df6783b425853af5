"""The oracle's half about the store: its promises as sentences over pairs of events.

Quadratic on purpose: each sentence is the invariant's own wording, and nothing is shared with the
checker.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from lab.judge.contract import Promise
from lab.judge.history import (
    ClaimGranted,
    Effect,
    Event,
    FinalRecord,
    Foreign,
    Purged,
    ResponseSeen,
    Sent,
    Stored,
    Surveyed,
    Wrote,
)
from lab.judge.responses import digest_of

ENDS: Final = {"complete", "release", "park"}
FOLLOWS: Final = {
    "absent": {"absent", "in_flight", "completed"},
    "in_flight": {"in_flight", "completed", "parked", "absent"},
    "completed": {"completed", "expired"},
    "expired": {"expired"},
    "parked": {"parked"},
}
"""What a record may be seen as after it was seen as something else."""


def store_errors(history: Sequence[Event], promise: Promise) -> list[str]:
    """Return what is wrong with the store's own events, in words; empty where nothing is."""
    told = any(
        isinstance(event, Wrote) or (isinstance(event, Stored) and event.state != "expired")
        for event in history
    )
    surveyed = any(isinstance(event, Surveyed) for event in history)
    names = {
        (event.scope, event.key)
        for event in history
        if isinstance(event, Sent | ClaimGranted | Wrote | Stored | Foreign | Purged)
    }
    errors = list(_derived_keys(history))
    for scope, key in sorted(names):
        mine = [
            (place, event)
            for place, event in enumerate(history)
            if getattr(event, "key", None) == key and getattr(event, "scope", None) == scope
        ]
        attempts = {event.attempt for _, event in mine if isinstance(event, Sent)}
        mine += [
            (place, event)
            for place, event in enumerate(history)
            if isinstance(event, ResponseSeen) and event.attempt in attempts
        ]
        mine.sort(key=lambda item: item[0])
        story = _Story(mine, promise, told=told, surveyed=surveyed)
        errors += [f"{scope}/{key}: {error}" for error in story.errors()]
    return errors


def with_expiries(history: Sequence[Event], promise: Promise) -> list[Event]:
    """Return the history with the expiries written out that only the time shows.

    A completed record is over from its expiry on, for whoever is sent later or claims it anew,
    even if a sweep marks it later or never.
    """
    full: list[Event] = []
    last: dict[tuple[str, str], Stored] = {}
    inserted: set[tuple[str, str]] = set()
    for event in history:
        if isinstance(event, Sent) or (
            isinstance(event, ClaimGranted) and promise.after_expiry == "run"
        ):
            name = (event.scope, event.key)
            record = last.get(name)
            if record is not None and record.state == "completed" and record.expires is not None:
                if record.expires < event.time or (
                    isinstance(event, ClaimGranted) and record.expires == event.time
                ):
                    over = record._replace(time=event.time, state="expired")
                    last[name] = over._replace(response_digest=None, expires=None)
                    full.append(last[name])
                    inserted.add(name)
        if isinstance(event, Stored):
            name = (event.scope, event.key)
            if event.state == "expired" and name in inserted:
                continue
            inserted.discard(name)
            last[name] = event
        elif isinstance(event, Purged):
            last.pop((event.scope, event.key), None)
            inserted.discard((event.scope, event.key))
        elif isinstance(event, FinalRecord) and event.state == "completed":
            if (event.scope, event.key) in inserted:
                event = event._replace(state="expired")
        full.append(event)
    return full


def _derived_keys(history: Sequence[Event]) -> Iterator[str]:
    calls = [event for event in history if isinstance(event, Foreign)]
    for one in calls:
        for other in calls:
            same_step = (one.scope, one.key, one.step) == (other.scope, other.key, other.step)
            if same_step != (one.derived_key == other.derived_key):
                yield "a derived key is not a function of scope, key and step"


class _Story:
    """The events of one key, with their places."""

    def __init__(
        self, events: list[tuple[int, Event]], promise: Promise, *, told: bool, surveyed: bool
    ) -> None:
        self.events = events
        self.promise = promise
        self.claims = [(i, e) for i, e in events if isinstance(e, ClaimGranted)]
        self.writes = [(i, e) for i, e in events if isinstance(e, Wrote) and e.applied]
        self.stored = [(i, e) for i, e in events if isinstance(e, Stored)]
        self.purges = [i for i, e in events if isinstance(e, Purged)]
        if promise.after_expiry == "run":
            self.purges += [i for i, e in self.stored if e.state == "expired"]
        self.effects = [(i, e) for i, e in events if isinstance(e, Effect)]
        self.sent = {e.attempt: (i, e) for i, e in events if isinstance(e, Sent)}
        self.surveyed = surveyed
        self.told = told

    def errors(self) -> Iterator[str]:
        yield from self._claims()
        yield from self._writes()
        yield from self._effects()
        yield from self._states()
        yield from self._answers()
        yield from self._steps()

    def _ended(self, start: int, end: int) -> set[str]:
        """How claims ended between two places."""
        ends: set[str] = {e.action for i, e in self.writes if start < i < end and e.action in ENDS}
        ends |= {"release" for i, e in self.stored if start < i < end and e.state == "absent"}
        return ends | {"purge" for i in self.purges if start < i < end}

    def _life(self, place: int) -> int:
        return sum(purge < place for purge in self.purges)

    def _claims(self) -> Iterator[str]:
        for i, one in self.claims:
            for j, other in self.claims:
                if i >= j:
                    continue
                if one.token >= other.token:
                    yield "tokens do not increase"
                if self._ended(i, j):
                    continue
                if one.lease_until is not None and other.time < one.lease_until:
                    yield "a claim was taken over under a living lease"
                if self.promise.guarantee == "at-most-once":
                    yield "run again after an unknown outcome"
                asked = [
                    self.sent[c.attempt][1].fingerprint
                    for c in (one, other)
                    if c.attempt in self.sent
                ]
                if len(set(asked)) > 1:
                    yield "a claim was taken over by another request"
            if one.attempt in self.sent and any(
                i < j
                and record.state == "in_flight"
                and record.token == one.token
                and record.fingerprint != self.sent[one.attempt][1].fingerprint
                for j, record in self.stored
            ):
                yield "a record does not hold the fingerprint of its claim"
            if self._ended(-1, i) and self._state_before(i) in {"completed", "parked"}:
                yield "a claim was granted though the record had ended"
            if self._state_before(i) == "expired" and self.promise.after_expiry == "refuse":
                yield "a claim was granted over a tombstone"

    def _state_before(self, place: int, *, swept: bool = True) -> str:
        state = "absent"
        for i, event in self.events:
            if i >= place:
                break
            if isinstance(event, Stored):
                state = event.state
            elif isinstance(event, Wrote) and event.applied:
                state = {"complete": "completed", "park": "parked", "release": "absent"}.get(
                    event.action, state
                )
            elif isinstance(event, Purged):
                state = "absent"
            if state == "expired" and self.promise.after_expiry == "run" and swept:
                state = "absent"
        return state

    def _writes(self) -> Iterator[str]:
        for place, wrote in self.writes:
            before = [(i, claim) for i, claim in self.claims if i < place]
            if not before:
                yield "a write without a claim"
                continue
            i, claim = before[-1]
            if claim.token != wrote.token or self._ended(i, place):
                yield "a write under a token that is not current"
            elif claim.attempt != wrote.attempt and wrote.action != "park":
                yield "a write by another than the holder"
            elif claim.attempt != wrote.attempt and claim.lease_until is not None:
                if wrote.time < claim.lease_until:
                    yield "parked by another under a living lease"

    def _effects(self) -> Iterator[str]:
        for place, effect in self.effects:
            granted = [e for i, e in self.claims if i < place and e.token == effect.token]
            if self.claims and effect.token is not None:
                if not any(claim.attempt == effect.attempt for claim in granted):
                    yield "an effect under a token that its attempt was not granted"
            commits = self.promise.guarantee == "atomic" and effect.where == "database"
            for i, wrote in self.writes:
                over = wrote.action in {"complete", "release"} and wrote.token == effect.token
                if i < place and over and not commits:
                    yield "an effect after its run was over"
        if self.promise.guarantee != "atomic":
            return
        for place, effect in self.effects:
            if effect.where != "database":
                continue
            before = [(i, claim) for i, claim in self.claims if i < place]
            if effect.token is not None and before:
                i, claim = before[-1]
                if claim.token != effect.token or self._ended(i, place) - {"complete"}:
                    yield "an effect under a token that is not current"
            completed = {self._life(i) for i, e in self.writes if e.action == "complete"}
            completed |= {self._life(i) for i, e in self.stored if e.state == "completed"}
            if self.told and self._life(place) not in completed:
                yield "an effect without its record"

    def _states(self) -> Iterator[str]:
        if not self.told:
            return
        for (i, one), (j, other) in zip(self.stored, self.stored[1:], strict=False):
            purged = any(i < purge < j for purge in self.purges)
            before = "absent" if purged or self._state_before(j) == "absent" else one.state
            if one.state == "expired" and self.promise.after_expiry == "run":
                before = "absent"
            at_once = before == "absent" and other.state == "completed"
            old = one.token >= other.token
            if other.state not in FOLLOWS[before] or (
                at_once and (old or self.promise.guarantee != "atomic")
            ):
                yield f"{before} became {other.state}"
            if not purged and one.state == other.state == "completed":
                if (one.fingerprint, one.response_digest) != (
                    other.fingerprint,
                    other.response_digest,
                ):
                    yield "a completed record was changed"
        for i, one in self.stored:
            held = [claim.token for j, claim in self.claims if j < i]
            if held and one.state != "absent" and one.token < held[-1]:
                yield "a record of an old token was stored"
            if one.state == "completed" and one.expires is not None:
                if any(i < j and e.time < one.expires for j, e in self.events if j in self.purges):
                    yield "purged before its expiry"
        for place, event in self.events:
            over = self._state_before(place, swept=False) in {"completed", "expired"}
            if isinstance(event, Purged) and not over:
                yield "purged what was not over"
        if self.surveyed:
            last = self.stored[-1][1].state if self.stored else "absent"
            deleted = [i for i, e in self.events if isinstance(e, Purged)]
            if deleted and self.stored and deleted[-1] > self.stored[-1][0]:
                last = "absent"
            found = [e for _, e in self.events if isinstance(e, FinalRecord)]
            final = found[0].state if found else "absent"
            if final != last and (last, final) != ("completed", "expired"):
                yield f"{last}, but {final} in the end"
            for record in found:
                known = self.stored[-1][1].response_digest if self.stored else None
                if final == "completed" and known != record.response_digest:
                    yield "changed in the end"

    def _answers(self) -> Iterator[str]:
        for place, answer in self.events:
            if not isinstance(answer, ResponseSeen):
                continue
            completions = [
                (i, e)
                for i, e in self.events
                if (isinstance(e, Stored) and e.state == "completed")
                or (isinstance(e, Wrote) and e.applied and e.action == "complete")
            ]
            if answer.kind in {"refused", "released"} and any(
                isinstance(e, Wrote) and e.attempt == answer.attempt for _, e in completions
            ):
                yield "refused, yet completed"
            if answer.kind in {"refused", "unknown"} and answer.status in {409, 422} and self.told:
                mine = self.sent[answer.attempt][1].fingerprint
                if not any(
                    i < place
                    and (claim.attempt != answer.attempt or answer.kind == "unknown")
                    and not (
                        answer.status == 422
                        and claim.attempt in self.sent
                        and self.sent[claim.attempt][1].fingerprint == mine
                    )
                    for i, claim in self.claims
                ):
                    yield "a conflict with nothing"
            if answer.kind != "ok":
                continue
            lives = set(range(self._life(self.sent[answer.attempt][0]), self._life(place) + 1))
            digest = digest_of(answer.status, answer.headers, answer.body)
            asked = self.sent[answer.attempt][1].fingerprint
            if not self.told:
                continue
            made = {
                self._life(i)
                for i, e in completions
                if i < place
                and self._life(i) in lives
                and e.response_digest in {None, digest}
                and asked == self._asked(e)
            }
            if any(e.action == "release" and e.attempt == answer.attempt for _, e in self.writes):
                yield "kept, though its claim was given back"
            if not made:
                yield "answered what was not stored before, for this request"
            elif self.promise.effect_per_success and 200 <= answer.status < 300:
                acted = {self._life_of_effect(i, e) for i, e in self.effects if i < place}
                if not made & acted:
                    yield "success without an effect in its life"

    def _life_of_effect(self, place: int, effect: Effect) -> int:
        claimed = [i for i, claim in self.claims if claim.token == effect.token]
        return self._life(claimed[0] if claimed else place)

    def _asked(self, event: Event) -> str | None:
        if isinstance(event, Stored):
            return event.fingerprint
        return self.sent[event.attempt][1].fingerprint if isinstance(event, Wrote) else None

    def _steps(self) -> Iterator[str]:
        recorded = [(i, e) for i, e in self.writes if e.action == "step"]
        for i, one in recorded:
            for j, other in recorded:
                if i < j and one.step == other.step and self._life(i) == self._life(j):
                    yield "a step was recorded twice"
        calls = [(i, e) for i, e in self.events if isinstance(e, Foreign)]
        for place, call in calls:
            claimed = [i for i, e in self.claims if e.attempt == call.attempt and i < place]
            begun = claimed[-1] if claimed else place
            for i, record in recorded:
                if record.step == call.step and i < begun and self._life(i) == self._life(place):
                    yield "a recorded step was called again"
            earlier = [e for i, e in calls if i < place and e.attempt == call.attempt]
            if earlier and earlier[-1].step != call.step and self.told:
                if not any(e.step == earlier[-1].step and i < place for i, e in recorded):
                    yield "a step began before the one before it was recorded"
