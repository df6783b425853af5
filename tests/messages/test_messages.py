"""Real brokers that deliver again, workers that are really killed: one effect for each message."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import importlib.util
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import nats
import pytest
from nats.js.api import ConsumerConfig

from tests import servers

EXAMPLES = Path(__file__).parents[2] / "examples" / "messages"
pytestmark = pytest.mark.chaos


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "shop.db", timeout=10, isolation_level=None)
    connection.execute("create table shipped (name, item)")
    connection.execute("create table payments (name, amount)")
    connection.execute("create table bookings (guests, day)")
    yield connection
    connection.close()


class Worker:
    """A worker process that is killed at random moments and started again."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._command = [sys.executable, *command]
        self._environment = {**os.environ, **environment}
        self._environment.pop("DJANGO_SETTINGS_MODULE", None)  # other tests', and Celery obeys it
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, failpoint: str = "") -> None:
        self._process = subprocess.Popen(
            self._command,
            cwd=EXAMPLES,
            env={**self._environment, "SEMEL_FAILPOINT": failpoint},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def die(self, patience: float) -> bool:
        """Wait for its failpoint to kill it."""
        assert self._process is not None
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return False
        return self._process.returncode == -signal.SIGKILL


def until(done: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "not done in time"
        time.sleep(0.05)


POINTS = ("after_claim", "before_commit", "after_commit", "after_complete")


def test_nats(database: sqlite3.Connection, tmp_path: Path) -> None:
    url = servers.nats().url

    async def publish() -> None:
        connection = await nats.connect(url)
        stream = connection.jetstream()
        await stream.add_stream(name="orders", subjects=["orders"])
        await stream.add_consumer(
            "orders", ConsumerConfig(durable_name="shipping", ack_wait=0.5, ack_policy="explicit")
        )
        for number in range(20):
            for _ in range(2):  # and it is published twice
                await stream.publish(
                    "orders", json.dumps({"order": f"o{number}", "item": "book"}).encode()
                )
        await connection.close()

    async def waiting() -> int:
        connection = await nats.connect(url)
        info = await connection.jetstream().consumer_info("orders", "shipping")
        await connection.close()
        return int(info.num_pending + info.num_ack_pending)

    asyncio.run(publish())
    shop = {"SHOP": f"sqlite:///{tmp_path}/shop.db", "NATS": url}
    worker = Worker(["nats_consumer.py"], shop)
    killed = 0
    for point in POINTS:
        worker.start(f"{point}:2=kill")
        killed += worker.die(20)
        worker.kill()
    for _ in range(3):
        worker.start()
        time.sleep(random.uniform(0.5, 1.0))
        worker.kill()
    worker.start()
    until(lambda: asyncio.run(waiting()) == 0)
    worker.kill()
    assert killed == len(POINTS)
    rows = database.execute("select name, count(*) from shipped group by name").fetchall()
    assert sorted(rows) == sorted((f"o{number}", 1) for number in range(20))


def test_celery(
    database: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = {
        "SHOP": f"sqlite:///{tmp_path}/shop.db",
        "BROKER": servers.valkey().url,
        "AGAIN": "2",
    }
    for name, value in shop.items():
        monkeypatch.setenv(name, value)
    tasks = load("celery_tasks")

    def send() -> None:
        for number in range(8):
            tasks.ship.delay(f"o{number}", "book")

    send()
    send()  # a producer that was not sure
    command = ["-m", "celery", "-A", "celery_tasks", "worker", "-P", "solo", "-l", "ERROR"]
    worker = Worker([*command, "--without-gossip", "--without-mingle"], shop)
    killed = 0
    for point in POINTS:
        worker.start(f"{point}:2=kill")
        killed += worker.die(30)
        worker.kill()
    # A worker asks for what dead ones left when it starts, then every hundredth second. What had
    # been on its way to one that was killed, Redis has popped and nobody has noted: it is lost.
    time.sleep(float(shop["AGAIN"]))
    send()
    worker.start()
    until(lambda: len(database.execute("select * from shipped").fetchall()) >= 8)
    time.sleep(3)  # what was delivered again comes by now
    worker.kill()
    assert killed == len(POINTS)
    rows = database.execute("select name, count(*) from shipped group by name").fetchall()
    assert sorted(rows) == sorted((f"o{number}", 1) for number in range(8))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


async def test_webhook(
    database: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP", f"sqlite:///{tmp_path}/shop.db")
    monkeypatch.setenv("SECRET", "whsec")
    module = load("webhook")
    event = {"id": "evt_1", "data": {"order": "o1", "amount": 5}}
    body = json.dumps(event).encode()
    signature = hmac.new(b"whsec", body, hashlib.sha256).hexdigest()
    transport = httpx.ASGITransport(app=module.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as http:

        async def deliver(signed: str = signature) -> int:
            path = "/webhooks/payments"
            answer = await http.post(path, content=body, headers={"Signature": signed})
            return answer.status_code

        assert await deliver("forged") == 400
        assert await asyncio.gather(*(deliver() for _ in range(5))) == [204] * 5
        assert await deliver() == 204
    assert database.execute("select * from payments").fetchall() == [("o1", 5)]
    module.idempotency.stop()


def test_agent_tool(
    database: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP", f"sqlite:///{tmp_path}/shop.db")
    module = load("agent_tool")
    calls: list[dict[str, Any]] = [
        {"id": "call_1", "arguments": {"guests": 2, "day": "monday"}},
        {"id": "call_2", "arguments": {"guests": 4, "day": "friday"}},
    ]
    first = module.run_tool_calls(calls[:1])  # and then the runner crashes
    assert module.run_tool_calls(calls)[0] == first[0]
    assert database.execute("select * from bookings").fetchall() == [(2, "monday"), (4, "friday")]
    module.idempotency.stop()
