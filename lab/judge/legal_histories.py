"""Small random histories that keep a promise, made by running a sequential service with faults.

They are what the checker must pass, and what tests damage on purpose to see that it notices.
"""

from __future__ import annotations

import random
from typing import Final, NamedTuple

from lab.judge.contract import Promise
from lab.judge.history import (
    ClaimGranted,
    Effect,
    FinalRecord,
    Foreign,
    Headers,
    History,
    Kind,
    Purged,
    ResponseSeen,
    Restarted,
    Sent,
    State,
    Stored,
    Surveyed,
    Wrote,
)
from lab.judge.responses import digest_of

LEASE: Final = 30.0
EXPIRES: Final = 3600.0
TYPE: Final[Headers] = ((b"content-type", b"application/json"),)
MARKER: Final = (b"idempotent-replayed", b"true")


class _ServedRecord:
    """The service's record of one key."""

    def __init__(self) -> None:
        self.state: State = "absent"
        self.token = 0
        self.holder = ""
        self.fingerprint = ""
        self.lease_until = 0.0
        self.expires = 0.0
        self.answer: tuple[int, bytes] | None = None
        self.charged = False
        """Whether the far side has done the step's work, under the derived key."""
        self.step_recorded = False


class _Run:
    """An attempt under way."""

    def __init__(self, sent: Sent, status: int, *, calls: bool) -> None:
        self.sent = sent
        self.status = status
        """What its handler will answer if it runs."""
        self.calls = calls
        """Whether its handler takes a step."""
        self.token: int | None = None
        self.called = False
        self.acted = False
        self.dead = False


class Size(NamedTuple):
    """How large histories are, and what happens in them how often."""

    attempts: int = 6
    scopes: int = 2
    keys: int = 2
    faults: float = 0.15
    other_request: float = 0.12
    losses: float = 0.15
    expiries: float = 0.05
    steps: float = 0.3


def grow(
    rng: random.Random, promise: Promise, size: Size | None = None, *, inside: bool = True
) -> History:
    """Return a random history that keeps `promise`.

    `inside` logs the store's own events too; without it the history holds what an observer of real
    processes sees: clients, effects, faults, purges and the survey.
    """
    service = _Service(rng, promise, size or Size(), inside=inside)
    service.live()
    return service.history


