"""Every schedule of the small scope, on the real engine: no seeds, no luck.

Two clients want the same thing done under one key, on two servers. At each moment either may take
its next step, one server may crash (its client then asks the other), and once the time may pass the
end of every lease while all stand still (a pause). Each command is two steps, asking the store and
hearing its answer, so a crash can fall between. All choices are tried; states that have been seen
are not gone through again.

Most bugs of such protocols show in a small scope (Jackson, *Software Abstractions*, 2006).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple, get_args

from lab.judge.checker import check
from lab.judge.contract import Promise
from lab.judge.findings import HistoryReport, merged, summary
from lab.judge.history import (
    KIND_OF_PROBLEM,
    ClaimGranted,
    Effect,
    FinalRecord,
    History,
    Paused,
    ResponseSeen,
    Restarted,
    Sent,
    Stored,
    Surveyed,
    Wrote,
)
from lab.judge.responses import digest_of
from lab.sim.store_model import STATES
from semel.core import commands as c
from semel.core import engine
from semel.core.keys import hash_key
from semel.core.policy import Guarantee, Policy
from semel.core.record import TRANSITIONS, Response, State
from semel.stores.memory import MemoryTable

SCOPE, KEY = "tenant", "key"
NAME = hash_key(SCOPE, KEY)
PRINT = b"\x01want"
LEASE = 10.0
TRIES = 2
"""How often a client asks before the end of the schedule; afterwards until it is told."""


class _Attempt:
    """One attempt on one server, between two of its steps."""

    def __init__(self, scope: Scope, name: str, server: int) -> None:
        self.name = name
        self.server = server
        self.heard: list[object] = []  # what the engine has been told: its whole state
        self.reply: Any = None
        self.asked = False
        self.outcome: Any = None
        self.transaction: list[Effect] = []
        self.answer = Response(201, (), f"by {name}".encode())
        request = engine.Request(NAME, name.encode(), lambda algorithm: PRINT)
        self.life = scope.run(request, scope.policy)
        self.command = next(self.life)


class Scope:
    """The two clients, the two servers and the store, at one point of one schedule."""

    run = staticmethod(engine.run)
    table_type: type[MemoryTable] = MemoryTable

    def __init__(self, guarantee: Guarantee) -> None:
        self.guarantee: Guarantee = guarantee
        self.policy = Policy(guarantee=guarantee, lease=timedelta(seconds=LEASE), wait=timedelta())
        self.table = self.table_type()
        self.now = 0.0
        self.history: History = [Promise(guarantee)]
        self.note = self.history.append
        self.crashes = 1
        self.pauses = 1
        self.attempts: list[_Attempt | None] = [None, None]
        self.tries = [0, 0]
        self.done = [False, False]
        self.transitions: set[tuple[State | None, State | None]] = set()
        for client in (0, 1):
            self._send(client, client)

    def options(self) -> list[tuple[str, int]]:
        """Return what may happen next."""
        going = [client for client in (0, 1) if self.attempts[client] is not None]
        options = [("step", client) for client in going]
        if self.crashes:
            options += [("crash", client) for client in going]
        if self.pauses and going:
            options.append(("pause", 0))
        return options

    def take(self, option: tuple[str, int]) -> None:
        """Let it happen."""
        what, client = option
        if what == "step":
            self._step(client)
        elif what == "crash":
            self.crashes -= 1
            attempt = self.attempts[client]
            assert attempt is not None
            self.note(Restarted(self.now, f"server-{attempt.server}"))
            self.note(ResponseSeen(self.now, attempt.name, "unknown", 0, b""))
            self._over(client, 1 - attempt.server)
        else:
            self.pauses -= 1
            self.now += LEASE + 1
            self.note(Paused(self.now, "server-0"))
            self.note(Paused(self.now, "server-1"))

    def finish(self) -> None:
        """After the schedule: both clients ask until they are told, and what is there is noted."""
        for client in (0, 1):
            for _ in range(6):
                if self.done[client]:
                    break
                self.now += LEASE + 1
                self._send(client, client)
                while self.attempts[client] is not None:
                    self._step(client)
        self.note(Surveyed(self.now))
        for record in self.table.records.values():
            state = STATES[record.state]
            self.note(FinalRecord(self.now, SCOPE, KEY, state, record.token))

    def state(self) -> object:
        """Return all that the future depends on."""
        going = tuple(
            a and (a.server, a.asked, tuple(map(repr, a.heard)), repr(a.reply), len(a.transaction))
            for a in self.attempts
        )
        effects = tuple(e for e in self.history if type(e) in (Effect, ResponseSeen))
        records = tuple(self.table.records.values())
        shared = (records, self.now, self.crashes, self.pauses)
        return (*shared, tuple(self.tries), tuple(self.done), going, effects)

    def _send(self, client: int, server: int) -> None:
        self.tries[client] += 1
        name = f"client{client}.{self.tries[client]}"
        self.note(Sent(self.now, name, SCOPE, KEY, PRINT.decode("latin-1")))
        self.attempts[client] = _Attempt(self, name, server)

    def _over(self, client: int, server: int) -> None:
        self.attempts[client] = None
        if self.tries[client] < TRIES and not self.done[client]:
            self._send(client, server)

    def _step(self, client: int) -> None:
        attempt = self.attempts[client]
        assert attempt is not None
        if attempt.asked:
            attempt.asked = False
            self._hear(client, attempt)
        else:
            attempt.reply = self._ask(attempt, attempt.command)
            attempt.asked = True

    def _hear(self, client: int, attempt: _Attempt) -> None:
        attempt.heard.append(attempt.reply)
        try:
            attempt.command = attempt.life.send(attempt.reply)
        except StopIteration as end:
            self._answered(client, attempt, end.value)

    def _answered(self, client: int, attempt: _Attempt, outcome: engine.Outcome) -> None:
        if isinstance(outcome, engine.Refuse):
            problem = outcome.problem
            kind = KIND_OF_PROBLEM[problem.slug]
            self.note(
                ResponseSeen(self.now, attempt.name, kind, problem.status, problem.slug.encode())
            )
            self.done[client] = problem.slug == "outcome-unknown"
        else:
            response = outcome.response if isinstance(outcome, engine.Replay) else attempt.answer
            body = response.body or b""
            self.note(ResponseSeen(self.now, attempt.name, "ok", response.status, body))
            self.done[client] = True
        self._over(client, attempt.server)

    def _ask(self, attempt: _Attempt, command: Any) -> Any:
        if type(command) is c.RunHandler:
            where: Any = "database" if self.guarantee == "atomic" else "elsewhere"
            effect = Effect(self.now, attempt.name, SCOPE, KEY, command.token, where)
            if self.guarantee == "atomic":
                attempt.transaction.append(effect)
            else:
                self.note(effect)
            return c.Answer(attempt.answer, atomic=self.guarantee == "atomic")
        if type(command) is c.Sleep:
            return None
        before = self.table.records.get(NAME)
        reply = self.table.apply(command, self.now)
        after = self.table.records.get(NAME)
        if type(reply) is c.Claimed:
            assert after is not None
            until = after.lease_until
            self.note(ClaimGranted(self.now, attempt.name, SCOPE, KEY, reply.token, until))
        elif type(command) in (c.Complete, c.Release, c.Park):
            action: Any = type(command).__name__.lower()
            digest = None
            if type(command) is c.Complete:
                digest = digest_of(*_content(command.response))
            token = command.token
            self.note(Wrote(self.now, attempt.name, SCOPE, KEY, token, action, bool(reply), digest))
        if after is not before:
            was = before.state if before is not None else None
            self.transitions.add((was, after.state if after is not None else None))
            record = after or before
            assert record is not None
            digest = digest_of(*_content(record.response)) if record.response else None
            state: Any = STATES[after.state] if after is not None else "absent"
            print_ = record.fingerprint.decode("latin-1")
            expires = record.expires_at if state == "completed" else None
            self.note(Stored(self.now, SCOPE, KEY, state, record.token, print_, digest, expires))
        if type(command) is c.Complete and reply:
            self.history += [effect._replace(time=self.now) for effect in attempt.transaction]
        return reply


def _content(response: Response) -> tuple[int, Any, bytes]:
    return response.status, response.headers, response.body or b""


class Exploration(NamedTuple):
    """What going through all schedules came to."""

    report: HistoryReport
    states: int
    schedules: int
    """Schedules gone through to their end; the others joined a state already seen."""
    transitions: frozenset[tuple[State | None, State | None]]


def explore(
    guarantee: Guarantee, scope: type[Scope] = Scope, *, stop_early: bool = False
) -> Exploration:
    """Go through every schedule and judge the history of each.

    `stop_early`: end at the first violation.
    """
    seen: set[object] = set()
    reports: list[HistoryReport] = []
    transitions: set[tuple[State | None, State | None]] = set()
    tapes: list[tuple[tuple[str, int], ...]] = [()]
    while tapes:
        tape = tapes.pop()
        at = scope(guarantee)
        for choice in tape:
            at.take(choice)
        state = at.state()
        if state in seen:
            continue
        seen.add(state)
        options = at.options()
        tapes += [(*tape, option) for option in options]
        if not options:
            at.finish()
            reports.append(check(at.history))
            transitions |= at.transitions
            if stop_early and not reports[-1].ok:
                break
    return Exploration(merged(reports), len(seen), len(reports), frozenset(transitions))


def allowed(was: State | None, now: State | None) -> bool:
    """Say whether the table of states knows this change."""
    return now in TRANSITIONS[was].values()


def main(arguments: Sequence[str] | None = None) -> int:
    """Explore from the command line; return 0 without a violation."""
    parser = argparse.ArgumentParser(prog="python -m lab.sim.exhaustive")
    parser.add_argument("--guarantee", choices=get_args(Guarantee), default="atomic")
    options = parser.parse_args(arguments)
    found = explore(options.guarantee)
    print(f"{found.states:,} states, {found.schedules:,} schedules to their end")
    print(summary(found.report))
    return 0 if found.report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
