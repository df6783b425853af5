"""One subject called directly as ASGI: microseconds a request, first key and replay.

`python bench/in_process.py NAME --calls 2000` prints one line of JSON; `python -m bench` runs the
subjects in turn, round by round, each in its own virtual environment.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.subjects import bare, subject

BODY = json.dumps({"a": "x" * 490}).encode()


def scope(key: str | None) -> dict[str, Any]:
    headers = [
        (b"host", b"shop"),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(BODY)),
        (b"accept", b"*/*"),
        (b"user-agent", b"bench"),
        (b"authorization", b"Bearer abcdefgh"),
    ]
    if key is not None:
        headers.append((b"idempotency-key", key.encode()))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/charges",
        "raw_path": b"/charges",
        "query_string": b"",
        "headers": headers,
        "scheme": "http",
        "server": ("shop", 80),
        "client": ("client", 1),
        "root_path": "",
        "state": {},
    }


async def call(app: Any, key: str | None) -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": BODY, "more_body": False}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope(key), receive, send)
    if sent[0]["status"] != 201:
        raise RuntimeError(f"{sent[0]['status']}: {sent[1:]}")


async def timed(app: Any, keys: list[str | None], at_once: int) -> float:
    """Return the mean time of a call, in microseconds."""

    async def one(share: list[str | None]) -> None:
        for key in share:
            await call(app, key)

    started = time.perf_counter()
    await asyncio.gather(*(one(keys[n::at_once]) for n in range(at_once)))
    return (time.perf_counter() - started) / len(keys) * 1e6


async def measure(name: str, calls: int) -> dict[str, float]:
    result: dict[str, float] = {}
    plain = bare()
    with tempfile.TemporaryDirectory() as folder:
        async with subject(name, Path(folder)) as app:
            for at_once in (1, 32):
                await timed(plain, [None] * 200, at_once)
                await timed(app, [str(uuid.uuid4()) for _ in range(50)], at_once)
                repeated = str(uuid.uuid4())
                await call(app, repeated)
                result[f"bare {at_once}"] = await timed(plain, [None] * calls, at_once)
                fresh = [str(uuid.uuid4()) for _ in range(calls)]
                result[f"first {at_once}"] = await timed(app, list(fresh), at_once)
                result[f"replay {at_once}"] = await timed(app, [repeated] * calls, at_once)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--calls", type=int, default=2000)
    options = parser.parse_args()
    try:
        import uvloop

        uvloop.install()
    except ImportError:
        pass
    print(json.dumps(asyncio.run(measure(options.name, options.calls))))
