"""The twenty probes that the peers were put through, against Semel over real sockets.

Two worker processes (uvicorn for ASGI, gunicorn threads for WSGI), effects counted in the business
table. Probes that need no dying process stand in `tests/http` too, in more variants.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semel.failpoints import NAMES
from tests.http.harness import Answer, Recorder, Server, serve
from tests.probes.table import PROBES

pytestmark = pytest.mark.chaos
ROOT = Path(__file__).parents[2]


class Service:
    def __init__(self, port: int, database: Path, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.database = database
        self.process = process

    def send(self, do: str = "charge", key: str | None = None, **options: Any) -> Answer:
        name = options.pop("name", do)
        body = options.pop("body", json.dumps({"do": do, "name": name}).encode())
        client = Server(self.port, None)  # type: ignore[arg-type]
        return client.send(options.pop("path", "/charge"), key, body, **options)

    def send_until_answered(self, do: str, key: str, name: str) -> Answer:
        """Retry as a client does, through reset connections and refusals to try again."""
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer = self.send(do, key, name=name)
                if answer.status not in (409, 503) and answer.status < 500:
                    return answer
            assert time.monotonic() < deadline, "no answer"
            time.sleep(0.05)

    def effects(self, name: str) -> int:
        connection = sqlite3.connect(self.database, timeout=10)
        try:
            query = "select count(*) from charges where name = ?"
            return int(connection.execute(query, (name,)).fetchone()[0])
        finally:
            connection.close()

    def memory(self) -> int:
        """Return the most that any of its processes has held, in MiB."""
        peaks = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):
                environ = (entry / "environ").read_bytes()
                if f"PROBE_DB={self.database}".encode() in environ.split(b"\0"):
                    status = (entry / "status").read_text()
                    peaks.append(int(status.split("VmHWM:")[1].split()[0]) // 1024)
        return max(peaks)


@pytest.fixture(scope="module", params=["asgi", "wsgi"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def service(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("probes")
    database = folder / "probe.db"
    connection = sqlite3.connect(database)
    connection.execute("create table charges (name)")
    connection.commit()
    connection.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = f"tests.probes.apps:{kind}"
    command = {
        "asgi": ["uvicorn", app, "--port", str(port), "--workers", "2", "--log-level", "critical"],
        "wsgi": [
            "gunicorn", app, "--bind", f"127.0.0.1:{port}", "--workers", "2", "--threads", "8",
            "--log-level", "critical",
        ],
    }[kind]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "PROBE_DB": str(database)},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.05)
        yield Service(port, database, process)
    finally:
        process.terminate()
        process.wait(20)


def fresh() -> str:
    return uuid.uuid4().hex


def test_probe_13_kill_between_commit_and_record(service: Service) -> None:
    for point in ("after_begin", "before_complete", "in_commit", "before_commit", "after_commit",
                  "after_complete", "before_answer"):  # fmt: skip
        assert point in NAMES
        name, do = fresh(), f"kill-at-{point}"
        key = fresh()
        answer = service.send_until_answered(do, key, name)
        assert (answer.status, service.effects(name)) == (201, 1), point
        assert service.send_until_answered(do, key, name).replayed


def test_probe_10_commit_then_raise_or_refuse(service: Service) -> None:
    for do, status in (("raise", 500), ("503", 503)):
        name, key = fresh(), fresh()
        assert service.send(do, key, name=name).status == status
        assert service.effects(name) == 0
        assert service.send_until_answered(do, key, name).status == 201
        assert service.effects(name) == 1


def test_probe_7_another_caller(service: Service) -> None:
    key, name = fresh(), fresh()
    alice = service.send(key=key, name=name, headers=[("Authorization", "Bearer alice")])
    bob = service.send(key=key, name=name, headers=[("Authorization", "Bearer bob")])
    assert (alice.replayed, bob.replayed, service.effects(name)) == (False, False, 2)
    assert (
        service.send(key=key, name=fresh(), headers=[("Authorization", "Bearer eve")]).status == 201
    )


def test_probes_1_and_2_replay_and_its_marker(service: Service) -> None:
    key, name = fresh(), fresh()
    first = service.send(key=key, name=name)
    repeat = service.send(key=key, name=name)
    assert (repeat.status, repeat.body) == (first.status, first.body) == (201, first.body)
    for header in ("X-Charge-Id", "Location", "Content-Type"):
        assert repeat.header(header) == first.header(header) is not None
    assert repeat.header("Idempotent-Replayed") == "true"
    assert first.header("Idempotent-Replayed") is None


def together(service: Service, count: int, key: str, name: str) -> list[Answer]:
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda: answers.append(service.send(key=key, name=name)))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_probes_3_4_and_14_fifty_at_once_on_two_workers(service: Service) -> None:
    for _ in range(4):
        key, name = fresh(), fresh()
        answers = together(service, 50, key, name)
        assert [answer.status for answer in answers] == [201] * 50  # they wait, and get the answer
        assert sum(not answer.replayed for answer in answers) == 1
        assert service.effects(name) == 1


def test_probe_4_the_impatient_are_told_when_to_come_back(kind: str) -> None:
    from datetime import timedelta

    from semel import Idempotency, Policy

    release = threading.Event()

    def slow(number: int, request: Any) -> Any:
        release.wait(20)
        return 201, [], [b""]

    idempotency = Idempotency("memory://", policy=Policy(wait=timedelta()))
    recorder = Recorder(slow)
    with serve(kind, recorder, idempotency) as server:
        thread = threading.Thread(target=server.send)
        thread.start()
        while not recorder.runs:
            time.sleep(0.005)
        refused = server.send()
        assert (refused.status, refused.header("Retry-After")) == (409, "1")
        release.set()
        thread.join()


def test_probes_5_and_6_another_body_path_or_method(service: Service) -> None:
    key, name = fresh(), fresh()
    service.send(key=key, name=name)
    other = json.dumps({"name": name, "do": "charge"}).encode()  # the same JSON, reordered
    for change in ({"name": fresh()}, {"body": other}, {"path": "/other"}, {"method": "PATCH"}):
        refused = service.send(key=key, **{"name": name, **change})
        assert (refused.status, refused.problem) == (422, "key-reused")
    assert service.effects(name) == 1


def test_probes_8_and_9_missing_empty_long_quoted_doubled(service: Service) -> None:
    assert service.send().problem == "key-missing"
    assert service.send(key="").problem in ("key-invalid", "key-missing")
    assert service.send(key="x" * 300).problem == "key-invalid"
    assert service.send(key="x" * 5000).problem == "key-invalid"
    two = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    assert service.send(headers=two).problem == "key-invalid"
    name = fresh()
    service.send(key=f'"{name}"', name=name)
    assert service.send(key=name, name=name).replayed


def test_probe_11_the_client_disconnects(service: Service) -> None:
    key, name = fresh(), fresh()
    body = json.dumps({"do": "slow", "name": name}).encode()
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(
            b"POST /charge HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Idempotency-Key: %b\r\nContent-Length: %d\r\n\r\n%b" % (key.encode(), len(body), body)
        )
        time.sleep(0.5)
    answer = service.send_until_answered("slow", key, name)
    assert (answer.status, answer.replayed, service.effects(name)) == (201, True, 1)


def test_probe_12_kill_before_the_effect(service: Service) -> None:
    key, name = fresh(), fresh()
    answer = service.send_until_answered("kill-before-effect", key, name)
    assert (answer.status, service.effects(name)) == (201, 1)


def test_probe_15_streams(kind: str) -> None:
    from semel import Idempotency

    release = threading.Event()

    def later() -> bytes:
        assert release.wait(20)
        return b"second"

    recorder = Recorder(lambda number, request: (200, [], [b"first", later]))
    with serve(kind, recorder, Idempotency("memory://")) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
        connection.request("POST", "/run", b"{}", headers)
        response = connection.getresponse()
        assert response.read(5) == b"first"  # before the second is made
        release.set()
        assert response.read() == b"second"
        assert server.send(body=b"{}").body == b"firstsecond"


@pytest.mark.timeout(300)
def test_probe_16_large_bodies_both_ways_in_constant_memory(service: Service) -> None:
    idle = service.memory()
    key, name = fresh(), fresh()
    first = service.send("download", key, name=name, timeout=120)
    assert len(first.body) >= 100 * 1024 * 1024
    repeat = service.send("download", key, name=name)
    assert (repeat.status, repeat.problem) == (409, "response-not-kept")
    assert service.effects(name) == 1

    gigabyte, chunk = 1024 * 1024 * 1024, bytes(1024 * 1024)
    for _ in range(2):  # the second is a repeat, in mid-upload, and gets its answer all the same
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=120)
        connection.putrequest("POST", "/large")
        connection.putheader("Content-Length", str(gigabyte))
        connection.putheader("Idempotency-Key", key + "-large")
        connection.endheaders()
        for _ in range(1024):
            connection.send(chunk)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (201, str(gigabyte).encode())
        connection.close()
    assert answer.getheader("Idempotent-Replayed") == "true"
    assert service.memory() - idle < 64


def test_probe_17_binary_empty_redirect_cookies(kind: str) -> None:
    from semel import Idempotency

    kinds: dict[str, Any] = {
        "/binary": (200, [("Content-Type", "image/png")], [bytes(range(256))]),
        "/empty": (204, [], [b""]),
        "/redirect": (303, [("Location", "/there")], [b""]),
        "/cookies": (200, [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")], [b"x"]),
    }
    recorder = Recorder(lambda number, request: kinds[request.path])
    with serve(kind, recorder, Idempotency("memory://")) as server:
        for path in kinds:
            first, repeat = server.send(path, key=path), server.send(path, key=path)
            assert (first.status, first.body) == (repeat.status, repeat.body)
            assert first.header("Location") == repeat.header("Location")
            assert repeat.replayed
        assert server.send("/cookies", key="fresh").all("Set-Cookie") == ["a=1", "b=2"]
        assert recorder.runs == len(kinds) + 1


def test_probe_18_a_handler_that_outlives_its_lease(service: Service) -> None:
    key, name = fresh(), fresh()
    first: list[Answer] = []
    thread = threading.Thread(
        target=lambda: first.append(service.send("slow", key, name=name, timeout=30))
    )
    thread.start()
    time.sleep(0.3)
    repeat = service.send_until_answered("slow", key, name)
    thread.join()
    assert (first[0].status, repeat.status, repeat.replayed) == (201, 201, True)
    assert service.effects(name) == 1


def test_probe_19_the_store_is_down(kind: str, tmp_path: Path) -> None:
    from semel import Idempotency
    from semel.stores.sqlite import SQLiteStore

    recorder = Recorder(lambda number, request: (201, [], [b"x"]))
    store = SQLiteStore(tmp_path / "records.db", timeout=0.2)
    with serve(kind, recorder, Idempotency(store)) as server:
        assert server.send(key="before").status == 201
        blocker = sqlite3.connect(tmp_path / "records.db", isolation_level=None)
        blocker.execute("begin immediate")
        refused = server.send(key="new")
        assert (refused.status, refused.problem) == (503, "store-unavailable")
        assert refused.header("Retry-After") is not None
        assert recorder.runs == 1
        assert server.send(key="before").replayed  # reading still works
        blocker.execute("rollback")
        blocker.close()
        assert server.send(key="new").status == 201


def test_probe_20_expiry_is_honoured(kind: str) -> None:
    from semel import Idempotency, Policy
    from semel.stores.memory import MemoryStore

    now = [1000.0]
    recorder = Recorder(lambda number, request: (201, [], [b"x"]))
    idempotency = Idempotency(MemoryStore(clock=lambda: now[0]), policy=Policy())
    with serve(kind, recorder, idempotency) as server:
        server.send()
        now[0] += 24 * 3600 + 1
        assert server.send().problem == "key-expired"


def test_every_probe_has_its_test() -> None:
    import re

    text = Path(__file__).read_text()
    named = {
        int(n)
        for name in re.findall(r"def test_probes?_(\w+)", text)
        for n in re.findall(r"\d+", name)
    }
    assert set(PROBES) <= named | {2, 3, 6, 9, 14}
