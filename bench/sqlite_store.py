"""The SQLite store alone: claim and completion, plain and atomic, against a statement a hop."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from semel import failpoints
from semel.core.commands import Claim, Complete
from semel.core.record import Response
from semel.stores.sqlite import SQLiteStore

ANSWER = Response(201, ((b"content-type", b"application/json"),), b"x" * 560)


async def shared(folder: Path, at_once: int, pairs: int, synchronous: str, atomic: bool) -> Any:
    """Return pairs a second, and commits a pair."""
    path = folder / "semel.db"
    connection = sqlite3.connect(path)
    connection.execute("create table business (a, b)")
    connection.commit()
    connection.close()
    store = SQLiteStore(path, synchronous=synchronous)
    store.start()
    commits = 0

    def count(point: str) -> None:
        nonlocal commits
        commits += point == "after_commit"

    async def client(share: int) -> None:
        for _ in range(share):
            key = os.urandom(16)
            claimed: Any = await store.aexecute(Claim(key, b"\x01" + bytes(32), 30.0, b"owner---"))
            complete = Complete(key, claimed.token, ANSWER, 86400.0, 0.0)
            if atomic:
                transaction = await store.abegin()
                db = transaction.async_connection
                await db.execute("insert into business values (?, ?)", (1, 2))
                assert await transaction.acomplete(complete)
            else:
                assert await store.aexecute(complete)

    failpoints.observers.append(count)
    started = time.perf_counter()
    await asyncio.gather(*(client(pairs // at_once) for _ in range(at_once)))
    spent = time.perf_counter() - started
    failpoints.observers.remove(count)
    store.stop()
    return pairs / spent, commits / pairs


async def hop_each(folder: Path, at_once: int, pairs: int, synchronous: str) -> float:
    """Return pairs a second where each statement is a hop to an executor, with its own commit."""
    connection = sqlite3.connect(folder / "hops.db", isolation_level=None, check_same_thread=False)
    connection.execute("pragma journal_mode = wal")
    connection.execute(f"pragma synchronous = {synchronous}")
    connection.execute(
        "create table record (id integer primary key, key blob unique, state, owner, print, lease,"
        " due, answer)"
    )
    executor = ThreadPoolExecutor(1)
    loop = asyncio.get_running_loop()

    async def client(share: int) -> None:
        for _ in range(share):
            key = os.urandom(16)
            await loop.run_in_executor(
                executor,
                connection.execute,
                "insert into record (key, state, owner, print, lease) values (?, 1, ?, ?, ?)"
                " on conflict do nothing",
                (key, b"owner---", bytes(33), time.time()),
            )
            await loop.run_in_executor(
                executor,
                connection.execute,
                "update record set state = 2, due = ?, answer = ? where key = ? and state = 1",
                (time.time(), bytes(600), key),
            )

    started = time.perf_counter()
    await asyncio.gather(*(client(pairs // at_once) for _ in range(at_once)))
    spent = time.perf_counter() - started
    executor.shutdown()
    connection.close()
    return pairs / spent


def measure(rounds: int, scale: float) -> dict[str, dict[str, list[float]]]:
    """Run all of it in turn, round by round."""
    import uvloop

    results: dict[str, dict[str, list[float]]] = {}
    for synchronous in ("full", "normal"):
        for at_once, pairs in ((1, 600), (8, 3000), (32, 8000), (128, 16000)):
            row = results.setdefault(f"{synchronous} {at_once}", {})
            for _ in range(rounds):
                number = max(int(pairs * scale) // at_once, 1) * at_once
                few = max(min(number, 2000) // at_once, 1) * at_once
                with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
                    folder = Path(name)
                    row.setdefault("a statement a hop", []).append(
                        uvloop.run(hop_each(folder, at_once, few, synchronous))
                    )
                    rate, commits = uvloop.run(shared(folder, at_once, number, synchronous, False))
                    row.setdefault("semel", []).append(rate)
                    row.setdefault("semel commits", []).append(commits)
                with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
                    rate, commits = uvloop.run(
                        shared(Path(name), at_once, number, synchronous, True)
                    )
                    row.setdefault("atomic", []).append(rate)
                    row.setdefault("atomic commits", []).append(commits)
    return results