class _Service:
    def __init__(self, rng: random.Random, promise: Promise, size: Size, *, inside: bool) -> None:
        self.rng = rng
        self.promise = promise
        self.size = size
        self.inside = inside
        self.history: History = []
        self.now = 0.0
        self.tokens = 0
        self.records: dict[tuple[str, str], _ServedRecord] = {}
        self.open: list[_Run] = []
        self.sent = 0

    def live(self) -> None:
        """Run until every attempt is over; recover what faults left; survey the records."""
        while self.sent < self.size.attempts or self.open:
            self.now += self.rng.random()
            if self.sent < self.size.attempts and (not self.open or self.rng.random() < 0.35):
                self._send()
            elif self.rng.random() < self.size.faults:
                self._crash()
            elif self.rng.random() < self.size.expiries:
                self._expire()
            elif self.open:
                self._advance(self.rng.choice(self.open))
        self._recover()
        if self.rng.random() < 0.8:
            self.history.append(Surveyed(self.now))
            for (scope, key), record in self.records.items():
                if record.state != "absent":
                    digest = self._digest(record) if record.state == "completed" else None
                    shown = (record.token, record.fingerprint, digest) if self.inside else ()
                    self.history.append(FinalRecord(self.now, scope, key, record.state, *shown))

    def _send(self, name: tuple[str, str] | None = None, fingerprint: str = "") -> _Run:
        rng = self.rng
        scope = f"tenant-{rng.randrange(self.size.scopes)}"
        key = f"key-{rng.randrange(self.size.keys)}"
        scope, key = name or (scope, key)
        other = rng.random() < self.size.other_request
        self.sent += 1
        attempt = f"attempt-{self.sent}"
        fingerprint = fingerprint or ("fp-other" if other else "fp")
        sent = Sent(self.now, attempt, scope, key, fingerprint)
        self.history.append(sent)
        calls = self.inside and rng.random() < self.size.steps
        run = _Run(sent, rng.choice((200, 201, 201, 404, 500)), calls=calls)
        self.open.append(run)
        self.records.setdefault((scope, key), _ServedRecord())
        return run

    def _advance(self, run: _Run) -> None:
        """Take one step of an attempt."""
        record = self._record(run)
        if record.state == "completed" and self.now >= record.expires:
            record.state = "expired"
            self._stored(run.sent, record)
        if run.token is not None:
            self._handle(run, record)
        elif self.rng.random() < 0.05:
            self._answer(run, "refused", self.rng.choice((400, 503)))
        elif record.state == "absent" or (
            record.state == "expired" and self.promise.after_expiry == "run"
        ):
            self._claim(run, record)
        elif record.state == "expired":
            self._answer(run, "refused", 410)
        elif record.fingerprint != run.sent.fingerprint:
            self._answer(run, "refused", 422)
        elif record.state == "completed":
            self._replay(run, record)
        elif record.state == "parked":
            self._answer(run, "unknown", 409)
        elif record.lease_until > self.now or not self._abandoned(record):
            self._answer(run, "refused", 409)
        elif self.promise.guarantee == "at-most-once":
            self._write(run, record, "park")
        else:
            self._claim(run, record)

    def _handle(self, run: _Run, record: _ServedRecord) -> None:
        """Take one step of a handler, or finish it."""
        atomic = self.promise.guarantee == "atomic"
        held = record.state == "in_flight" and record.token == run.token
        success = run.status < 400
        if run.calls and not run.called and not record.step_recorded:
            self._call(run, record, held=held)
        elif success and not run.acted and not atomic:
            run.acted = True
            self._effect(run, "database")
        elif not held:
            self._fenced(run, record)
        elif self._kept(run.status):
            answer = (run.status, f'{{"by": "{run.sent.attempt}"}}'.encode())
            record.answer = answer
            if success and atomic:
                self._effect(run, "database")
            self._write(run, record, "complete")
            self._answer(run, "ok", *answer)
        else:
            self._write(run, record, "release")
            self._answer(run, "released", run.status, b'{"failed": true}')

    def _kept(self, status: int) -> bool:
        return status < 500 or self.promise.guarantee == "at-most-once"

    def _call(self, run: _Run, record: _ServedRecord, *, held: bool) -> None:
        sent = run.sent
        run.called = True
        derived = f"derived({sent.scope},{sent.key},charge)"
        self.history.append(
            Foreign(self.now, sent.attempt, sent.scope, sent.key, "charge", derived)
        )
        if not record.charged:
            record.charged = True
            self._effect(run, "elsewhere", "charge")
        assert run.token is not None
        digest = digest_of(200, (), derived.encode())
        self.history.append(Wrote(self.now, *sent[1:4], run.token, "step", held, digest, "charge"))
        record.step_recorded = record.step_recorded or held

    def _fenced(self, run: _Run, record: _ServedRecord) -> None:
        assert run.token is not None
        if self.inside:
            self.history.append(Wrote(self.now, *run.sent[1:4], run.token, "complete", False))
        if record.state == "completed" and record.fingerprint == run.sent.fingerprint:
            self._replay(run, record)
        else:
            self._answer(run, "unknown", 503)

    def _replay(self, run: _Run, record: _ServedRecord) -> None:
        assert record.answer is not None
        self._answer(run, "ok", *record.answer, replayed=True)

    def _answer(
        self, run: _Run, kind: Kind, status: int, body: bytes = b"", *, replayed: bool = False
    ) -> None:
        self.open.remove(run)
        if self.rng.random() < self.size.losses:
            if self.rng.random() < 0.5:
                return
            kind, status, body, replayed = "unknown", 0, b"", False
        headers = (*TYPE, MARKER) if replayed else TYPE
        attempt = run.sent.attempt
        self.history.append(ResponseSeen(self.now, attempt, kind, status, body, headers, replayed))

    def _claim(self, run: _Run, record: _ServedRecord) -> None:
        self.tokens += 1
        run.token = record.token = self.tokens
        record.state = "in_flight"
        record.holder = run.sent.attempt
        record.fingerprint = run.sent.fingerprint
        record.lease_until = self.now + LEASE
        if self.inside:
            self.history.append(
                ClaimGranted(self.now, *run.sent[1:4], record.token, record.lease_until)
            )
            self._stored(run.sent, record)

    def _write(self, run: _Run, record: _ServedRecord, action: str) -> None:
        sent = run.sent
        states: dict[str, State] = {"complete": "completed", "release": "absent", "park": "parked"}
        record.state = states[action]
        record.expires = self.now + EXPIRES
        digest = self._digest(record) if action == "complete" else None
        if self.inside:
            self.history.append(
                Wrote(self.now, *sent[1:4], record.token, action, True, digest)  # type: ignore[arg-type]
            )
            self._stored(sent, record)

    def _stored(self, name: Sent | tuple[str, str], record: _ServedRecord) -> None:
        scope, key = (name.scope, name.key) if isinstance(name, Sent) else name
        completed = record.state == "completed"
        self.history.append(
            Stored(
                self.now,
                scope,
                key,
                record.state,
                record.token,
                record.fingerprint,
                self._digest(record) if completed else None,
                record.expires if completed else None,
            )
        )

    def _digest(self, record: _ServedRecord) -> str:
        assert record.answer is not None
        status, body = record.answer
        return digest_of(status, TYPE, body)

    def _effect(self, run: _Run, where: str, step: str | None = None) -> None:
        token = run.token if self.inside else None
        self.history.append(
            Effect(self.now, *run.sent[1:4], token, where, step)  # type: ignore[arg-type]
        )

    def _record(self, run: _Run) -> _ServedRecord:
        return self.records[run.sent.scope, run.sent.key]

    def _abandoned(self, record: _ServedRecord) -> bool:
        return all(run.sent.attempt != record.holder or run.dead for run in self.open)

    def _crash(self) -> None:
        """A server dies with some of the attempts; or it only stands still, and they go on late."""
        self.now += LEASE
        self.history.append(Restarted(self.now, "server-1"))
        for run in [run for run in self.open if self.rng.random() < 0.5]:
            if self.rng.random() < 0.6:
                self.open.remove(run)
            else:
                run.dead = True  # to everybody else; it may still wake

    def _expire(self) -> None:
        """Time passes, and the sweeper comes."""
        idle = [
            name
            for name, record in self.records.items()
            if record.state in {"completed", "expired"}
            and all(
                (run.sent.scope, run.sent.key) != name or run.token is None for run in self.open
            )
        ]
        if not idle:
            return
        self.now += EXPIRES
        name = self.rng.choice(idle)
        record = self.records[name]
        if record.state == "completed" and self.rng.random() < 0.6:
            record.state = "expired"
            self._stored(name, record)
        else:
            self.history.append(Purged(self.now, *name))
            self.records[name] = _ServedRecord()

    def _recover(self) -> None:
        """Let everything that faults left in flight come to an end."""
        for name, record in list(self.records.items()):
            while record.state == "in_flight":
                self.now += LEASE
                run = self._send(name, record.fingerprint)
                while run in self.open:
                    self.now += LEASE
                    self._advance(run)
