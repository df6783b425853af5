"""PostgreSQL and Redis: real servers, plain ways beside ours, interleaved."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import redis.asyncio

from semel.core.commands import Claim, Claimed, Complete, Open
from semel.core.record import Response
from semel.stores.postgres import PostgreSQLStore
from semel.stores.redis import RedisStore
from semel.testing.servers import PostgreSQL, Valkey, running

ANSWER = Response(201, ((b"content-type", b"application/json"),), bytes(500))
Work = Callable[[int], Awaitable[None]]


async def spend(work: Work, number: int, at_once: int) -> float:
    """Return microseconds for each of `number` pieces of work."""
    todo = iter(range(number))

    async def client() -> None:
        for each in todo:
            await work(each)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(at_once)))
    return (time.perf_counter() - started) / number * 1e6


async def pair(store: Any) -> None:
    """Claim and complete."""
    key = os.urandom(16)
    claimed = await store.aexecute(Claim(key, bytes(33), 30.0, os.urandom(14)))
    assert isinstance(claimed, Claimed)
    assert await store.aexecute(Complete(key, claimed.token, ANSWER, 86400.0, 86400.0))


class Connections:
    """As many connections as there are clients, each taken and given back by hand."""

    def __init__(self, url: str, *, autocommit: bool) -> None:
        self._url = url
        self._autocommit = autocommit
        self._idle: list[psycopg.AsyncConnection[Any]] = []

    async def get(self) -> psycopg.AsyncConnection[Any]:
        if self._idle:
            return self._idle.pop()
        return await psycopg.AsyncConnection.connect(self._url, autocommit=self._autocommit)

    def put(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._idle.append(connection)

    async def close(self) -> None:
        for connection in self._idle:
            await connection.close()


async def postgresql(url: str, rounds: int, scale: float) -> dict[str, dict[str, list[float]]]:
    """Claims and completions against two autocommit statements; atomic against bare."""
    store = PostgreSQLStore(url, pool_size=16)
    store.start()
    with psycopg.connect(url, autocommit=True) as sql:
        sql.execute("create table orders (id bigserial primary key, number int, item text)")
        sql.execute("create table record (key bytea primary key, state int, answer bytea)")
    straight = Connections(url, autocommit=True)
    bare = Connections(url, autocommit=True)
    insert = "insert into orders (number, item) values (%s, %s)"

    async def two_statements(number: int) -> None:
        key = os.urandom(16)
        for statement, values in (
            ("insert into record values (%s, 1, null) on conflict do nothing", (key,)),
            (
                "update record set state = 2, answer = %s where key = %s and state = 1",
                (bytes(600), key),
            ),
        ):
            connection = await straight.get()
            await connection.execute(statement, values)
            straight.put(connection)

    async def bare_transaction(number: int) -> None:
        connection = await bare.get()
        async with connection.transaction():
            await connection.execute(insert, (number, "a book"))
        bare.put(connection)

    async def atomic(number: int) -> None:
        key = os.urandom(16)
        transaction: Any = await store.aopen(Open(key, bytes(33), os.urandom(14)))
        await transaction.async_connection.execute(insert, (number, "a book"))
        assert await transaction.acomplete(
            Complete(key, transaction.token, ANSWER, 86400.0, 86400.0)
        )

    results: dict[str, dict[str, list[float]]] = {}
    for at_once, number in ((32, 4000), (128, 8000)):
        row = results.setdefault(f"pairs {at_once}", {})
        for _ in range(rounds):
            count = max(int(number * scale), at_once)
            row.setdefault("plain", []).append(await spend(two_statements, count // 2, at_once))
            row.setdefault("semel", []).append(await spend(lambda n: pair(store), count, at_once))
    for at_once, number in ((1, 600), (16, 4000)):
        row = results.setdefault(f"atomic {at_once}", {})
        for _ in range(rounds):
            count = max(int(number * scale), at_once)
            row.setdefault("plain", []).append(await spend(bare_transaction, count, at_once))
            row.setdefault("semel", []).append(await spend(atomic, count, at_once))
    await straight.close()
    await bare.close()
    store.stop()
    return results


async def redis_pairs(url: str, rounds: int, scale: float) -> dict[str, dict[str, list[float]]]:
    """Claims and completions against two commands of redis-py with a pool."""
    store = RedisStore(url)
    store.start()
    pool = redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=128)
    client = redis.asyncio.Redis(connection_pool=pool)

    async def two_commands(number: int) -> None:
        key = os.urandom(16)
        await client.set(key, bytes(80), nx=True, get=True, ex=60)
        await client.set(key, bytes(600), ex=60)

    results: dict[str, dict[str, list[float]]] = {}
    for at_once, number in ((32, 6000), (128, 8000)):
        row = results.setdefault(f"pairs {at_once}", {})
        for _ in range(rounds):
            count = max(int(number * scale), at_once)
            row.setdefault("plain", []).append(await spend(two_commands, count, at_once))
            row.setdefault("semel", []).append(await spend(lambda n: pair(store), count, at_once))
    await client.aclose()
    store.stop()
    return results


def measure(rounds: int, scale: float) -> dict[str, dict[str, list[float]]]:
    """Start the servers and run all of it."""
    results = {}
    with running(lambda: PostgreSQL(fsync=True)) as server:
        for name, row in asyncio.run(postgresql(server.url, rounds, scale)).items():
            results[f"PostgreSQL {name}"] = row
    with running(Valkey) as valkey:
        for name, row in asyncio.run(redis_pairs(valkey.url, rounds, scale)).items():
            results[f"Redis {name}"] = row
    return results
