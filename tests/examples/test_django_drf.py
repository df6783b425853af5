"""The Django example under real servers, killed where it hurts, retried until it answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import servers

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "examples" / "django_drf"
COMMANDS = {
    "gunicorn": ("gunicorn", "api.wsgi", "--threads=4", "--log-level=critical", "--bind=fd://{}"),
    "uvicorn": (
        *("uvicorn", "api.asgi:application"),
        *("--lifespan=off", "--log-level=critical", "--fd={}"),
    ),
}
POINTS = ("before_commit", "after_commit")  # written and not committed; committed and not told


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def project(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], str]:
    """The environment of a migrated project, and a person's token."""
    path = os.pathsep.join([str(ROOT / "src"), str(PROJECT), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "LEASE_SECONDS": "1"}
    environment["DJANGO_SETTINGS_MODULE"] = "api.settings"
    if request.param == "sqlite":
        environment["SQLITE_FILE"] = str(tmp_path_factory.mktemp("payments") / "payments.db")
    else:
        environment["DATABASE_URL"] = servers.postgresql().database("django_drf")
    environment["DJANGO_SUPERUSER_PASSWORD"] = "secret"

    def manage(*arguments: str) -> str:
        command = [sys.executable, str(PROJECT / "manage.py"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    manage("migrate")
    manage("createsuperuser", "--noinput", "--username=alice", "--email=a@example.com")
    token = manage("drf_create_token", "alice").split()[2]
    assert "atomic: once" in manage("semel", "check")
    return environment, token


@contextlib.contextmanager
def served(kind: str, listening: socket.socket, environment: dict[str, str]) -> Iterator[None]:
    command = [part.format(listening.fileno()) for part in COMMANDS[kind]]
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        env=environment,
        cwd=PROJECT,
        pass_fds=[listening.fileno()],
        start_new_session=True,
    )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Payer:
    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._headers = {"Authorization": f"Token {token}", "Content-Type": "application/json"}

    def ask(self, method: str, body: Any = None, key: str | None = None) -> Any:
        """One attempt: status, whether it is a replay, body; None where no answer came."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        headers = {**self._headers, **({"Idempotency-Key": key} if key else {})}
        try:
            connection.request(method, "/payments/", json.dumps(body), headers)
            answer = connection.getresponse()
            replayed = answer.getheader("Idempotent-Replayed") == "true"
            return answer.status, replayed, json.loads(answer.read())
        except (http.client.HTTPException, OSError):
            return None
        finally:
            connection.close()

    def until_answered(self, body: Any, key: str) -> Any:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            answer = self.ask("POST", body, key)
            if answer is not None and answer[0] not in (409, 503):
                return answer
            time.sleep(0.05)
        raise AssertionError("no answer in a minute")


@pytest.mark.parametrize("kind", COMMANDS)
@pytest.mark.parametrize("point", POINTS)
def test_a_payment_is_made_once_through_a_kill(
    project: tuple[dict[str, str], str], kind: str, point: str
) -> None:
    environment, token = project
    order, key = f"{kind}-{point}", f"key-{kind}-{point}"
    body = {"order": order, "amount": 500}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        payer = Payer(listening.getsockname()[1], token)
        with served(kind, listening, {**environment, "SEMEL_FAILPOINT": f"{point}=kill"}):
            assert payer.ask("POST", body, key) is None
        with served(kind, listening, environment):
            status, replayed, first = payer.until_answered(body, key)
            assert (status, replayed) == (201, point == "after_commit")
            assert payer.until_answered(body, key) == (201, True, first)
            _, _, payments = payer.ask("GET")
    assert [payment["order"] for payment in payments].count(order) == 1
    assert first in payments
