"""Every planted fault is found by the case that is meant to find it, and no other API has any."""

from __future__ import annotations

import json
import shlex
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from semel.checker import CannotRun, Effects, Report, Target, examine
from semel.checker.case import Case
from semel.checker.cases import CASES
from semel.checker.report import Result
from semel.checker.runner import plan
from semel.checker.verdict import Outcome
from semel.testing.servers import free_port
from tests.checker.broken import FAULTS, LIFETIME, Server

BY_NAME = {case.name: case for case in CASES}
NEED_A_KILL = ("killed-after-answer", "killed-in-flight")


def target(port: int, **more: object) -> Target:
    given: dict[str, object] = {
        "body": '{"amount": 5, "for": "tea"}',
        "headers": (("Authorization", b"Bearer alice"),),
        "secrets": (("TOKEN", "Bearer alice"),),
        "effects": Effects.parse("GET /charges/count charges"),
        "other_path": "/refunds",
        "other_method": "PATCH",
        "other_caller": (("Authorization", b"Bearer bob"),),
        "no_auth": True,
        "failing_body": '{"amount": -1}',
        "keys_path": "/keys",
        "required": True,
        "expires": LIFETIME,
        "patience": 2.0,
        **more,
    }
    return Target(f"http://127.0.0.1:{port}/charges", **given)  # type: ignore[arg-type]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., int]]:
    servers: list[Server] = []

    def serve(*faults: str) -> int:
        server = Server(0, tmp_path, frozenset(faults))
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return int(server.server_address[1])

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def found(report: Report) -> dict[str, Outcome]:
    return {one.case.name: one.verdict.outcome for one in report.results}


def told(report: Report) -> str:
    return "\n".join(f"{one.case.name}: {one.verdict}" for one in report.results)


def test_an_api_without_faults_passes_every_case_with_the_effects_that_were_announced(
    serve: Callable[..., int],
) -> None:
    port = serve()
    counted = [0]

    def progress(result: Result) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/charges/count") as answer:
            counted.append(json.load(answer)["charges"])
        assert counted[-1] - counted[-2] <= result.case.effects, result.case.name

    cases = [case for case in CASES if case.name not in NEED_A_KILL]
    report = examine(target(port), cases=cases, progress=progress)
    assert set(found(report).values()) == {Outcome.PASSED}, told(report)
    assert report.score == 100
    assert counted[-1] <= plan(target(port), cases)


@pytest.mark.parametrize("fault", [f for f, case in FAULTS.items() if case not in NEED_A_KILL])
def test_a_planted_fault_is_found_by_its_case(serve: Callable[..., int], fault: str) -> None:
    report = examine(target(serve(fault)), cases=[BY_NAME[FAULTS[fault]]])
    assert found(report)[FAULTS[fault]] is Outcome.FAULT, told(report)


def killed(folder: Path, cases: list[Case], *faults: str, kills: int = 8) -> Report:
    port = free_port()
    words = [sys.executable, "-m", "tests.checker.broken", "--port", str(port)]
    words += ["--folder", str(folder), "--faults", *faults]
    return examine(target(port, kills=kills), command=shlex.join(words), cases=cases)


@pytest.mark.parametrize("fault", [f for f, case in FAULTS.items() if case in NEED_A_KILL])
def test_a_fault_that_only_a_kill_shows_is_found(tmp_path: Path, fault: str) -> None:
    report = killed(tmp_path, [BY_NAME[FAULTS[fault]]], fault)
    assert found(report)[FAULTS[fault]] is Outcome.FAULT, told(report)


def test_an_api_without_faults_survives_the_kills(tmp_path: Path) -> None:
    report = killed(tmp_path, [BY_NAME[name] for name in NEED_A_KILL], kills=4)
    assert set(found(report).values()) == {Outcome.PASSED}, told(report)


def test_the_server_that_was_started_is_stopped_and_no_other_is_touched(tmp_path: Path) -> None:
    report = killed(tmp_path, [BY_NAME["replay-status"]])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", urlsplit(report.target.url).port or 0), 1)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("python -c 'print(\"no such table\")'", "no such table"),
        ("there-is-no-such-program", "there-is-no-such-program"),
    ],
)
def test_a_server_that_does_not_start_says_why(command: str, said: str) -> None:
    with pytest.raises(CannotRun, match=said):
        examine(target(free_port()), command=command)


def test_every_case_has_a_fault_that_it_finds() -> None:
    warns_only = {
        "first-request",  # is the ground: the examination does not begin without it
        "replay-marked",  # nobody demands these four: they warn
        "replay-not-cached",
        "problem-types",
    }
    assert set(BY_NAME) - set(FAULTS.values()) == warns_only
    assert len(FAULTS) >= 12
