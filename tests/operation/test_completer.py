"""Operations abandoned by a kill of the whole server are finished by Semel, once each."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from semel.core.remembered import RememberedRequest, decode_request, encode_request
from semel.testing.servers import free_port
from tests import servers

HERE = Path(__file__).parent
pytestmark = pytest.mark.chaos


class Shop:
    """The shop's database, and its server processes."""

    def __init__(self, url: str, read: Callable[[str], list[Any]]) -> None:
        self.url = url
        self.read = read
        self._processes: list[subprocess.Popen[bytes]] = []

    def serve(self, kind: str = "fastapi", **environment: str) -> str:
        """Start a server; return its address once it answers."""
        port = free_port()
        if kind == "fastapi":
            command = ["uvicorn", "completer_app:app", "--port", str(port), "--log-level", "error"]
        else:
            command = ["gunicorn", "completer_app:wsgi_app", "--bind", f"127.0.0.1:{port}"]
            command += ["--threads", "30", "--log-level", "error"]
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=HERE,
            env={**os.environ, "SHOP": self.url, **environment},
            start_new_session=True,
        )
        self._processes.append(process)
        for _ in range(400):
            try:
                httpx.get(f"http://127.0.0.1:{port}/", timeout=1)
                return f"http://127.0.0.1:{port}"
            except httpx.HTTPError:
                assert process.poll() is None
                time.sleep(0.05)
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        """Kill every server process, at once."""
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()

    def states(self) -> dict[int, int]:
        return dict(self.read("select state, count(*) from semel_record group by state"))

    def until(self, wanted: dict[int, int]) -> None:
        deadline = time.monotonic() + 60
        while self.states() != wanted:
            assert time.monotonic() < deadline, self.states()
            time.sleep(0.05)


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    if request.param == "sqlite":
        path = tmp_path / "shop.db"

        def read(statement: str) -> list[Any]:
            connection = sqlite3.connect(path, timeout=10)
            try:
                return connection.execute(statement).fetchall()
            finally:
                connection.close()

        connection = sqlite3.connect(path)
        connection.execute("create table orders (item text, amount int)")
        connection.close()
        made = Shop(f"sqlite:///{path}", read)
    else:
        url = servers.postgresql().database(f"complete_{os.getpid()}_{time.time_ns()}")
        sql = psycopg.connect(url, autocommit=True)
        sql.execute("create table orders (item text, amount int)")
        made = Shop(url, lambda statement: sql.execute(statement.encode()).fetchall())
    yield made
    made.kill()


def ask(address: str, paths: list[str], shop: Shop, kill_after: float) -> None:
    """Send requests whose answers never come: the server is killed while it works."""

    async def all_of_them() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=30) as http:
            asked = [
                asyncio.ensure_future(
                    http.post(path, json={"amount": n}, headers={"Idempotency-Key": f"k{path}"})
                )
                for n, path in enumerate(paths)
            ]
            await asyncio.sleep(kill_after)
            await asyncio.to_thread(shop.kill)
            await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(all_of_them())


@pytest.mark.parametrize("kind", ["fastapi", "flask"])
def test_all_that_a_kill_abandons_is_finished_once_each(shop: Shop, kind: str) -> None:
    paths = [f"/orders/{n}" for n in range(20)]
    ask(shop.serve(kind, SLOW="60"), paths, shop, kill_after=2.0)
    assert shop.states() == {1: 20}
    address, other = shop.serve(kind), shop.serve(kind)
    if kind == "flask":  # a WSGI server has no start: the completer begins with the first request
        for at in (address, other):
            key = {"Idempotency-Key": at}
            httpx.post(f"{at}/orders/x", json={"amount": 0}, headers=key).raise_for_status()
    shop.until({2: 20 if kind == "fastapi" else 22})
    orders = shop.read("select item, amount from orders where item <> 'x' order by amount")
    assert orders == [(str(n), n) for n in range(20)]
    # The client that does come back gets the answer that it missed.
    again = httpx.post(
        f"{address}/orders/7", json={"amount": 7}, headers={"Idempotency-Key": "k/orders/7"}
    )
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (201, "true")


def test_a_poison_request_stops(shop: Shop) -> None:
    address = shop.serve()
    with pytest.raises(httpx.HTTPError):
        httpx.post(f"{address}/poison", headers={"Idempotency-Key": "p"}, timeout=10)
    for _ in range(8):
        shop.kill()
        if shop.states() == {3: 1}:
            break
        try:
            shop.serve()
        except (AssertionError, httpx.HTTPError):
            continue
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and shop.states() == {1: 1}:
            if shop._processes[0].poll() is not None:
                break
            time.sleep(0.05)
    assert shop.states() == {3: 1}
    (reason,) = shop.read("select reason from semel_record")[0]
    assert reason == "3 processes have ended while they ran it"


def test_one_who_may_no_longer_is_parked(shop: Shop) -> None:
    ask(shop.serve(SLOW="60"), ["/forbidden"], shop, kill_after=1.0)
    shop.serve()
    shop.until({3: 1})
    (reason,) = shop.read("select reason from semel_record")[0]
    assert reason == "its caller may no longer do this: 403"


def test_another_version_of_the_handler_does_not_go_on(shop: Shop) -> None:
    ask(shop.serve(SLOW="60", VERSION="1"), ["/orders/1"], shop, kill_after=1.0)
    shop.serve(VERSION="2")
    shop.until({3: 1})
    (reason,) = shop.read("select reason from semel_record")[0]
    assert reason == "version '1' of its handler began it, '2' is here"
    assert shop.read("select * from orders") == []


def test_credentials_are_remembered_only_when_asked_for() -> None:
    headers = ((b"authorization", b"secret"), (b"cookie", b"s=1"), (b"accept", b"*/*"))
    asked = RememberedRequest("POST", "/a", b"/a", "", b"q", headers, "me", "1", b"\x00body")
    assert decode_request(encode_request(asked, credentials=True)) == asked
    kept = decode_request(encode_request(asked, credentials=False))
    assert kept == asked._replace(headers=headers[2:])
