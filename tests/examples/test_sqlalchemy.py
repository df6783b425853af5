"""The SQLAlchemy examples under `kill -9`: the client asks again; one row, one answer."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from semel.testing.servers import free_port
from tests import servers

EXAMPLES = Path(__file__).parents[2] / "examples"
KINDS = ("fastapi_sqlalchemy", "flask_sqlalchemy")
pytestmark = pytest.mark.chaos
_numbers = itertools.count()


class Shop:
    """One of the examples on a database of its own, in a server process that gets killed."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.database = servers.postgresql().database(f"shop{next(_numbers)}")
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, failpoint: str = "") -> None:
        if self.kind == "fastapi_sqlalchemy":
            driver = "asyncpg"
            command = ["uvicorn", "app:app", "--port", str(self.port), "--log-level", "error"]
        else:
            driver = "psycopg"
            command = ["gunicorn", "app:app", "--bind", f"127.0.0.1:{self.port}"]
            command += ["--threads", "4", "--log-level", "critical"]
        url = self.database.replace("postgresql", f"postgresql+{driver}", 1)
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=EXAMPLES / self.kind,
            env={**os.environ, "SHOP": url, "SEMEL_FAILPOINT": failpoint},
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{self.port}/orders/count", timeout=5)
                return
            except httpx.HTTPError:
                assert self._process.poll() is None, "the server did not start"
                assert time.monotonic() < deadline, "the server did not start in time"
                time.sleep(0.1)

    def kill(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def order(self, key: str) -> httpx.Response:
        return httpx.post(
            f"http://127.0.0.1:{self.port}/orders",
            json={"item": "tea", "quantity": 2},
            headers={"Idempotency-Key": key},
            timeout=60,
        )

    def read(self, query: str) -> list[Any]:
        with psycopg.connect(self.database, autocommit=True) as connection:
            return connection.execute(query.encode()).fetchall()

    def end_lease(self) -> None:
        """In the place of waiting for it."""
        self.read("update semel_record set lease_until = 0 where state = 1 returning 1")


@pytest.fixture(params=KINDS)
def shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    made = Shop(request.param)
    yield made
    made.kill()


def test_an_order_is_placed_once_and_replayed(shop: Shop) -> None:
    shop.start()
    first, again = shop.order("k"), shop.order("k")
    assert first.status_code == 201, first.text
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    assert shop.read("select item, quantity from orders") == [("tea", 2)]


@pytest.mark.parametrize(
    ("point", "committed"),
    [
        ("after_claim", False),
        ("before_complete", False),  # the handler has written, nothing has committed
        ("before_commit", False),  # the record is written too
        ("after_commit", True),  # nobody has been told
        ("before_answer", True),
    ],
)
def test_a_kill_in_mid_request_and_a_retry_leave_one_row_and_one_answer(
    shop: Shop, point: str, committed: bool
) -> None:
    shop.start(f"{point}=kill")
    with pytest.raises(httpx.HTTPError):
        shop.order("k")
    shop.kill()
    assert shop.read("select count(*) from orders") == [(int(committed),)]
    shop.end_lease()
    shop.start()
    retried = shop.order("k")
    assert retried.status_code == 201, retried.text
    assert ("idempotent-replayed" in retried.headers) == committed
    again = shop.order("k")
    assert (again.status_code, again.content) == (201, retried.content)
    rows = shop.read("select id, item, quantity from orders")
    assert rows == [(retried.json()["order"], "tea", 2)]
    assert shop.read("select state from semel_record") == [(2,)]
