"""Invariants about expiry: S9 honest expiry, S13 issued keys are good once, for one caller."""

from __future__ import annotations

from lab.judge.findings import Findings
from lab.judge.history import ClaimGranted, Effect, ResponseSeen, Stored
from lab.judge.key_history import AttemptTrace, Evidence, KeyHistory
from lab.judge.responses import digest_of


def honest_expiry(key_history: KeyHistory, evidence: Evidence, findings: Findings) -> None:
    """S9: "after purge a key either executes as new (client-chosen key, documented) or is refused
    (server-signed key past its not-after). It never replays stale."

    While a tombstone stands the key neither runs nor replays (`after_expiry="refuse"`), or it runs
    as new (`"run"`). An answer that was on its way when the record went is not stale.
    """
    attempts = key_history.attempts
    if not attempts or not (
        key_history.bounds
        or key_history.issued
        or key_history.expired
        or (key_history.expires is not None and attempts[-1].sent.time > key_history.expires)
    ):
        return
    lives = _Lives(key_history, evidence)
    for attempt in attempts:
        sent = attempt.sent
        acted = lives.acts.get(sent.attempt, [])
        life = key_history.life(attempt.sent_at)
        over = lives.over_when_sent(attempt, life)
        answer = attempt.answer
        kept = answer if answer is not None and answer.kind == "ok" else None
        if sent.not_after is not None and sent.time > sent.not_after + lives.allowance:
            findings.checked["S9"] += 1
            # A claim alone clears up what a crash has left; it runs nothing.
            effects = [event for _, event in acted if type(event) is Effect]
            if effects or kept is not None:
                message = "an issued key was accepted after its not-after"
                findings.violated("S9", key_history, message, sent, effects[0] if effects else kept)
        elif over or life:
            findings.checked["S9"] += 1
            if over and evidence.promise.after_expiry == "refuse":
                early = [event for place, event in acted if key_history.life(place) == life]
                if early:
                    message = "ran although the key had expired"
                    findings.violated("S9", key_history, message, sent, early[0])
            stale = lives.what_is_stale(attempt, kept, over=over) if kept is not None else None
            if stale is not None:
                findings.violated("S9", key_history, stale, sent, kept)


def once_for_ever(key_history: KeyHistory, evidence: Evidence, findings: Findings) -> None:
    """S13: "signed keys: … not accepted in another scope", and at most once for ever.

    An issued key has one life: after its record has gone it takes effect no more, in bounded
    storage.
    """
    if not key_history.issued:
        return
    lives = [effects for effects in key_history.effects_by_life() if effects]
    findings.checked["S13"] += bool(lives)
    if len(lives) > 1:
        message = "an issued key took effect again after its record had gone"
        findings.violated("S13", key_history, message, lives[0][0][1], lives[1][0][1])
    for attempt in key_history.attempts:
        sent, answer = attempt.sent, attempt.answer
        if sent.issued_to in (None, sent.scope):
            continue
        findings.checked["S13"] += 1
        acted = [e for _, e in key_history.story if getattr(e, "attempt", "") == sent.attempt]
        if acted or (answer is not None and answer.kind == "ok"):
            message = "a key was accepted from somebody it was not issued to"
            findings.violated("S13", key_history, message, sent)


class _Lives:
    """What is known of each life of a key: when it was over, who ran in it, what it answered."""

    def __init__(self, key_history: KeyHistory, evidence: Evidence) -> None:
        self.key_history = key_history
        self.allowance = evidence.promise.clock_error + evidence.promise.clock_jumps
        """What is over when a request is sent, by the store's clock, may be valid when it arrives,
        if that clock was set back meanwhile: see `Promise.clock_jumps`."""
        self.unique_bodies = evidence.promise.unique_bodies
        self.store_seen = evidence.store_seen
        self.acts: dict[str, list[tuple[int, ClaimGranted | Effect]]] = {}
        self.ran: set[int] = set()
        self.tombstones: dict[int, int] = {}
        self.expiries: dict[int, float] = {}
        self.made: dict[bytes | str, int] = {}
        """The first life that made a body, or an answer of a digest."""
        for place, event in key_history.story:
            life = key_history.life(place)
            if type(event) is ClaimGranted or type(event) is Effect:
                self.acts.setdefault(event.attempt, []).append((place, event))
                self.ran.add(life)
            elif type(event) is Stored and event.state == "expired":
                self.tombstones.setdefault(life, place)
            elif type(event) is Stored and event.state == "completed":
                if event.expires is not None:
                    self.expiries.setdefault(life, event.expires)
                if event.response_digest is not None:
                    self.made.setdefault(event.response_digest, life)
        for attempt, answer in key_history.oks:
            lives = key_history.lives(attempt)
            if len(lives) == 1:
                self.made[answer.body] = min(self.made.get(answer.body, lives[0]), lives[0])

    def over_when_sent(self, attempt: AttemptTrace, life: int) -> bool:
        """Say whether the life's record was over when the attempt was sent in it."""
        if self.tombstones.get(life, attempt.sent_at) < attempt.sent_at:
            return True
        expiry = self.expiries.get(life)
        return expiry is not None and attempt.sent.time > expiry + self.allowance

    def what_is_stale(
        self, attempt: AttemptTrace, answer: ResponseSeen, *, over: bool
    ) -> str | None:
        """Say what is wrong with a kept answer to an attempt sent after a life's end, or None."""
        lives = self.key_history.lives(attempt)
        fresh = lives[1:] if over else lives
        if not fresh:
            return "a kept answer was replayed after its expiry"
        if answer.replayed and self.store_seen and not self.ran & set(fresh):
            return "a replay, though the key has not run since its record went"
        if self.unique_bodies and answer.body and 200 <= answer.status < 300:
            digest = digest_of(answer.status, answer.headers, answer.body)
            made = min(self.made.get(name, fresh.start) for name in (answer.body, digest))
            if made < fresh.start:
                return "the answer of an earlier life of the key"
        return None
