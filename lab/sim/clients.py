"""Clients: they retry, double-click, change their minds and share key texts across scopes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lab.judge.history import KIND_OF_PROBLEM, ResponseSeen, Sent
from semel.core import engine

if TYPE_CHECKING:
    from lab.sim.scheduler import Process
    from lab.sim.servers import Service
    from lab.sim.store_model import StoreModel
    from lab.sim.surroundings import Surroundings
    from semel.issuer import Issuer

WANTED, OTHER = "\x01want", "\x01other"
"""Fingerprints: of what is asked for, and of another request under the same key."""


class Clients:
    """Everybody who sends requests."""

    def __init__(self, simulation: Surroundings, store: StoreModel, service: Service) -> None:
        self.simulation = simulation
        self.scheduler = simulation.scheduler
        self.rng = simulation.rng
        self.profile = simulation.profile
        self.happened = simulation.happened
        self.note = simulation.note
        self.store = store
        self.service = service
        self.requests = 0
        self._last = simulation.answers

    def call(self, scope: str, key: str, fingerprint: str, attempt: str) -> Process:
        """One attempt over the network: lost, late, or answered. Ends when the client knows."""
        rng, simulation = self.rng, self.simulation
        clock = self.store.clock
        sent = Sent(clock(), attempt, scope, key, fingerprint, *simulation.issued.get(key, ()))
        self.note(sent)
        self.requests += 1
        answers: list[ResponseSeen] = []
        lost = rng.random() < self.profile.network and not simulation.healed
        gone = lost and rng.random() < 0.5

        def reply(outcome: Any, first: bool, status: int = 503) -> None:
            answers.append(self._answered(attempt, outcome, first, status))

        if not gone:
            server = rng.choice(simulation.servers)
            serving = self.service.serve(server, sent, reply)
            self.scheduler.spawn(serving, server, rng.uniform(0, 0.05))
        patience = 12.0 if not lost else rng.uniform(0, 3)
        while patience > 0 and not (answers and not lost):
            patience -= 0.25
            yield 0.25
        if answers and not lost:
            self.note(answers[0]._replace(time=clock()))
            self._last[scope, key] = answers[0]
        else:
            self.happened["answer lost on the way"] += lost
            self.note(ResponseSeen(clock(), attempt, "unknown", 0, b""))

    def _answered(self, attempt: str, outcome: Any, first: bool, status: int) -> ResponseSeen:
        happened = self.happened
        if isinstance(outcome, engine.Replay):
            response = outcome.response
            body = response.body or b""
            ran = first and body.endswith(attempt.encode())
            happened["replay"] += not ran
            return ResponseSeen(
                0.0, attempt, "ok", response.status, body, response.headers, not ran
            )
        if isinstance(outcome, engine.Refuse):
            problem = outcome.problem
            happened[problem.slug.replace("-", " ")] += 1
            happened["tombstone"] += problem.slug == "key-expired"
            kind = KIND_OF_PROBLEM[problem.slug]
            return ResponseSeen(0.0, attempt, kind, problem.status, problem.slug.encode())
        happened["released"] += 1
        return ResponseSeen(0.0, attempt, "released", status, b"")

    def client(self, scope: str, key: str) -> Process:
        """Somebody who wants one thing done, and retries until told what became of it."""
        rng, profile = self.rng, self.profile
        yield rng.uniform(0, 2)
        for number in range(profile.retries):
            attempt = f"{scope}.{key}.{number}"
            calls = [self.call(scope, key, WANTED, attempt)]
            if rng.random() < profile.double:
                calls.append(self.call(scope, key, WANTED, attempt + "d"))
            if rng.random() < profile.other:
                calls.append(self.call(scope, key, OTHER, attempt + "o"))
            for call in calls[1:]:
                self.scheduler.spawn(call, None, rng.uniform(0, 0.5))
            yield from calls[0]
            yield rng.uniform(0.05, 4.0)

    def issue(self, issuer: Issuer, scope: str) -> str:
        """Have a key issued for a scope."""
        issued = issuer.issue(scope)
        self.simulation.issued[issued.keys[0]] = (issued.not_after, scope)
        return issued.keys[0]

    def thief(self, key: str) -> Process:
        """Somebody who has seen another's key."""
        yield self.rng.uniform(0, 5)
        self.happened["key of another"] += 1
        yield from self.call("thief", key, WANTED, f"thief.{key}")

    def last_word(self, scope: str, key: str) -> Process:
        """After the storm: retry until there is a definite answer (L2)."""
        wanted = WANTED
        for number in range(12):
            self._last.pop((scope, key), None)
            yield from self.call(scope, key, wanted, f"{scope}.{key}.last{number}")
            answer = self._last.get((scope, key))
            if answer is None:
                continue
            if answer.body == b"key-reused":
                wanted = OTHER  # it was the other request that got there first
            elif answer.kind == "ok" or answer.body in (b"outcome-unknown", b"key-expired"):
                return
            yield self.profile.lease
        raise AssertionError(
            f"L2, seed {self.simulation.seed}: {scope}/{key} never got a definite answer"
        )
