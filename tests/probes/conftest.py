from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http.harness import Client, until

ROOT = Path(__file__).parents[2]


class Shop(Client):
    """One of the probed applications in processes of its own, and what is in its database."""

    def __init__(self, kind: str, folder: Path, workers: int) -> None:
        self.folder = folder
        # The socket stays here, so that a client that comes between two servers is kept waiting.
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        super().__init__(self._socket.getsockname()[1])
        file = self._socket.fileno()
        command = {
            "asgi": f"uvicorn tests.probes.asgi:app --fd {file}",
            "wsgi": f"gunicorn tests.probes.wsgi:app --bind fd://{file} --worker-class gthread"
            " --threads 120 --graceful-timeout 1",  # half may wait
        }[kind]
        self._command = f"{command} --workers {workers} --log-level critical".split()
        self._process: subprocess.Popen[bytes] | None = None

    def revive(self) -> None:
        """Start a server unless one runs."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._command],
                cwd=ROOT,
                env={**os.environ, "PROBE_FOLDER": str(self.folder)},
                pass_fds=[self._socket.fileno()],
                start_new_session=True,
                stderr=subprocess.DEVNULL,  # handlers that raise on purpose are not news
            )

    def charge(self, key: str | None = "k", path: str = "/charge", **wanted: Any) -> Any:
        headers = wanted.pop("headers", None)
        method = wanted.pop("method", "POST")
        return self.send(path, key, body_of(**wanted), method=method, headers=headers)

    def charge_and_be_cut_off(self, **wanted: Any) -> None:
        """Send a request whose server dies; a new one is there when this returns."""
        with pytest.raises(ConnectionError):
            self.charge(**wanted)
        if self._process is not None and "uvicorn" in self._command:  # gunicorn revives its own
            self._process.wait(10)
        self.revive()

    @property
    def effects(self) -> int:
        connection = sqlite3.connect(self.folder / "shop.db", timeout=10)
        try:
            return int(connection.execute("select count(*) from charges").fetchone()[0])
        finally:
            connection.close()

    @contextlib.contextmanager
    def out_of_order(self) -> Iterator[None]:
        """Hold the database so that nobody can write to it."""
        connection = sqlite3.connect(self.folder / "shop.db", timeout=10, isolation_level=None)
        connection.execute("begin immediate")
        yield
        connection.execute("rollback")
        connection.close()

    def let_go(self) -> None:
        """Let a handler that waits go on."""
        (self.folder / "go").touch()

    def someone_waits(self) -> None:
        until(lambda: (self.folder / "waiting-go").exists())

    def close(self) -> None:
        self._socket.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)


def body_of(**wanted: Any) -> bytes:
    return json.dumps({"amount": 5, **wanted}).encode()


@pytest.fixture(params=["asgi", "wsgi"])
def open_shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Shop]]:
    with contextlib.ExitStack() as stack:

        def open_shop(workers: int = 1) -> Shop:
            shop = Shop(request.param, tmp_path, workers)
            stack.callback(shop.close)
            shop.revive()
            until(lambda: (tmp_path / "shop.db").exists())
            return shop

        yield open_shop


@pytest.fixture
def shop(open_shop: Callable[..., Shop]) -> Shop:
    return open_shop()


@pytest.fixture
def expiry() -> Callable[[], None]:
    """Let the second pass for which `/brief` keeps its answers: a real server has a real clock."""
    return lambda: time.sleep(1.05)
