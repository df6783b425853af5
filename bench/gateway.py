"""The gateway beside the plainest Python proxy: requests a second over 32 kept connections.

The plain proxy is uvicorn and the aiohttp client, the fastest pair of those that were tried
(granian, aiohttp.web, httpx, httpx2 behind or before it: all slower, httpx 20 times). It copies
headers and streams bodies, and does nothing else that a proxy has to do.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median
from typing import Any

from bench.behind_uvicorn import ROOT, rate

SUBJECTS = {
    "plain": "",
    "memory": "memory://",
    "sqlite": "sqlite:///{}/full.db",
    "sqlite, synchronous=normal": "sqlite:///{}/normal.db?synchronous=normal",
}
MODES = {"none": "without a key", "first": "new keys", "replay": "replays"}
_NOT_PASSED = frozenset({b"host", b"connection", b"transfer-encoding", b"keep-alive"})


def plain_proxy() -> Any:
    """Return the baseline as an ASGI application."""
    import aiohttp
    from multidict import CIMultiDict
    from yarl import URL

    upstream = os.environ["BENCH_UPSTREAM"]
    session: aiohttp.ClientSession

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal session
        if scope["type"] == "lifespan":
            await receive()
            session = aiohttp.ClientSession(auto_decompress=False)
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await session.close()
            await send({"type": "lifespan.shutdown.complete"})
            return

        async def body() -> AsyncIterator[bytes]:
            more = True
            while more:
                message = await receive()
                more = message.get("more_body", False)
                yield message.get("body", b"")

        headers = CIMultiDict(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name not in _NOT_PASSED
        )
        url = URL(f"{upstream}{scope['raw_path'].decode()}", encoded=True)
        async with session.request(
            scope["method"], url, headers=headers, data=body(), allow_redirects=False
        ) as response:
            fields = [
                (n.lower(), v) for n, v in response.raw_headers if n.lower() not in _NOT_PASSED
            ]
            await send(
                {"type": "http.response.start", "status": response.status, "headers": fields}
            )
            async for chunk in response.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    return app


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _answers(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.02)
    raise RuntimeError("a server did not start")


@contextlib.contextmanager
def servers(folder: Path) -> Any:
    """Run the service, the plain proxy and the gateways in front of it; give their ports."""
    upstream = _free_port()
    serve = [sys.executable, "-m", "uvicorn", "--log-level", "error", "--no-access-log"]
    environment = {**os.environ, "BENCH_UPSTREAM": f"http://127.0.0.1:{upstream}"}
    commands = [[*serve, "--port", str(upstream), "bench.subjects:application"]]
    ports = {}
    for name, store in SUBJECTS.items():
        port = ports[name] = _free_port()
        if name == "plain":
            command = [*serve, "--port", str(port), "--factory", "bench.gateway:plain_proxy"]
        else:
            command = [sys.executable, "-m", "semel.cli", "gateway"]
            command += [
                "--upstream",
                environment["BENCH_UPSTREAM"],
                "--store",
                store.format(folder),
            ]
            command += ["--listen", f"127.0.0.1:{port}"]
        commands.append(command)
    environment["BENCH_SUBJECT"] = "bare"
    running = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        for command in commands
    ]
    try:
        for port in (upstream, *ports.values()):
            _answers(port)
        yield ports
    finally:
        for process in running:  # the plain proxy would wait for ever for a client that has gone
            process.kill()
        for process in running:
            process.wait()


def measure(folder: Path, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Load each in turn, round by round; requests a second by "subject mode"."""
    rates: dict[str, list[float]] = {}
    with servers(folder) as ports:
        for _ in range(rounds):
            for name, port in ports.items():
                for mode in ("none",) if name == "plain" else MODES:
                    rates.setdefault(f"{name} {mode}", []).append(rate(port, mode, seconds))
    return rates


def ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Return each subject's rate in each mode, of the plain proxy's in the same round."""
    plain = rates["plain none"]
    return {
        name: median(rate / base for rate, base in zip(row, plain, strict=True))
        for name, row in rates.items()
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = measure(Path(place), 5, 2.0)
    for subject, ratio in ratios(found).items():
        print(f"{subject:34} {ratio:.2f}  {[round(each) for each in found[subject]]}")
