"""The deterministic simulator: the real engine under crashes, pauses and faults, from one seed.

A third driver beside `semel.runtime.drivers`: it carries out what the engine yields in virtual
time, on a heap of events, with one random generator and no thread, socket or clock. The store is
the real `MemoryTable` behind a network that loses commands and answers; servers crash between any
two steps and stand still past their leases; clients retry, double-click, change their minds and
share key texts across scopes. What happens is a history, and the history checker judges it.

`python -m lab.sim.simulator --requests 1000000` runs until that many requests were sent.
"""

from __future__ import annotations

import argparse
import heapq
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple, get_args

from lab.judge.checker import check
from lab.judge.contract import Promise
from lab.judge.findings import HistoryReport, merged, summary
from lab.judge.history import (
    KIND_OF_PROBLEM,
    ClaimGranted,
    Effect,
    Event,
    FinalRecord,
    History,
    Paused,
    Purged,
    ResponseSeen,
    Restarted,
    Sent,
    Stored,
    Surveyed,
    Wrote,
)
from lab.judge.responses import digest_of
from lab.sim.claims_by_transaction import OpeningTable
from semel.core import commands as c
from semel.core import engine
from semel.core.keys import hash_key
from semel.core.policy import Guarantee, Policy
from semel.core.problems import HANDLER_FAILED, KEY_INVALID
from semel.core.record import Record, Response, State
from semel.issuer import Issuer

STATES: dict[State, Any] = {
    State.IN_FLIGHT: "in_flight",
    State.COMPLETED: "completed",
    State.PARKED: "parked",
    State.EXPIRED: "expired",
}
MUST_HAPPEN = (
    "crash: claim under way",
    "crash: handler running",
    "crash: completion under way",
    "pause past the lease",
    "takeover",
    "completion fenced",
    "claim answer lost",
    "completion answer lost",
    "completion lost",
    "store down at claim",
    "replay",
    "key reused",
    "in flight",
    "released",
    "expired",
    "tombstone",
    "purged",
    "answer lost on the way",
    "issued key sent after its record went",
    "key of another",
)
WHERE_TRANSACTIONS_CLAIM = (
    "opened",
    "key held by a transaction",
    "crash: transaction open",
    "database ended a transaction",
    "commit lost",
    "commit delayed past its answer",
)
"""The same for the store whose transactions are claims."""
"""A run in which one of these never happened is void, not green: it has looked at too little."""


class Weather(NamedTuple):
    """What one history is like; drawn from its seed, so that each seed tries something else."""

    servers: int
    keys: int
    retries: int
    lease: float
    handler: float
    crash: float
    pause: float
    lost: float
    unknown: float
    network: float
    fails: float
    double: float
    other: float
    expires: float
    tombstone: float
    after_expiry: Any
    opens: bool
    delayed: float

    @classmethod
    def draw(cls, rng: random.Random) -> Weather:
        """Draw the weather of a history."""

        def chance(highest: float) -> float:
            return rng.choice((0.0, rng.uniform(0, highest)))

        short = rng.random() < 0.3
        return cls(
            servers=rng.randint(1, 3),
            keys=rng.randint(1, 4),
            retries=rng.randint(2, 8),
            lease=rng.choice((1.0, 3.0, 30.0)),
            handler=rng.choice((0.01, 0.5, 2.0)),
            crash=chance(0.1),
            pause=chance(0.25),
            lost=chance(0.1),
            unknown=chance(0.1),
            network=chance(0.3),
            fails=chance(0.5),
            double=chance(0.6),
            other=chance(0.15),
            expires=rng.uniform(2, 12) if short else 86400.0,
            tombstone=rng.choice((4.0, 20.0)) if short else 86400.0,
            after_expiry=rng.choice(("refuse", "refuse", "run")),
            opens=rng.random() < 0.4,
            delayed=chance(0.5),
        )


class Server:
    """A process: what runs on it dies with it, and stands still with it."""

    __slots__ = ("epoch", "name", "paused_until")

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch = 0
        self.paused_until = 0.0


Process = Generator[float, None, None]


