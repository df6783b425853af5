"""The example shop as a server of its own, on SQLite and on PostgreSQL."""

from __future__ import annotations

import contextlib
import http.cookies
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import psycopg
import pytest

from semel.demo.server import shop_folder
from tests.http.harness import Answer, Client
from tests.servers import postgresql

SERVE = """
import socket, sys, uvicorn
from shop.app import app
config = uvicorn.Config(app, log_level="warning")
uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
"""


@contextlib.contextmanager
def serving(database: str, folder: Path, *, protected: bool = True) -> Iterator[int]:
    """Run the shop; its port. It listens from the first moment on, and answers once it is up."""
    environment = {
        **os.environ,
        "SHOP_DB": database,
        "SHOP_FILES": str(folder / "files"),
        "SHOP_SEMEL": "on" if protected else "off",
        "PYTHONPATH": os.pathsep.join([str(shop_folder()), *sys.path]),
    }
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number = listening.fileno()
        command = [sys.executable, "-c", SERVE, str(number)]
        with subprocess.Popen(command, env=environment, pass_fds=[number]) as process:
            try:
                yield listening.getsockname()[1]
            finally:
                process.terminate()


@contextlib.contextmanager
def shop_on(kind: str, folder: Path, *, protected: bool = True) -> Iterator[int]:
    if kind == "sqlite":
        with serving(str(folder / "shop.db"), folder, protected=protected) as port:
            yield port
        return
    server, name = postgresql().url, f"shop_{os.urandom(4).hex()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    with serving(server.rpartition("/")[0] + f"/{name}", folder, protected=protected) as port:
        yield port


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with shop_on(request.param, tmp_path_factory.mktemp("shop")) as port:
        yield port


@dataclass
class Visitor(Client):
    """A browser as far as HTTP goes: it has cookies, visits pages and sends their forms."""

    cookies: dict[str, str] = field(default_factory=dict)

    def send(
        self,
        path: str = "/",
        key: str | None = None,
        body: bytes = b"",
        method: str = "POST",
        headers: list[tuple[str, str]] | None = None,
        timeout: float = 20,
    ) -> Answer:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        sent = [*(headers or []), *([("Cookie", cookie)] if cookie else [])]
        answer = super().send(path, key, body, method, sent, timeout)
        for line in answer.all("set-cookie"):
            for name, morsel in http.cookies.SimpleCookie(line).items():
                self.cookies[name] = morsel.value
        return answer

    def page(self, use: str) -> str:
        answer = self.send(f"/try/{use}", key=None, body=b"", method="GET")
        assert answer.status == 200, answer.body
        return answer.body.decode()

    def form(self, path: str, key: str | None = None, **fields: str | int) -> Answer:
        kind = [("Content-Type", "application/x-www-form-urlencoded")]
        return self.send(path, key, urlencode(fields).encode(), headers=kind)

    def network(self, quality: str) -> None:
        assert self.form("/network", network=quality, back="/try/orders").status == 303

    def happened(self, use: str) -> int:
        """Return what the page counts: how often it happened."""
        found = re.search(r'id="happened">([0-9,]+)<', self.page(use))
        assert found is not None
        return int(found[1])


@pytest.fixture
def visitor(port: int) -> Visitor:
    made = Visitor(port)
    made.page("orders")  # where it gets its cookie
    return made


@pytest.fixture
def another(port: int) -> Visitor:
    made = Visitor(port)
    made.page("orders")
    return made
