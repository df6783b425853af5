"""Expired records cleared away on PostgreSQL, beside claims and completions."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import psycopg

from semel.core.commands import Claim, Complete
from semel.core.record import Response
from semel.idempotency import Idempotency
from semel.stores.postgres import PostgreSQLStore
from semel.testing.servers import PostgreSQL, running

ANSWER = Response(201, ((b"content-type", b"application/json"),), bytes(500))
RECORDS = 1_000_000
AT_ONCE = 16
FILL = """
insert into semel_record
    (key, state, attempt, owner, fingerprint, lease_until, due_at, purge_at, answer)
select substr(sha256(n::text::bytea), 1, 16), 2, 1, 'owner---', decode(repeat('01', 33), 'hex'), 0,
    semel_now() - 3600 + n / 1000.0,
    semel_now() + 86400 * case when mod(n, 2) = 0 then 1 else -1 end,
    decode(repeat('00', 560), 'hex')
from generate_series(1, %s) n
"""
"""Half of them become tombstones, half go."""


async def _traffic(store: Any, seconds: float) -> tuple[float, float]:
    """Return pairs a second, and the 99th percentile of a claim's time in milliseconds."""
    waits: list[float] = []
    end = time.perf_counter() + seconds

    async def client() -> None:
        while (started := time.perf_counter()) < end:
            key = os.urandom(16)
            claimed: Any = await store.aexecute(Claim(key, bytes(33), 30.0, os.urandom(14)))
            waits.append(time.perf_counter() - started)
            await store.aexecute(Complete(key, claimed.token, ANSWER, 86400.0, 86400.0))

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return len(waits) / seconds, sorted(waits)[int(len(waits) * 0.99)] * 1000


def _left(sql: psycopg.Connection[Any]) -> int:
    found = sql.execute("select count(*) from semel_record where due_at <= semel_now()").fetchone()
    assert found is not None
    return int(found[0])


def sweeping(url: str, rounds: int, scale: float) -> dict[str, list[float]]:
    """Alternate between as much traffic as there can be, alone and beside a sweeper."""
    import uvloop

    row: dict[str, list[float]] = {}
    seconds = 3.0 * scale
    with psycopg.connect(url, autocommit=True) as sql:
        for number in range(rounds):
            for beside in (False, True):
                idempotency = Idempotency(PostgreSQLStore(url), sweep_every=None)
                idempotency.start()
                if not number and not beside:
                    sql.execute(FILL, (max(int(RECORDS * scale), 1000),))
                    sql.execute("vacuum analyze semel_record")
                before = _left(sql)
                if beside:
                    threading.Thread(target=idempotency.sweep).start()
                rate, p99 = uvloop.run(_traffic(idempotency.store, seconds))
                swept = before - _left(sql)
                idempotency.stop()
                for name, value in (("pairs", rate), ("p99", p99), ("swept", swept / seconds)):
                    row.setdefault(f"{name} beside" if beside else name, []).append(value)
    return row


def measure(rounds: int, scale: float) -> dict[str, list[float]]:
    """Start a server and run it."""
    with running(lambda: PostgreSQL(fsync=True)) as server:
        return sweeping(server.url, rounds, scale)