class World:
    """One history in the making."""

    table_type: type[OpeningTable] = OpeningTable
    life: Callable[..., engine.Life] = staticmethod(engine.run)

    def __init__(self, seed: int, guarantee: Guarantee, weather: Weather | None = None) -> None:
        self.rng = random.Random(seed)
        self.weather = weather or Weather.draw(self.rng)
        self.guarantee: Guarantee = guarantee
        self.now = 0.0
        self.table = self.table_type()
        self.happened: Counter[str] = Counter()
        self.requests = 0
        self.healed = False
        weather = self.weather
        self.opens = guarantee == "atomic" and weather.opens
        self.policy = Policy(
            guarantee=guarantee,
            lease=timedelta(seconds=weather.lease),
            wait=timedelta(seconds=self.rng.choice((0, 1, 5))),
            expires=timedelta(seconds=weather.expires),
            tombstone=timedelta(seconds=weather.tombstone),
            after_expiry=weather.after_expiry,
        )
        fate = random.Random(f"issued {seed}")
        self.issuer: Issuer | None = None
        """Issues the keys; None where clients choose theirs."""
        if fate.random() < 0.2:
            lifetime = timedelta(seconds=fate.uniform(4, 20))
            self.issuer = Issuer(
                bytes(32), lifetime=lifetime, clock=lambda: self.now, random=fate.randbytes
            )
        self.grace = timedelta(seconds=3 * weather.lease + 30)
        """A server stands still for two and a half leases at the most."""
        self.forgotten_at = 0.0
        """When no record of an issued key is left."""
        if self.issuer is not None:
            self.forgotten_at = (self.issuer.lifetime + self.grace).total_seconds() + 60
        self.history: History = [Promise(guarantee, weather.after_expiry)]
        self.note = self.history.append
        self.servers = [Server(f"server-{n}") for n in range(weather.servers)]
        self._events: list[tuple[float, int, Process, Server | None, int]] = []
        self._sequence = 0
        self.names: dict[bytes, tuple[str, str]] = {}
        self.issued: dict[str, tuple[float, str]] = {}
        """Of issued keys: their not-after, and whose they are."""

    # --- the scheduler ---------------------------------------------------------------------

    def spawn(self, process: Process, server: Server | None = None, delay: float = 0.0) -> None:
        """Start a process, on a server or beside them all."""
        self._sequence += 1
        epoch = server.epoch if server is not None else 0
        heapq.heappush(self._events, (self.now + delay, self._sequence, process, server, epoch))

    def run(self) -> None:
        """Run until nothing is left to happen."""
        events = self._events
        while events:
            when, _, process, server, epoch = heapq.heappop(events)
            if server is not None:
                if server.epoch != epoch:
                    continue  # its server has died
                if server.paused_until > when:
                    self._sequence += 1
                    heapq.heappush(
                        events, (server.paused_until, self._sequence, process, server, epoch)
                    )
                    continue
            self.now = when
            try:
                delay = next(process)
            except StopIteration:
                continue
            self._sequence += 1
            heapq.heappush(events, (when + delay, self._sequence, process, server, epoch))

    def crash(self, server: Server, during: str) -> None:
        """Kill a server: all that runs on it is gone; it is back at once, knowing nothing."""
        self.happened[f"crash: {during}"] += 1
        server.epoch += 1
        server.paused_until = 0.0
        for key, held in list(self.table.held.items()):
            if held.server == server.name:
                self.happened["crash: transaction open"] += 1
                self.end_transaction(key, held.token)
        self.note(Restarted(self.now, server.name))

    def pause(self, server: Server) -> None:
        """Let a server stand still for half a lease to two and a half."""
        span = self.weather.lease * self.rng.uniform(0.5, 2.5)
        self.happened["pause past the lease"] += span > self.weather.lease
        server.paused_until = self.now + span
        self.note(Paused(self.now, server.name))
        for key, held in self.table.held.items():
            if held.server == server.name:
                self.spawn(self._too_idle(key, held.token, server))

    def _too_idle(self, key: bytes, token: int, server: Server) -> Process:
        """The database ends a transaction that stands still for as long as a lease."""
        yield self.weather.lease
        if server.paused_until > self.now and self.end_transaction(key, token):
            self.happened["database ended a transaction"] += 1

    def end_transaction(self, key: bytes, token: int) -> bool:
        """Roll a transaction that was a claim back; the attempt may not know, and make another."""
        held = self.table.let_go(key, token)
        if held is None:
            return False
        scope, name = self.names[key]
        fingerprint = held.asked.fingerprint.decode("latin-1")
        self.note(Wrote(self.now, held.attempt, scope, name, token, "release", True))
        self.note(Stored(self.now, scope, name, "absent", token, fingerprint))
        return True

    # --- the store -------------------------------------------------------------------------

    def ask(
        self, server: Server, attempt: str, command: Any, transaction: list[Effect] | None = None
    ) -> Generator[float, None, Any]:
        """Carry a command to the store and its answer back, through whatever the weather is."""
        rng, weather = self.rng, self.weather
        kind = type(command)
        yield rng.uniform(0.001, 0.02)
        if not self.healed:
            if rng.random() < weather.crash:
                self.crash(server, _during(kind))
                yield 0.0
            if rng.random() < weather.lost:
                self.happened["store down at claim"] += kind in (c.Claim, c.Open)
                self.happened["completion lost"] += kind is c.Complete
                if kind is c.Complete and command.key in self.table.held:
                    self._commit_lost(attempt, command, transaction)
                    raise c.StoreUnknown("lost")
                if rng.random() < 0.5:
                    raise c.StoreUnavailable("lost")
                raise c.StoreUnknown("lost")
        if kind is c.Open:
            reply = self.open(server, attempt, command)
        else:
            reply = self.apply(attempt, command, transaction)
        if not self.healed:
            if rng.random() < weather.crash:
                self.crash(server, _during(kind))
                yield 0.0
            if rng.random() < weather.unknown:
                if type(reply) is c.Claimed and reply.opened:  # its connection went with it
                    self.end_transaction(command.key, reply.token)
                self.happened["claim answer lost"] += kind in (c.Claim, c.Open)
                self.happened["completion answer lost"] += kind is c.Complete
                raise c.StoreUnknown("its answer was lost")
        yield rng.uniform(0.001, 0.02)
        return reply

    def apply(self, attempt: str, command: Any, transaction: list[Effect] | None) -> Any:
        """What the store does, and what of it goes into the history."""
        kind = type(command)
        if kind is c.Lookup:
            return self.table.apply(command, self.now)
        scope, key = self.names[command.key]
        before = self.table.records.get(command.key)
        held = self.table.held.get(command.key)
        if kind is c.Complete and transaction is not None and self.opens and held is not None:
            reply: Any = self.table.finish(command, self.now)
        elif kind is c.Complete and self.opens and before is None:
            raise c.StoreUnknown("its connection is gone")
        else:
            reply = self.table.apply(command, self.now)
        if type(reply) is c.Claimed:
            self.happened["takeover"] += reply.attempt > 1
            record = self.table.records[command.key]
            self.note(ClaimGranted(self.now, attempt, scope, key, reply.token, record.lease_until))
            self._stored(scope, key, record)
        elif kind is c.Complete:
            response = command.response
            digest = digest_of(response.status, response.headers, response.body or b"")
            token = command.token
            self.note(Wrote(self.now, attempt, scope, key, token, "complete", reply, digest))
            self.happened["completion fenced"] += not reply
            self._changed(scope, key, before, command.key)
            if transaction and self.commits(reply):
                self.history += [effect._replace(time=self.now) for effect in transaction]
        elif kind is c.Release or kind is c.Park:
            action: Any = "release" if kind is c.Release else "park"
            self.note(Wrote(self.now, attempt, scope, key, command.token, action, bool(reply)))
            self._changed(scope, key, before, command.key)
        return reply

    def open(self, server: Server, attempt: str, command: c.Open) -> Any:
        """What the store does with a transaction that is to be a claim."""
        scope, key = self.names[command.key]
        reply = self.table.open(command, attempt, server.name, self.now)
        if type(reply) is c.Claimed:
            self.happened["opened"] += 1
            fingerprint = command.fingerprint.decode("latin-1")
            self.note(ClaimGranted(self.now, attempt, scope, key, reply.token, self.now + 1e9))
            self.note(Stored(self.now, scope, key, "in_flight", reply.token, fingerprint))
        self.happened["key held by a transaction"] += reply is None
        return reply

    def _commit_lost(
        self, attempt: str, command: c.Complete, transaction: list[Effect] | None
    ) -> None:
        """A commit and its connection are lost: it never arrives, or late, after the server has
        begun to ask what became of it."""
        if self.rng.random() < self.weather.delayed:
            self.happened["commit delayed past its answer"] += 1
            self.spawn(self._late(attempt, command, transaction))
        else:
            self.happened["commit lost"] += 1
            self.end_transaction(command.key, command.token)

    def _late(self, attempt: str, command: c.Complete, transaction: list[Effect] | None) -> Process:
        yield self.rng.uniform(0.01, 1.5)
        try:
            self.apply(attempt, command, transaction)
        except c.StoreUnknown:  # the database has ended it before it came
            return

    def commits(self, completed: bool) -> bool:
        """Whether a business transaction commits: with its completion only."""
        return completed

    def _changed(self, scope: str, key: str, before: Record | None, name: bytes) -> None:
        record = self.table.records.get(name)
        if record is before:
            return
        if record is not None:
            self._stored(scope, key, record)
        elif before is not None:
            fingerprint = before.fingerprint.decode("latin-1")
            self.note(Stored(self.now, scope, key, "absent", before.token, fingerprint))

    def _stored(self, scope: str, key: str, record: Record) -> None:
        response = record.response
        digest = None
        if response is not None:
            digest = digest_of(response.status, response.headers, response.body or b"")
        done = record.state is State.COMPLETED
        fingerprint = record.fingerprint.decode("latin-1")
        self.note(
            Stored(
                self.now,
                scope,
                key,
                STATES[record.state],
                record.token,
                fingerprint,
                digest,
                record.expires_at if done else None,
            )
        )

    def renewing(self, attempt: str, key: bytes, token: int, running: list[bool]) -> Process:
        """Renew a lease each third of it while the handler runs, from the same server."""
        lease = self.weather.lease
        scope, name = self.names[key]
        while True:
            yield lease / 3
            if not running[0]:
                return
            lost = self.table.apply(c.Renew(((key, token),), lease), self.now)
            if lost:
                self.note(Wrote(self.now, attempt, scope, name, token, "renew", False))
                return
            until = self.table.records[key].lease_until
            self.note(
                Wrote(self.now, attempt, scope, name, token, "renew", True, lease_until=until)
            )

    def sweeping(self) -> Process:
        """The sweeper, now and then."""
        while not self.healed or self.now < self.forgotten_at:
            yield self.rng.uniform(1, 6)
            before = dict(self.table.records)
            self.table.apply(c.Sweep(100), self.now)
            for name, record in before.items():
                after = self.table.records.get(name)
                if after is record:
                    continue
                scope, key = self.names[name]
                if after is None:
                    self.happened["purged"] += 1
                    self.note(Purged(self.now, scope, key))
                else:
                    self.happened["expired"] += 1
                    self._stored(scope, key, after)

    # --- a server at work ------------------------------------------------------------------

    def serve(self, server: Server, sent: Sent, reply: Callable[[Any, bool], None]) -> Process:
        """One attempt on one server: drive the engine, run the handler, answer."""
        attempt = sent.attempt
        name = hash_key(sent.scope, sent.key)
        self.names[name] = (sent.scope, sent.key)
        fingerprint = sent.fingerprint.encode("latin-1")
        request = engine.Request(name, attempt.encode(), lambda algorithm: fingerprint)
        policy, late = self.rules(sent)
        if policy is None:
            reply(engine.Refuse(KEY_INVALID), False)
            return
        request = request._replace(late=late)
        if self.issuer is not None and not self.healed and self.rng.random() < self.weather.pause:
            self.pause(server)  # between checking a key and claiming it
            yield 0.0
        found = None if late else self.table.apply(c.Lookup(name), self.now)
        if found is not None:
            outcome = engine.settled(request.fingerprint, policy, *found)  # type: ignore[misc]
            if outcome is not None:
                reply(outcome, False)
                return
        if self.opens:
            life = self.life(request, policy, found, opens=True)
        else:
            life = self.life(request, policy, found)
        opened = 0
        running = [False]
        transaction: list[Effect] = []
        answer = HANDLER_FAILED.response()
        send: Any = life.send
        value: Any = None
        while True:
            try:
                command = send(value)
            except StopIteration as end:
                running[0] = False
                if isinstance(end.value, engine.Deliver) and end.value.kept:
                    reply(engine.Replay(answer), True)
                else:
                    reply(end.value, True)
                return
            kind, send, value = type(command), life.send, None
            if kind is c.RunHandler:
                running[0] = True
                if not opened:
                    self.spawn(self.renewing(attempt, name, command.token, running), server)
                answer = yield from self.handle(server, sent, command.token, transaction)
                atomic = self.guarantee == "atomic"
                value = c.Answer(answer, atomic=atomic)
            elif kind is c.Wait:
                began = self.now
                yield command.poll * self.rng.uniform(0.75, 1.25)
                value = self.now - began
            elif kind is c.Sleep:
                yield command.seconds
            elif kind is c.Release and command.token == opened:
                self.end_transaction(name, opened)
                value = True
            else:
                try:
                    value = yield from self.ask(server, attempt, command, transaction)
                    if kind is c.Open and type(value) is c.Claimed:
                        opened = value.token
                except c.StoreError as error:
                    send, value = life.throw, error

    def rules(self, sent: Sent) -> tuple[Policy | None, bool]:
        """The rules for a request (None: its key is refused), and whether its key comes late."""
        if self.issuer is None:
            return self.policy, False
        left = self.issuer.check(sent.key, sent.scope, "POST", "/")
        if left is None:
            return None, False
        return self.policy.until(left, self.grace), left <= 0

    def handle(
        self, server: Server, sent: Sent, token: int, transaction: list[Effect]
    ) -> Generator[float, None, Response]:
        """The handler: takes its time, fails at times, leaves an effect."""
        rng, weather = self.rng, self.weather
        for late in (False, True):
            yield rng.uniform(0, weather.handler)
            if not self.healed:
                if rng.random() < weather.crash:
                    self.crash(server, "handler running")
                    yield 0.0
                if rng.random() < weather.pause:
                    self.pause(server)
                    yield 0.0
            if late:
                break
            if not self.healed and rng.random() < weather.fails / 2:
                return rng.choice((HANDLER_FAILED.response(), Response(503, (), b"busy")))
            where: Any = "database" if self.guarantee == "atomic" else "elsewhere"
            effect = Effect(self.now, sent.attempt, sent.scope, sent.key, token, where)
            if self.guarantee == "atomic":
                transaction.append(effect)
            else:
                self.note(effect)
        if not self.healed and rng.random() < weather.fails / 2:
            return HANDLER_FAILED.response()
        return Response(201, ((b"content-type", b"text/plain"),), f"by {sent.attempt}".encode())

    # --- clients ---------------------------------------------------------------------------

    def call(self, scope: str, key: str, fingerprint: str, attempt: str) -> Process:
        """One attempt over the network: lost, late, or answered. Ends when the client knows."""
        rng, weather = self.rng, self.weather
        sent = Sent(self.now, attempt, scope, key, fingerprint, *self.issued.get(key, ()))
        self.note(sent)
        self.requests += 1
        answers: list[ResponseSeen] = []
        lost = rng.random() < weather.network and not self.healed
        gone = lost and rng.random() < 0.5

        def reply(outcome: Any, first: bool) -> None:
            answers.append(self._answered(attempt, outcome, first))

        if not gone:
            server = rng.choice(self.servers)
            self.spawn(self.serve(server, sent, reply), server, rng.uniform(0, 0.05))
        patience = 12.0 if not lost else rng.uniform(0, 3)
        while patience > 0 and not (answers and not lost):
            patience -= 0.25
            yield 0.25
        if answers and not lost:
            self.note(answers[0]._replace(time=self.now))
            self._last[scope, key] = answers[0]
        else:
            self.happened["answer lost on the way"] += lost
            self.note(ResponseSeen(self.now, attempt, "unknown", 0, b""))

    def _answered(self, attempt: str, outcome: Any, first: bool) -> ResponseSeen:
        happened = self.happened
        if isinstance(outcome, engine.Replay):
            response = outcome.response
            ran = first and (response.body or b"").endswith(attempt.encode())
            happened["replay"] += not ran
            return ResponseSeen(
                0.0, attempt, "ok", response.status, response.body or b"", response.headers, not ran
            )
        if isinstance(outcome, engine.Refuse):
            problem = outcome.problem
            happened[problem.slug.replace("-", " ")] += 1
            happened["tombstone"] += problem.slug == "key-expired"
            kind = KIND_OF_PROBLEM[problem.slug]
            return ResponseSeen(0.0, attempt, kind, problem.status, problem.slug.encode())
        happened["released"] += 1
        return ResponseSeen(0.0, attempt, "released", 503, b"")

    def client(self, scope: str, key: str) -> Process:
        """Somebody who wants one thing done, and retries until told what became of it."""
        rng, weather = self.rng, self.weather
        yield rng.uniform(0, 2)
        for number in range(weather.retries):
            attempt = f"{scope}.{key}.{number}"
            calls = [self.call(scope, key, "\x01want", attempt)]
            if rng.random() < weather.double:
                calls.append(self.call(scope, key, "\x01want", attempt + "d"))
            if rng.random() < weather.other:
                calls.append(self.call(scope, key, "\x01other", attempt + "o"))
            for call in calls[1:]:
                self.spawn(call, None, rng.uniform(0, 0.5))
            yield from calls[0]
            yield rng.uniform(0.05, 4.0)

    def _issue(self, issuer: Issuer, scope: str) -> str:
        issued = issuer.issue(scope)
        self.issued[issued.keys[0]] = (issued.not_after, scope)
        return issued.keys[0]

    def thief(self, key: str) -> Process:
        """Somebody who has seen another's key."""
        yield self.rng.uniform(0, 5)
        self.happened["key of another"] += 1
        yield from self.call("thief", key, "\x01want", f"thief.{key}")

    def last_word(self, scope: str, key: str) -> Process:
        """After the storm: retry until there is a definite answer (L2)."""
        wanted = "\x01want"
        for number in range(12):
            self._last.pop((scope, key), None)
            yield from self.call(scope, key, wanted, f"{scope}.{key}.last{number}")
            answer = self._last.get((scope, key))
            if answer is None:
                continue
            if answer.body == b"key-reused":
                wanted = "\x01other"  # it was the other request that got there first
            elif answer.kind == "ok" or answer.body in (b"outcome-unknown", b"key-expired"):
                return
            yield self.weather.lease
        raise AssertionError(f"{scope}/{key} never got a definite answer")

    def live(self) -> World:
        """Let it all happen: first with faults, then healed until everything is settled."""
        self._last: dict[tuple[str, str], ResponseSeen] = {}
        names = [
            (f"tenant-{scope}", f"key-{key}")
            for key in range(self.weather.keys)
            for scope in range(1 + (key == 0))
        ]
        if self.issuer is not None:
            names = [(scope, self._issue(self.issuer, scope)) for scope, _ in names]
            self.spawn(self.thief(names[0][1]))
        for scope, key in names:
            self.spawn(self.client(scope, key))
        sweeper = self.sweeping()
        self.spawn(sweeper)
        self.spawn(self._heal_after(60.0))
        self.run()
        for scope, key in names:
            self.spawn(self.last_word(scope, key))
        self.run()
        if self.issuer is not None:
            self.happened["issued key sent after its record went"] += 1
            for scope, key in names:
                late = max(self.forgotten_at - self.now, 0.0)
                for asked in ("\x01want", "\x01other"):  # each settles what its own like left
                    attempt = f"{scope}.{key}.late{asked[1:]}"
                    self.spawn(self.call(scope, key, asked, attempt), None, late)
            self.run()
        self.note(Surveyed(self.now))
        for name, record in self.table.records.items():
            scope, key = self.names[name]
            self.note(FinalRecord(self.now, scope, key, STATES[record.state], record.token))
        return self

    def _heal_after(self, seconds: float) -> Process:
        yield seconds
        self.healed = True


