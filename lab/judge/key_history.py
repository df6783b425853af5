"""A history taken apart by scope and key, so that each key can be judged alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from lab.judge.contract import Promise
from lab.judge.history import (
    STEP_ACTIONS,
    ClaimGranted,
    Effect,
    Event,
    FinalRecord,
    Foreign,
    HistoryError,
    Note,
    Paused,
    Purged,
    ResponseSeen,
    Restarted,
    Sent,
    Settled,
    StepBegun,
    StepsForgotten,
    StepSkipped,
    Stored,
    Surveyed,
    Wrote,
)
from lab.judge.responses import digest_of

StoryEvent = ClaimGranted | Wrote | Stored | Purged | Settled | Effect | StepsForgotten
StepEvent = StepBegun | Foreign | StepSkipped

FIRST_LIFE = range(1)


class AttemptTrace:
    """One attempt: where in the history it was sent, and where and how it was answered."""

    __slots__ = ("answer", "answered_at", "sent", "sent_at")

    def __init__(self, sent: Sent, sent_at: int) -> None:
        self.sent = sent
        self.sent_at = sent_at
        self.answer: ResponseSeen | None = None
        self.answered_at = -1


class KeyHistory:
    """All that happened to one key of one scope, in order; numbers are places in the history.

    A *life* of the key ends where its record is purged, or settled to run again, or (where expired
    keys run) where it expires, or (without a record) where its steps are forgotten for their age.
    What is promised is promised within one life.
    """

    expires: float | None = None
    """The earliest expiry of a completed record."""
    expired = False
    """Whether a tombstone was seen."""
    issued = False
    """Whether the key was issued, with a not-after of its own."""
    final: FinalRecord | None = None
    _made: dict[int, set[tuple[str, str]]] | None = None

    def __init__(self, scope: str, key: str) -> None:
        self.scope = scope
        self.key = key
        self.attempts: list[AttemptTrace] = []
        self.oks: list[tuple[AttemptTrace, ResponseSeen]] = []
        """Attempts answered with a kept answer, in the order of the answers."""
        self.refusals: list[tuple[AttemptTrace, ResponseSeen]] = []
        """Attempts whose answer says that they were not executed, or that nothing is known."""
        self.story: list[tuple[int, StoryEvent]] = []
        """What the store did, and the effects."""
        self.effects: list[tuple[int, Effect]] = []
        self.steps: list[tuple[int, StepEvent]] = []
        """What handlers did for their steps."""
        self.steps_written = False
        """Whether the story tells of writes to steps."""
        self.completions: list[int] = []
        """Where a completion was applied, or a completed record seen in the store."""
        self.bounds: list[int] = []
        """Where a new life begins."""

    def life(self, place: int) -> int:
        """Return the number, from 0, of the life that the place lies in."""
        return bisect_right(self.bounds, place) if self.bounds else 0

    def lives(self, attempt: AttemptTrace) -> range:
        """Return the lives that an answered attempt overlaps: it may have acted in any of them."""
        if not self.bounds:
            return FIRST_LIFE
        return range(self.life(attempt.sent_at), self.life(attempt.answered_at) + 1)

    def lives_of_answer(self, attempt: AttemptTrace, answer: ResponseSeen) -> Sequence[int]:
        """Return the lives that a kept answer may be from: those that made no other answer."""
        lives = self.lives(attempt)
        if len(lives) == 1:
            return lives
        if self._made is None:
            self._made = self._answers_made()
        asked = attempt.sent.fingerprint
        digest = digest_of(answer.status, answer.headers, answer.body)
        return [
            life for life in lives if self._made.get(life, {(asked, digest)}) & {(asked, digest)}
        ]

    def _answers_made(self) -> dict[int, set[tuple[str, str]]]:
        """Return the fingerprint and digest of what each life stored, or is known to have given."""
        made: dict[int, set[tuple[str, str]]] = {}
        for place, event in self.story:
            if type(event) is Stored and event.state == "completed" and event.response_digest:
                stored = (event.fingerprint, event.response_digest)
                made.setdefault(self.life(place), set()).add(stored)
        for attempt, answer in self.oks:
            lives = self.lives(attempt)
            if len(lives) == 1 and lives.start not in made:
                digest = digest_of(answer.status, answer.headers, answer.body)
                made[lives.start] = {(attempt.sent.fingerprint, digest)}
        return made

    def effects_by_life(self) -> list[list[tuple[int, Effect]]]:
        """Return the effects of each life: that of the claim they were made under.

        A stopped process may wake, and write outside any transaction, when its key lives anew.
        Where its claim is not seen, it has the benefit of the doubt: an effect is put in a life
        that has none of its kind yet, if its attempt may have run then.
        """
        if not self.bounds:
            return [self.effects]
        granted: dict[int | None, int] = {
            event.token: place for place, event in self.story if type(event) is ClaimGranted
        }
        sent = {attempt.sent.attempt: attempt.sent_at for attempt in self.attempts}
        acted: dict[str, int] = {}
        taken: set[tuple[int, str, str | None]] = set()
        lives: list[list[tuple[int, Effect]]] = [[] for _ in range(len(self.bounds) + 1)]

        def put(life: int, place: int, effect: Effect) -> None:
            lives[life].append((place, effect))
            taken.add((life, effect.where, effect.step))
            acted.setdefault(effect.attempt, life)

        unsure: list[tuple[range, int, Effect]] = []
        for place, effect in self.effects:
            last = self.life(granted.get(effect.token, place))
            first = self.life(sent.get(effect.attempt, place))
            if effect.token in granted or first >= last:
                put(last, place, effect)
            else:
                unsure.append((range(last, first - 1, -1), place, effect))
        for possible, place, effect in unsure:
            free = (n for n in possible if (n, effect.where, effect.step) not in taken)
            put(acted.get(effect.attempt, next(free, possible[0])), place, effect)
        for effects in lives:
            effects.sort()
        return lives

    def count_lives(self, promise: Promise) -> None:
        """Find where each life begins."""
        run = promise.after_expiry == "run"
        over_from: float | None = None
        held = forgotten = False
        for place, event in self.story:
            if type(event) is StepsForgotten:
                forgotten = not self.issued
            elif type(event) is Stored:
                held = event.state == "in_flight"
                forgotten = forgotten and event.state == "absent"
            if forgotten and not held:  # or, of a transaction that holds the key, when that ends
                self.bounds.append(place + 1)
                over_from = None
                forgotten = False
            elif (
                type(event) is Purged
                or (type(event) is Settled and event.state == "absent")
                or (run and type(event) is Stored and event.state == "expired")
            ):
                self.bounds.append(place + 1)
                over_from = None
            elif type(event) is Stored and event.state == "completed":
                over_from = event.expires
            elif type(event) is ClaimGranted or (
                type(event) is Stored and event.state == "in_flight"
            ):
                # Expired and claimed anew before a sweep could mark it.
                if run and over_from is not None and event.time >= over_from - promise.clock_error:
                    self.bounds.append(place)
                over_from = None


class KeyHistories(dict[tuple[str, str], KeyHistory]):
    """The parts of a history, by scope and key; asking for one that is not there begins it."""

    def __missing__(self, name: tuple[str, str]) -> KeyHistory:
        key_history = self[name] = KeyHistory(*name)
        return key_history


class Evidence:
    """The whole history by key, and what kinds of events it has at all."""

    def __init__(self, promise: Promise) -> None:
        self.promise = promise
        self.key_histories = KeyHistories()
        self.attempts: dict[str, AttemptTrace] = {}
        self.events = 0
        self.faults: list[int] = []
        """Where servers died or stood still."""
        self.effects_seen = False
        self.store_seen = False
        """Whether the history tells what was written to records, and not only of their purge."""
        self.surveyed = False
        self.scopes: set[str] = set()
        self.bodies: dict[bytes, KeyHistory] = {}
        """Successful bodies, and the key each was first seen under."""
        self.derived: dict[str, tuple[str, str, str]] = {}
        """Derived keys, and the scope, key and step each was made for."""
        self.derived_of: dict[tuple[str, str, str], Foreign] = {}
        """The first call of each step."""


def gather(history: Iterable[Event], promise: Promise) -> Evidence:
    """Take a history apart.

    Raises `HistoryError` where it contradicts itself: an attempt sent or answered twice, an answer
    to one never sent, a record found twice or outside a survey.
    """
    evidence = Evidence(promise)
    key_histories = evidence.key_histories
    attempts = evidence.attempts
    ended: set[KeyHistory] = set()
    expiring: set[KeyHistory] = set()
    place = -1

    for place, event in enumerate(history):
        if type(event) is Sent:
            if event.attempt in attempts:
                raise HistoryError(f"event {place}: attempt {event.attempt!r} was sent twice")
            attempts[event.attempt] = attempt = AttemptTrace(event, place)
            key_history = key_histories[event.scope, event.key]
            key_history.attempts.append(attempt)
            if event.not_after is not None:
                key_history.issued = True
        elif type(event) is ResponseSeen:
            known = attempts.get(event.attempt)
            if known is None or known.answer is not None:
                wrong = "never sent" if known is None else "answered before"
                raise HistoryError(f"event {place}: attempt {event.attempt!r} was {wrong}")
            known.answer = event
            known.answered_at = place
            if event.kind == "ok":
                key_histories[known.sent.scope, known.sent.key].oks.append((known, event))
            elif event.kind != "released":
                key_histories[known.sent.scope, known.sent.key].refusals.append((known, event))
        elif type(event) is Stored:
            key_history = key_histories[event.scope, event.key]
            key_history.story.append((place, event))
            evidence.store_seen = evidence.store_seen or event.state != "expired"
            if event.state == "completed":
                key_history.completions.append(place)
                if event.expires is not None and (
                    key_history.expires is None or event.expires < key_history.expires
                ):
                    key_history.expires = event.expires
            elif event.state == "expired":
                key_history.expired = True
            if key_history.expired or key_history.expires is not None:
                expiring.add(key_history)
        elif type(event) is Wrote:
            key_history = key_histories[event.scope, event.key]
            key_history.story.append((place, event))
            evidence.store_seen = True
            if event.action == "complete":
                if event.applied:
                    key_history.completions.append(place)
            elif event.action in STEP_ACTIONS:
                key_history.steps_written = True
        elif type(event) is ClaimGranted:
            key_histories[event.scope, event.key].story.append((place, event))
        elif type(event) is Effect:
            key_history = key_histories[event.scope, event.key]
            key_history.story.append((place, event))
            key_history.effects.append((place, event))
        elif type(event) is StepBegun or type(event) is Foreign or type(event) is StepSkipped:
            key_histories[event.scope, event.key].steps.append((place, event))
        elif type(event) is Purged or type(event) is Settled or type(event) is StepsForgotten:
            key_history = key_histories[event.scope, event.key]
            key_history.story.append((place, event))
            ended.add(key_history)
        elif type(event) is Restarted or type(event) is Paused:
            evidence.faults.append(place)
        elif type(event) is Surveyed:
            evidence.surveyed = True
        elif type(event) is FinalRecord:
            key_history = key_histories[event.scope, event.key]
            if not evidence.surveyed or key_history.final is not None:
                wrong = "found twice" if evidence.surveyed else "found outside a survey"
                raise HistoryError(f"event {place}: the record of {event.key!r} was {wrong}")
            key_history.final = event
        elif type(event) is not Note and type(event) is not Promise:
            raise HistoryError(f"event {place} is a {type(event).__name__}, not an event")

    evidence.events = place + 1
    for key_history in ended if promise.after_expiry == "refuse" else ended | expiring:
        key_history.count_lives(promise)
    for key_history in key_histories.values():
        evidence.scopes.add(key_history.scope)
        evidence.effects_seen = evidence.effects_seen or bool(key_history.effects)
    return evidence
