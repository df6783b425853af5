"""A Node Express app and a Flask app behind the gateway; both sides are killed.

How often a card was charged is counted in the services' own ledgers.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from semel.checker import CheckLimits, Effects, Target, examine
from semel.testing.programs import needs
from semel.testing.servers import free_port
from tests.gateway.harness import OK, Received, Service
from tests.http.harness import Answer, Client, until

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "gateway"
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]
BODY = {"amount": 5}


@pytest.fixture(scope="session")
def express(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the Express example into a folder of its own."""
    needs("node")
    needs("npm")
    folder = tmp_path_factory.mktemp("express")
    for name in ("package.json", "server.js"):
        shutil.copy(EXAMPLES / "express" / name, folder)
    command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run([*command, "--cache", folder / ".npm"], cwd=folder, check=True, timeout=300)
    return folder


class Process:
    """A server process that can be killed and started again on the same port."""

    def __init__(self, command: Callable[[], list[str]], folder: Path, **environment: str) -> None:
        self.port = free_port()
        self._command = command
        self._folder = folder
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> None:
        command = [part.format(port=self.port) for part in self._command()]
        self._process = subprocess.Popen(
            command,
            cwd=self._folder,
            env={**os.environ, "PORT": str(self.port), **self._environment, **environment},
            start_new_session=True,
        )
        until(self._answers, "it did not start")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "it ended at its start"
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> int:
        if self._process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
        return self._process.wait(30)

    def terminate(self) -> int:
        """Ask the server itself to end, as a service manager does; return its status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(30)

    def ended(self) -> int:
        """Wait until it has ended by itself."""
        assert self._process is not None
        return self._process.wait(30)


class Stage:
    """A service, its ledger, the gateway in front of it."""

    def __init__(self, service: Process, ledger: Path, folder: Path, document: str) -> None:
        self.service = service
        self._ledger = ledger
        self.settings = settings = folder / "gateway.toml"
        settings.write_text(
            f'store = "sqlite:///{folder}/keys.db?synchronous=normal"\n{document}\n'
            f'[upstream]\nurl = "http://127.0.0.1:{service.port}"\n'
            '[policy]\nlease = "1s"\nwait = "10s"\n'
        )
        self.gateway = Process(
            lambda: [
                *(sys.executable, "-m", "semel.cli", "gateway", "--config", str(settings)),
                *("--listen", "127.0.0.1:{port}"),
            ],
            folder,
            PYTHONPATH=os.pathsep.join([str(ROOT / "src"), *sys.path]),
        )

    def charge(self, order: str) -> Answer | None:
        """One attempt; None where no answer came."""
        body = json.dumps({"order": order, **BODY}).encode()
        try:
            return Client(self.gateway.port).send("/charges", f"key-{order}", body, timeout=30)
        except (OSError, http.client.HTTPException):
            return None

    def until_settled(self, order: str, seconds: float = 60) -> Answer:
        """Retry until there is an answer that no retry changes."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            answer = self.charge(order)
            if answer is not None and answer.status != 503:
                if answer.status != 409 or answer.problem == "outcome-unknown":
                    return answer
            time.sleep(0.05)
        raise AssertionError("not settled in time")

    def charged(self) -> Counter[str]:
        """How often each order was charged, by the service's own ledger."""
        if not self._ledger.exists():
            return Counter()
        lines = self._ledger.read_text().splitlines()
        return Counter(json.loads(line)["order"] for line in lines)


Opening = Callable[..., Stage]