def _during(kind: type) -> str:
    if kind is c.Complete:
        return "completion under way"
    return "claim under way" if kind in (c.Claim, c.Takeover) else "another command under way"


class Run(NamedTuple):
    """Many histories and what became of them."""

    report: HistoryReport
    requests: int
    happened: Counter[str]
    failed: tuple[int, ...]
    """Seeds of the histories that broke an invariant."""


def simulate(
    seeds: Sequence[int], guarantee: Guarantee, world: Callable[..., World] = World
) -> Run:
    """Run a history for each seed and judge it."""
    reports = []
    failed = []
    happened: Counter[str] = Counter()
    requests = 0
    for seed in seeds:
        lived = world(seed, guarantee).live()
        report = check(lived.history)
        reports.append(report)
        requests += lived.requests
        happened.update(lived.happened)
        happened["histories"] += 1
        if not report.ok:
            failed.append(seed)
    return Run(merged(reports), requests, happened, tuple(failed))


def trace(seed: int, guarantee: Guarantee) -> list[Event]:
    """Return the history of one seed."""
    return World(seed, guarantee).live().history


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate from the command line; return 0 without a violation, 3 for a void run."""
    parser = argparse.ArgumentParser(prog="python -m lab.sim.simulator")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guarantee", choices=get_args(Guarantee), default="atomic")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", type=int, help="show the history of this seed")
    options = parser.parse_args(arguments)
    if options.only is not None:
        print(World(options.only, options.guarantee).weather)
        history = trace(options.only, options.guarantee)
        print(*history, sep="\n")
        print(summary(check(history)))
        return 0
    started = time.monotonic()
    total = Run(merged(()), 0, Counter(), ())
    reports = []
    size = 200
    with multiprocessing.Pool(options.processes) as pool:
        shares = (range(s, s + size) for s in range(options.seed, sys.maxsize, size))
        batches = iter(shares)
        work = partial(simulate, guarantee=options.guarantee)
        while total.requests < options.requests:
            chunk = [next(batches) for _ in range(options.processes * 4)]
            for run in pool.imap_unordered(work, chunk):
                reports.append(run.report)
                total = Run(
                    run.report,
                    total.requests + run.requests,
                    total.happened + run.happened,
                    total.failed + run.failed,
                )
            rate = total.requests / (time.monotonic() - started)
            print(f"{total.requests:,} requests, {rate:,.0f} a second", end="\r", file=sys.stderr)
    print(file=sys.stderr)
    print(f"{total.requests:,} requests, {options.guarantee}")
    for name, number in sorted(total.happened.items()):
        print(f"  {name:32} {number:,}")
    print(summary(merged(reports)))
    if total.failed:
        print(f"seeds that failed: {total.failed[:20]}")
        return 1
    void = void_for(total.happened, options.guarantee)
    if void:
        print(f"VOID: never happened: {', '.join(void)}")
        return 3
    return 0


def void_for(happened: Counter[str], guarantee: Guarantee) -> list[str]:
    """Return what should have happened and did not."""
    parked = guarantee == "at-most-once"
    expected = {*MUST_HAPPEN} - ({"takeover", "released"} if parked else set())
    expected |= {"outcome unknown"} if parked else set()
    expected |= {*WHERE_TRANSACTIONS_CLAIM} if guarantee == "atomic" else set()
    return sorted(name for name in expected if not happened[name])


if __name__ == "__main__":
    sys.exit(main())
