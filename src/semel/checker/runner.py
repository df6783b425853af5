"""Runs the cases within limits, and records what was sent and received."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count

from semel.checker.case import Case
from semel.checker.cases import CASES
from semel.checker.exchange import (
    Action,
    Count,
    Crash,
    Pause,
    SendOne,
    Together,
    WireRequest,
    WireResponse,
)
from semel.checker.report import EvidenceItem, Report, Result
from semel.checker.scene import Scene
from semel.checker.server import ServerFailed, ServerUnderTest
from semel.checker.target import BadTarget, Target, render
from semel.checker.verdict import CaseVerdict, NotRun, Outcome, fault
from semel.checker.wire import Wire


class CannotRun(RuntimeError):
    """The examination is not possible; the message says why and what to give."""


@dataclass(frozen=True)
class CheckLimits:
    """The limits of an examination. A case beyond them is not run."""

    requests: int = 1000
    """Requests in all; counting effects takes requests too."""
    seconds: float = 600.0
    timeout: float = 15.0
    """Seconds for one request."""


@dataclass
class Runner:
    """Carries out the actions of one examination."""

    target: Target
    limits: CheckLimits
    wire: Wire
    server: ServerUnderTest | None
    exchanges: list[EvidenceItem] = field(default_factory=list)
    """Those of the case at hand."""
    sent: int = 0
    started: float = field(default_factory=time.monotonic)

    def run(self, case: Case, scene: Scene) -> Result:
        """Run a case to its verdict."""
        self.exchanges = []
        begun = time.monotonic()
        why = case.missing(self.target)
        verdict = CaseVerdict(Outcome.NOT_RUN, why) if why else self._verdict(case, scene)
        return Result(case, verdict, tuple(self.exchanges), time.monotonic() - begun)

    def _verdict(self, case: Case, scene: Scene) -> CaseVerdict:
        steps = case.run(scene)
        try:
            action = next(steps)
            while True:
                action = steps.send(self._carry_out(action))
        except StopIteration as stop:
            verdict: CaseVerdict = stop.value
            return verdict
        except (NotRun, BadTarget) as why:
            return CaseVerdict(Outcome.NOT_RUN, str(why))
        except ServerFailed as error:
            return fault(f"killed, the server does not come back: {error}")

    def _carry_out(self, action: Action) -> object:
        match action:
            case SendOne(request):
                return self._send(request)
            case Together(requests):
                self._spend(len(requests))
                answers = self.wire.together(requests)
                self.exchanges += map(EvidenceItem, requests, answers)
                return answers
            case Count():
                return self._count()
            case Pause(seconds):
                self._spend(0)
                time.sleep(seconds)
                return None
            case Crash(request, after):
                return self._crash(request, after)

    def _spend(self, requests: int) -> None:
        if self.sent + requests > self.limits.requests:
            raise NotRun(
                f"the limit of {self.limits.requests} requests is reached (--max-requests)"
            )
        if time.monotonic() - self.started > self.limits.seconds:
            raise NotRun(f"the limit of {self.limits.seconds:g} s is reached (--max-seconds)")
        self.sent += requests

    def _send(self, request: WireRequest) -> WireResponse:
        self._spend(1)
        answer = self.wire.send(request)
        self.exchanges.append(EvidenceItem(request, answer))
        return answer

    def _count(self) -> int | None:
        effects = self.target.effects
        if effects is None:
            return None
        self._spend(1)
        answer = self.wire.send(WireRequest("GET", effects.path, self.target.headers, b""))
        if answer.status != 200:
            raise NotRun(f"--effects: GET {effects.path} was answered {answer}")
        number = effects.read(answer.body)
        self.exchanges.append(EvidenceItem(None, None, f"effects counted: {number}"))
        return number

    def _crash(self, request: WireRequest, after: float | None) -> WireResponse:
        server = self.server
        if server is None:
            raise NotRun("give --command")
        self._spend(1)
        answers: list[WireResponse] = []
        sent = threading.Event()
        sender = threading.Thread(target=lambda: answers.append(self.wire.send(request, sent)))
        sender.start()
        if after is None:
            sender.join()
        elif sent.wait(self.limits.timeout):
            time.sleep(after)
        server.kill()
        sender.join()
        self.exchanges.append(EvidenceItem(request, answers[0]))
        self.exchanges.append(EvidenceItem(None, None, "the server was killed, and started again"))
        server.start()
        return answers[0]


def scenes(target: Target) -> Iterator[Scene]:
    """Yield scenes, each with a key, and a body where that has placeholders, of its own."""
    numbers = count(1)

    def new() -> Scene:
        key = f"semel-check-{uuid.uuid4()}"
        body = render(target.body, next(numbers))
        return Scene(target, key, body, target.other(body, next(numbers)), new)

    while True:
        yield new()


def plan(target: Target, cases: Sequence[Case] = CASES) -> int:
    """Return the most effects that the cases have on a target without faults."""
    return sum(case.most(target) for case in cases if case.missing(target) is None)


def examine(
    target: Target,
    *,
    command: str | None = None,
    cases: Sequence[Case] = CASES,
    limits: CheckLimits | None = None,
    progress: Callable[[Result], None] = lambda result: None,
) -> Report:
    """Run the cases against a target and report.

    - `command`: how to start the server; it is killed and started again (`target.kills`), and
      stopped in the end. Nothing may listen on its port before.
    - `progress` is called after each case.

    The first case has to pass: raises `CannotRun` where the request does not work, effects cannot
    be counted, or the server does not start; `BadTarget` for a placeholder that is not known.
    """
    limits = limits or CheckLimits()
    wire = Wire(target.url, limits.timeout)
    server = ServerUnderTest(command, wire) if command else None
    runner = Runner(target, limits, wire, server)
    began = datetime.now(UTC)
    results: list[Result] = []
    try:
        if server is not None:
            server.start()
        elif not wire.listens():
            raise CannotRun(f"nobody listens at {wire.host}:{wire.port}")
        first, *others = CASES[0], *(case for case in cases if case is not CASES[0])
        for case, scene in zip((first, *others), scenes(target), strict=False):
            result = runner.run(case, scene)
            if case is first and result.verdict.outcome is not Outcome.PASSED:
                raise CannotRun(_why(result))
            results.append(result)
            progress(result)
    except (ServerFailed, BadTarget) as error:
        raise CannotRun(str(error)) from None
    finally:
        if server is not None:
            server.stop()
    return Report(target, began, tuple(results), runner.sent, time.monotonic() - runner.started)


def _why(result: Result) -> str:
    answers = [one.answer for one in result.exchanges if one.answer is not None]
    if not answers or answers[0].done:
        return result.verdict.said
    body = answers[0].body[:300].decode(errors="replace")
    hint = " (where keys have to be in quotes: --quoted)" if "key" in body.lower() else ""
    return f"{result.verdict.said}{hint} {body}".strip()