@pytest.fixture(params=["express", "flask"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opening]:
    """Start the service and, unless told otherwise, the gateway."""
    ledger = tmp_path / "charges.jsonl"
    stages: list[Stage] = []

    def open_(slow: int = 0, document: str = "", **environment: str) -> Stage:
        told = {"LEDGER": str(ledger), "CARD_MS": str(slow)}
        if request.param == "express":
            folder = request.getfixturevalue("express")
            service = Process(lambda: ["node", "server.js"], folder, **told)
        else:
            command = [sys.executable, "-m", "gunicorn", "app:app", "--threads", "8"]
            command += ["--bind", "127.0.0.1:{port}", "--log-level", "critical"]
            service = Process(lambda: command, EXAMPLES / "flask", **told)
        stage = Stage(service, ledger, tmp_path, document)
        stages.append(stage)
        service.start()
        stage.gateway.start(**environment)
        return stage

    try:
        yield open_
    finally:
        for stage in stages:
            stage.gateway.kill()
            stage.service.kill()


def test_a_retry_gets_the_first_answer(opened: Opening) -> None:
    stage = opened()
    first, again = stage.charge("a"), stage.charge("a")
    assert first is not None
    assert again is not None
    assert (first.status, json.loads(first.body)["order"]) == (201, "a")
    assert first.header("Location") == again.header("Location") == "/charges/1"
    assert (again.status, again.body, again.replayed) == (201, first.body, True)
    refused = Client(stage.gateway.port).send("/charges", "key-a", b'{"order": "b", "amount": 1}')
    assert refused.problem == "key-reused"
    assert Client(stage.gateway.port).send("/charges", "bad", b'{"amount": 1}').status == 422
    assert stage.charged() == {"a": 1}


def test_many_at_once_charge_once(opened: Opening) -> None:
    stage = opened(slow=100)
    answers: list[Answer | None] = []
    threads = [
        threading.Thread(target=lambda: answers.append(stage.charge("a"))) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer and answer.status for answer in answers] == [201] * 20
    assert stage.charged() == {"a": 1}


def test_the_checker_finds_no_fault(opened: Opening) -> None:
    """All that can be asked from outside, and a gateway that is killed with requests in flight."""
    stage = opened()
    stage.gateway.kill()
    port = stage.gateway.port
    words = ["env", "-C", str(ROOT), f"PYTHONPATH={ROOT / 'src'}", sys.executable]
    words += ["-m", "semel.cli", "gateway", "--config", str(stage.settings)]
    words += ["--listen", f"127.0.0.1:{port}"]
    target = Target(
        f"http://127.0.0.1:{port}/charges",
        body='{"order": "{{uuid}}", "amount": 5}',
        headers=(("Authorization", b"Bearer alice"),),
        other_caller=(("Authorization", b"Bearer bob"),),
        effects=Effects.parse("GET /charges/count"),
        failing_body='{"amount": -1}',
        kills=4,
    )
    report = examine(target, command=shlex.join(words), limits=CheckLimits(2000, 300))
    print(report.summary())
    assert not report.faults, [(one.case.name, one.verdict) for one in report.faults]


POINTS = {
    "before_claim": 1,
    "after_claim": 0,
    "before_upstream": 0,
    "upstream_sent": None,  # the service may not have read it yet when its connection breaks
    "upstream_answered": 1,
    "upstream_read": 1,
    "before_complete": 1,
    "after_complete": 1,
    "before_answer": 1,
    "after_answer": 1,
}
ANSWERED = {"before_claim", "after_complete", "before_answer", "after_answer"}


@pytest.mark.parametrize("point", POINTS)
def test_a_gateway_that_is_killed_never_charges_twice(opened: Opening, point: str) -> None:
    stage = opened(SEMEL_FAILPOINT=f"{point}=kill")
    answer = stage.charge("a")
    assert answer is None or point == "after_answer"
    assert stage.gateway.ended() == -signal.SIGKILL
    stage.gateway.start()
    settled = stage.until_settled("a")
    wanted = POINTS[point]
    assert stage.charged()["a"] in ((0, 1) if wanted is None else (wanted,))
    if point in ANSWERED:
        assert settled.status == 201
    else:  # what at most once admits: nobody can say, so nobody tries again
        assert settled.problem == "outcome-unknown"


def test_a_service_that_is_killed_in_the_middle_is_not_asked_again(opened: Opening) -> None:
    stage = opened(slow=20_000)
    answers: list[Answer | None] = []
    asking = threading.Thread(target=lambda: answers.append(stage.charge("a")))
    asking.start()
    until(lambda: stage.charged()["a"] == 1)
    stage.service.kill()
    asking.join(30)
    assert answers[0] is not None
    assert answers[0].problem == "outcome-unknown"
    stage.service.start(CARD_MS="0")
    assert stage.until_settled("a").problem == "outcome-unknown"
    assert stage.charged() == {"a": 1}
    again = stage.charge("b")
    assert again is not None
    assert again.status == 201


def test_a_service_that_is_down_is_asked_when_it_is_up_again(opened: Opening) -> None:
    stage = opened()
    stage.service.kill()
    refused = stage.charge("a")
    assert refused is not None
    assert refused.problem == "upstream-unavailable"
    stage.service.start()
    assert stage.until_settled("a").status == 201
    assert stage.charged() == {"a": 1}


def test_in_a_storm_of_kills_nobody_is_charged_twice(opened: Opening) -> None:
    stage = opened(slow=20)
    settled: dict[str, Answer] = {}
    over = threading.Event()

    def shop(number: int) -> None:
        count = 0
        while not over.is_set():
            order = f"{number}-{count}"
            settled[order] = stage.until_settled(order)
            count += 1

    shoppers = [threading.Thread(target=shop, args=(number,)) for number in range(8)]
    for shopper in shoppers:
        shopper.start()
    for victim in (stage.gateway, stage.service) * 3:
        before = len(settled)
        until(lambda before=before: len(settled) >= before + 10)  # type: ignore[misc]
        victim.kill()
        victim.start()
    over.set()
    for shopper in shoppers:
        shopper.join(90)
    charged = stage.charged()
    kinds = Counter(
        answer.status if answer.status == 201 else answer.problem for answer in settled.values()
    )
    print(len(settled), "orders:", dict(kinds), "charges:", sum(charged.values()))
    assert set(kinds) <= {201, "outcome-unknown"}
    assert max(charged.values()) == 1
    for order, answer in settled.items():
        if answer.status == 201:
            assert charged[order] == 1


@pytest.mark.parametrize("point", ["upstream_sent", "upstream_read", "before_complete"])
def test_with_the_forwarded_key_a_kill_is_retried_to_its_answer(tmp_path: Path, point: str) -> None:
    with Service().running() as service:
        stage = Stage(_standing(service), tmp_path / "none", tmp_path, "")
        with (tmp_path / "gateway.toml").open("a") as settings:
            settings.write("forward_key = true\n")
        try:
            stage.gateway.start(SEMEL_FAILPOINT=f"{point}=kill")
            assert stage.charge("a") is None
            stage.gateway.ended()
            stage.gateway.start()
            assert stage.until_settled("a").status == 201
        finally:
            stage.gateway.kill()
        assert {request.header("Idempotency-Key") for request in service.requests} == {"key-a"}
        assert len(service.requests) == 2


def test_an_abandoned_request_is_finished_without_its_client(tmp_path: Path) -> None:
    with Service().running() as service:
        stage = Stage(_standing(service), tmp_path / "none", tmp_path, "")
        with (tmp_path / "gateway.toml").open("a") as settings:
            settings.write("forward_key = true\nremember_request = true\n")
        try:
            stage.gateway.start(SEMEL_FAILPOINT="upstream_read=kill")
            assert stage.charge("a") is None
            stage.gateway.ended()
            stage.gateway.start()
            until(lambda: len(service.requests) == 2, "nobody finished it")
            until(lambda: (stage.charge("a") or NONE).replayed)
        finally:
            stage.gateway.kill()
    assert [request.header("Idempotency-Key") for request in service.requests] == ["key-a"] * 2
    assert service.requests[0].body == service.requests[1].body


@pytest.mark.parametrize("point", ["before_park", "after_park", "before_release", "after_release"])
def test_a_kill_at_the_end_of_a_failure_never_sends_again(tmp_path: Path, point: str) -> None:
    """Before a release was written nobody can say any more that nothing was sent: parked too."""
    service = Service(lambda connection, request: "close")
    sent = point.endswith("park")
    with service.running() if sent else contextlib.nullcontext():
        service.port = service.port or free_port()
        stage = Stage(_standing(service), tmp_path / "none", tmp_path, "")
        try:
            stage.gateway.start(SEMEL_FAILPOINT=f"{point}=kill")
            assert stage.charge("a") is None
            stage.gateway.ended()
            stage.gateway.start()
            if point != "after_release":
                assert stage.until_settled("a").problem == "outcome-unknown"
            with contextlib.nullcontext() if sent else service.running():
                service.behave = lambda connection, request: connection.sendall(OK)
                settled = stage.until_settled("a")
        finally:
            stage.gateway.kill()
    assert (settled.status == 201) == (point == "after_release")
    assert len(service.requests) == (1 if sent or point == "after_release" else 0)


NONE = Answer(0, [], b"")


def _standing(service: Service) -> Process:
    process = Process(list, Path())
    process.port = service.port
    return process


def test_sigterm_lets_what_is_in_flight_end(tmp_path: Path) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def behave(connection: socket.socket, request: Received) -> None:
        arrived.set()
        go_on.wait(20)
        connection.sendall(OK)

    answers: list[Answer | None] = []
    with Service(behave).running() as service:
        stage = Stage(_standing(service), tmp_path / "none", tmp_path, "workers = 2\n")
        stage.gateway.start()
        try:
            asking = threading.Thread(target=lambda: answers.append(stage.charge("a")))
            asking.start()
            assert arrived.wait(20)
            threading.Timer(0.5, go_on.set).start()  # while it is going down
            stage.gateway.terminate()
            asking.join(20)
        finally:
            stage.gateway.kill()
    assert answers[0] is not None
    assert answers[0].status == 201


@pytest.fixture
def two_workers(tmp_path: Path) -> Iterator[tuple[Service, Stage]]:
    with Service().running() as service:
        stage = Stage(_standing(service), tmp_path / "none", tmp_path, "workers = 2\n")
        stage.gateway.start()
        try:
            yield service, stage
        finally:
            stage.gateway.kill()


def test_workers_share_the_port_and_the_keys(two_workers: tuple[Service, Stage]) -> None:
    service, stage = two_workers
    answers = [stage.until_settled("a") for _ in range(20)]
    assert {answer.status for answer in answers} == {201}
    assert len(service.requests) == 1


def test_a_worker_that_dies_is_replaced(two_workers: tuple[Service, Stage]) -> None:
    _, stage = two_workers
    assert stage.until_settled("a").status == 201
    until(lambda: len(_workers(stage.gateway)) == 2)
    before = _workers(stage.gateway)
    for worker in before:
        os.kill(worker, signal.SIGKILL)
    assert stage.until_settled("a").replayed
    until(lambda: len(_workers(stage.gateway)) == 2)
    assert not before & _workers(stage.gateway)


def test_workers_end_with_a_supervisor_that_is_killed(
    two_workers: tuple[Service, Stage],
) -> None:
    service, stage = two_workers
    assert stage.until_settled("a").status == 201
    until(lambda: len(_workers(stage.gateway)) == 2)
    os.kill(stage.gateway.pid, signal.SIGKILL)
    until(lambda: not _lives(stage.gateway.pid))
    stage.gateway.ended()
    stage.gateway.start()  # on the same port
    assert stage.until_settled("a").replayed
    assert len(service.requests) == 1


def _workers(gateway: Process) -> set[int]:
    """The processes that uvicorn has spawned for the gateway."""
    found = set()
    for folder, _, parent, _ in _processes():
        with contextlib.suppress(OSError):
            if parent == gateway.pid and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
    return found


def _lives(leader: int) -> bool:
    """Whether a process of that session does."""
    return any(session == leader and state != "Z" for _, state, _, session in _processes())


def _processes() -> Iterator[tuple[Path, str, int, int]]:
    """Each process's folder, state, parent and session: proc(5)."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            yield folder, stat[0], int(stat[1]), int(stat[3])
