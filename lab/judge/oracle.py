"""A second, slow judge of small histories, written independently of the checker to check it.

`explains` searches every linearization: is there any order of what the service may have done in
secret (claims, takeovers, completions, look-ups) under which a sequential, obviously idempotent
service would have given just these answers and left just these effects? `store_errors` states what
the store itself promises as sentences over pairs of events. A history is legal if the one finds an
explanation and the other nothing to say. Both are exponential or quadratic: at most 8 attempts.

Not covered, and left to the checker's own tests: issued keys, renewed leases, settled records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple

from lab.judge.contract import Promise
from lab.judge.history import (
    ClaimGranted,
    Effect,
    Event,
    FinalRecord,
    Paused,
    Purged,
    ResponseSeen,
    Restarted,
    Sent,
    State,
    Stored,
    Surveyed,
)
from lab.judge.oracle_store import store_errors, with_expiries
from lab.judge.responses import compared_headers

MOST_ATTEMPTS: Final = 8

Step = Literal["claim", "take over", "effect", "complete", "release", "park", "expire", "purge"]
Name = tuple[str, str]
"""Scope and key."""
Content = tuple[int, object, bytes]
"""What answers to one operation agree in: status, compared headers, body."""


class Slot(NamedTuple):
    """The record of one key, as the sequential service sees it, and what it has seen so far."""

    state: State = "absent"
    by: str = ""
    """Whose claim it is, or whose answer."""
    life: int = 0
    ran: frozenset[tuple[str, int]] = frozenset()
    """Attempts that have claimed, and in which life."""
    over: frozenset[str] = frozenset()
    """Attempts whose handler has ended, since they wrote what became of it."""
    effects: tuple[tuple[str, str | None, str, int], ...] = ()
    """Where, step, attempt and life of each."""


def service(slot: Slot, step: Step, attempt: str, promise: Promise) -> Slot | None:
    """The whole sequential specification: the slot after the step, or None where it is forbidden.

    An effect in the database under the atomic guarantee *is* the completion: one commit.
    """
    state, by, life, ran = slot.state, slot.by, slot.life, slot.ran
    mine = state == "in_flight" and by == attempt
    match step:
        case "claim":
            free = state == "expired" and promise.after_expiry == "run"
            if state == "absent" or free:
                return slot._replace(state="in_flight", by=attempt, ran=ran | {(attempt, life)})
        case "take over":
            if state == "in_flight" and not mine and promise.guarantee != "at-most-once":
                return slot._replace(by=attempt, ran=ran | {(attempt, life)})
        case "effect":
            if attempt not in slot.over and any(attempt == name for name, _ in ran):
                return slot
        case "complete":
            if mine:
                return slot._replace(state="completed", over=slot.over | {attempt})
        case "release":
            if mine:
                return slot._replace(state="absent", by="", over=slot.over | {attempt})
        case "park":
            if state == "in_flight":
                return slot._replace(state="parked")
        case "expire":
            if state == "completed":
                over = life + 1 if promise.after_expiry == "run" else life
                return slot._replace(state="expired", by="", life=over)
        case "purge":
            if state in {"completed", "expired"}:
                return slot._replace(state="absent", by="", life=life + 1)
    return None


class SearchState(NamedTuple):
    """Everything the search has to remember."""

    slots: tuple[Slot, ...]
    bound: tuple[tuple[tuple[str, int], str], ...] = ()
    """Which maker (and its life) each answered attempt took its answer from."""


class Oracle:
    """The search over one history."""

    def __init__(self, history: Sequence[Event], promise: Promise) -> None:
        self.history = [
            event
            for event in history
            if isinstance(
                event,
                Sent | ResponseSeen | Effect | Purged | Restarted | Paused | FinalRecord | Surveyed,
            )
            or (isinstance(event, Stored) and event.state == "expired")
        ]
        self.promise = promise
        self.sent = {e.attempt: e for e in history if isinstance(e, Sent)}
        if len(self.sent) > MOST_ATTEMPTS:
            raise ValueError(f"{len(self.sent)} attempts are too many to search; at most 8")
        claims = [event for event in history if isinstance(event, ClaimGranted)]
        self.claimed = {claim.attempt for claim in claims}
        self.leases = {c.attempt: c.lease_until for c in claims if c.lease_until is not None}
        self.sent_at = {e.attempt: i for i, e in enumerate(self.history) if isinstance(e, Sent)}
        self.answers = {e.attempt: e for e in history if isinstance(e, ResponseSeen)}
        self.answered_at = {
            e.attempt: i for i, e in enumerate(self.history) if isinstance(e, ResponseSeen)
        }
        self.faults = [i for i, e in enumerate(self.history) if isinstance(e, Restarted | Paused)]
        finals = [e for e in self.history if isinstance(e, FinalRecord)]
        self.finals = {(e.scope, e.key): e for e in finals}
        names = {(e.scope, e.key) for e in self.sent.values()} | set(self.finals)
        names |= {(e.scope, e.key) for e in history if isinstance(e, Effect | Purged)}
        self.names = sorted(names)
        self.index = {name: i for i, name in enumerate(self.names)}
        self.surveyed_at = next(
            (i for i, e in enumerate(self.history) if isinstance(e, Surveyed)), None
        )
        self.tried: set[tuple[int, SearchState]] = set()

    def explains(self) -> bool:
        """Say whether some order of hidden steps explains the history."""
        return self._from(0, SearchState((Slot(),) * len(self.names)))

    def _from(self, place: int, world: SearchState) -> bool:
        if (place, world) in self.tried:
            return False
        self.tried.add((place, world))
        if place == len(self.history):
            return self._balanced(world)
        event = self.history[place]
        return any(
            self._from(place + 1, after) for after in self._observed(world, event, place)
        ) or any(self._from(place, after) for after in self._hidden(world, event, place))

    def _hidden(self, world: SearchState, event: Event, place: int) -> Iterator[SearchState]:
        """Steps that nobody sees, of the event's own key: other keys' can wait for their events."""
        name = self._name(event)
        if isinstance(event, Surveyed):
            concerned = range(len(self.names))
        elif name is None:
            return
        else:
            concerned = range(self.index[name], self.index[name] + 1)
        for number in concerned:
            slot = world.slots[number]
            for attempt, sent in self.sent.items():
                if (sent.scope, sent.key) != self.names[number] or self.sent_at[attempt] >= place:
                    continue
                yield from self._of_attempt(world, number, slot, attempt, place)
            if slot.state == "in_flight" and self._may_park(slot.by):
                yield _with(world, number, service(slot, "park", slot.by, self.promise))
            if slot.state == "in_flight" and self._lapsed(slot.by, place):
                if isinstance(event, Surveyed):
                    yield _with(world, number, slot._replace(state="absent", by=""))

    def _of_attempt(
        self, world: SearchState, number: int, slot: Slot, attempt: str, place: int
    ) -> Iterator[SearchState]:
        answer = self.answers.get(attempt)
        kind = answer.kind if answer is not None else "unknown"
        over = answer is not None and self.answered_at[attempt] < place
        if over and kind != "unknown":
            return
        refused = answer is not None and kind == "refused" and answer.status < 500
        if (not refused or attempt in self.claimed) and all(attempt != n for n, _ in slot.ran):
            yield _with(world, number, service(slot, "claim", attempt, self.promise))
            if slot.state == "in_flight" and self._lapsed(slot.by, place):
                same = self.sent[slot.by].fingerprint == self.sent[attempt].fingerprint
                if same:
                    yield _with(world, number, service(slot, "take over", attempt, self.promise))
        if kind in {"ok", "unknown"} and not self._commits_by_effect(attempt):
            yield _with(world, number, service(slot, "complete", attempt, self.promise))
        if kind != "ok":
            yield _with(world, number, service(slot, "release", attempt, self.promise))
        if kind == "ok" and not over and slot.state == "completed":
            asked, made = self.sent[attempt].fingerprint, self.sent[slot.by].fingerprint
            if asked == made and all(name != attempt for (name, _), _ in world.bound):
                yield world._replace(
                    bound=(*world.bound, ((attempt, slot.life), f"{slot.by}.{slot.life}"))
                )

    def _observed(self, world: SearchState, event: Event, place: int) -> Iterator[SearchState]:
        """The worlds after an event that was seen, if it can have happened in this one."""
        name = self._name(event)
        if name is None or isinstance(event, Sent):
            yield world
            return
        number = self.index[name]
        slot = world.slots[number]
        if isinstance(event, ResponseSeen):
            if self._may_be_answered(world, slot, event, place):
                yield world
        elif isinstance(event, Purged):
            yield from _if(_with(world, number, service(slot, "purge", "", self.promise)), world)
        elif isinstance(event, Stored):
            yield from _if(_with(world, number, service(slot, "expire", "", self.promise)), world)
        elif isinstance(event, FinalRecord):
            if event.state == slot.state != "in_flight":
                yield world
        elif isinstance(event, Effect):
            after = self._with_effect(slot, event, place)
            if after is not None:
                yield _with(world, number, after)

    def _with_effect(self, slot: Slot, effect: Effect, place: int) -> Slot | None:
        promise = self.promise
        sent = self.sent.get(effect.attempt)
        if sent is None or (sent.scope, sent.key) != (effect.scope, effect.key):
            return None
        answer = self.answers.get(effect.attempt)
        kind = answer.kind if answer is not None else "unknown"
        if kind in {"ok", "released"} and self.answered_at[effect.attempt] < place:
            return None  # its handler was over when it was answered
        commits = promise.guarantee == "atomic" and effect.where == "database"
        if kind == "refused" or (kind == "released" and commits):
            return None
        after = service(slot, "complete" if commits else "effect", effect.attempt, promise)
        if after is None:
            return None
        life = max(life for name, life in slot.ran if name == effect.attempt)
        for where, step, attempt, then in slot.effects:
            if (where, step, then) != (effect.where, effect.step, life):
                continue
            again = promise.guarantee == "at-least-once" or (
                promise.guarantee == "atomic" and where == "elsewhere"
            )
            if attempt == effect.attempt or not again or step is not None:
                return None
        made = (effect.where, effect.step, effect.attempt, life)
        return after._replace(effects=(*slot.effects, made))

    def _may_be_answered(
        self, world: SearchState, slot: Slot, answer: ResponseSeen, place: int
    ) -> bool:
        if answer.kind == "ok":
            return (
                self._has_its_effect(world, slot, answer)
                and self._was_undone(world, slot, answer)
                and self._takes_a_made_answer(world, answer)
            )
        if answer.kind == "released" and self._is_raised(answer):
            return False
        if answer.status not in {409, 422} or answer.kind == "released":
            return True
        mine = self.sent[answer.attempt].fingerprint
        return any(
            (name != answer.attempt or answer.kind == "unknown")
            and (answer.status == 409 or self.sent[name].fingerprint != mine)
            for name, _ in slot.ran
        )

    def _has_its_effect(self, world: SearchState, slot: Slot, answer: ResponseSeen) -> bool:
        """A success has its effect by now, in the life that its answer is from."""
        if not self.promise.effect_per_success or not _success(answer):
            return True
        asked = self.sent[answer.attempt].fingerprint
        return any(
            life == then and self.sent[by].fingerprint == asked
            for (name, life), _ in world.bound
            if name == answer.attempt
            for _, _, by, then in slot.effects
        )

    def _was_undone(self, world: SearchState, slot: Slot, answer: ResponseSeen) -> bool:
        """A response that was raised has no effect in the database, in its life."""
        lives = {life for (name, life), _ in world.bound if name == answer.attempt}
        return not self._is_raised(answer) or not any(
            where == "database" and then in lives for where, _, _, then in slot.effects
        )

    def _is_raised(self, answer: ResponseSeen) -> bool:
        return self.promise.guarantee == "atomic" and answer.status == self.promise.raised

    def _takes_a_made_answer(self, world: SearchState, answer: ResponseSeen) -> bool:
        """Its maker's other answers are the same, and no other maker made the same body."""
        makers = {name: (self._name(self.answers[name]), maker) for (name, _), maker in world.bound}
        mine = makers.get(answer.attempt)
        if mine is None:
            return False
        for name, maker in makers.items():
            other = self.answers[name]
            if maker == mine:
                if _content(other) != _content(answer):
                    return False
            elif self.promise.unique_bodies and _success(other) and _success(answer):
                if other.body and other.body == answer.body:
                    return False
        return True

    def _balanced(self, world: SearchState) -> bool:
        """Effects have their records, and records were found, once everything is told."""
        for number, slot in enumerate(world.slots):
            run = {life for _, step, _, life in slot.effects if step is None}
            forgotten = slot.state == "absent" and slot.life in run
            if self.promise.guarantee == "at-most-once" and forgotten:
                if self.surveyed_at is not None:
                    return False
            final = self.finals.get(self.names[number])
            if self.surveyed_at is not None and final is None and slot.state != "absent":
                return False
        return True

    def _may_park(self, attempt: str) -> bool:
        """Say whether the attempt's outcome may be unknown: parking needs no other reason."""
        answer = self.answers.get(attempt)
        return answer is None or answer.kind == "unknown"

    def _lapsed(self, attempt: str, place: int) -> bool:
        """Say whether the attempt's lease may have ended.

        Where it is told, by the time; else after a fault, or where it could not be recorded.
        """
        if attempt in self.leases:
            return self.history[place].time >= self.leases[attempt]
        answer = self.answers.get(attempt)
        gave_up = answer is not None and answer.kind == "unknown" and answer.status >= 500
        return gave_up or any(self.sent_at[attempt] < fault < place for fault in self.faults)

    def _commits_by_effect(self, attempt: str) -> bool:
        return self.promise.guarantee == "atomic" and any(
            isinstance(event, Effect) and event.attempt == attempt and event.where == "database"
            for event in self.history
        )

    def _name(self, event: Event) -> Name | None:
        if isinstance(event, ResponseSeen):
            sent = self.sent[event.attempt]
            return sent.scope, sent.key
        if isinstance(event, Sent | Effect | Purged | Stored | FinalRecord):
            return event.scope, event.key
        return None


def _with(world: SearchState, number: int, slot: Slot | None) -> SearchState:
    if slot is None:
        return world
    return world._replace(slots=(*world.slots[:number], slot, *world.slots[number + 1 :]))


def _if(after: SearchState, before: SearchState) -> Iterator[SearchState]:
    if after is not before:
        yield after


def _content(answer: ResponseSeen) -> Content:
    return answer.status, compared_headers(answer.headers), answer.body


def _success(answer: ResponseSeen) -> bool:
    return 200 <= answer.status < 300


def legal(history: Sequence[Event], promise: Promise) -> bool:
    """Say whether the history keeps the promise, by exhaustive search.

    Raises `ValueError` for more than 8 attempts.
    """
    history = with_expiries(history, promise)
    return not store_errors(history, promise) and Oracle(history, promise).explains()
