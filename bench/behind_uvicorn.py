"""The bare application and Semel behind uvicorn: requests a second over 32 kept connections."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BODY = b'{"a": "' + b"x" * 480 + b'"}'


class _Client(asyncio.Protocol):
    """Sends, waits for the whole answer, sends again."""

    def __init__(self, mode: str, end: float) -> None:
        self.done = 0
        self._mode = mode
        self._end = end
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        key = b""
        if self._mode != "none":
            name = b"fixed" if self._mode == "replay" else os.urandom(12).hex().encode()
            key = b"Idempotency-Key: %b\r\n" % name
        self._transport.write(
            b"POST /charges HTTP/1.1\r\nHost: shop\r\nContent-Type: application/json\r\n%b"
            b"Content-Length: %d\r\n\r\n%b" % (key, len(BODY), BODY)
        )

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or len(self._buffer) < end + 4 + len(BODY):
            return
        if self._buffer[9:12] != b"201":
            raise RuntimeError(self._buffer[:200])
        self._buffer = b""
        self.done += 1
        if time.perf_counter() < self._end:
            self._send()


def _load(port: int, mode: str, seconds: float, result: Any) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        end = time.perf_counter() + seconds
        clients = [
            (await loop.create_connection(lambda: _Client(mode, end), "127.0.0.1", port))[1]
            for _ in range(32)
        ]
        await asyncio.sleep(seconds)
        result.put(sum(client.done for client in clients) / seconds)

    import uvloop

    uvloop.run(run())


def rate(port: int, mode: str, seconds: float) -> float:
    """Return requests a second, sent from a process of its own."""
    result: Any = multiprocessing.Queue()
    process = multiprocessing.Process(target=_load, args=(port, mode, seconds, result))
    process.start()
    answer: float = result.get(timeout=seconds + 30)
    process.join()
    return answer


def measure(folder: Path, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Run each server, and load them in turn, round by round."""
    subjects = {
        "bare": "",
        "basehttp": "",
        "semel-memory": "memory://",
        "semel-full": f"sqlite:///{folder}/uvicorn.db",
    }
    ports: dict[str, int] = {}
    servers = []
    for name, store in subjects.items():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports[name] = free.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", "bench.subjects:application"]
        command += ["--port", str(ports[name]), "--log-level", "error", "--no-access-log"]
        environment = {**os.environ, "BENCH_SUBJECT": name, "BENCH_STORE": store}
        servers.append(subprocess.Popen(command, cwd=ROOT, env=environment))
    try:
        for port in ports.values():
            for _ in range(400):
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.02)
        rates: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, port in ports.items():
                modes = ("first", "replay") if name.startswith("semel") else ("none",)
                for mode in modes:
                    key = f"{name} {mode}"
                    rates.setdefault(key, []).append(rate(port, mode, seconds))
        return rates
    finally:
        for server in servers:
            server.terminate()
            server.wait()
