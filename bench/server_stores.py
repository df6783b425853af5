"""PostgreSQL and Redis: real servers, plain ways beside ours, interleaved."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from statistics import median
from typing import Any

import psycopg
import redis.asyncio

from bench.network import far_away
from semel.core.commands import Claim, Claimed, Complete, Open
from semel.core.record import Response
from semel.stores.postgres import PostgreSQLStore
from semel.stores.redis import RedisStore
from semel.testing.servers import PostgreSQL, Valkey, running

ANSWER = Response(201, ((b"content-type", b"application/json"),), bytes(500))
INSERT = "insert into orders (number, item) values (%s, %s)"
CLAIM = "insert into record values (%s, 1, null) on conflict do nothing"
COMPLETE = "update record set state = 2, answer = %s where key = %s and state = 1"
AWAY = 0.5
"""Milliseconds to a database in the next room."""

Work = Callable[[int], Awaitable[None]]
Row = dict[str, list[float]]


async def spend(work: Work, number: int, at_once: int) -> float:
    """Return microseconds for each of `number` pieces of work."""
    todo = iter(range(number))

    async def client() -> None:
        for each in todo:
            await work(each)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(at_once)))
    return (time.perf_counter() - started) / number * 1e6


async def compare(row: Row, ways: dict[str, Work], number: int, at_once: int, rounds: int) -> None:
    """Do the same work in each way, in turn, round by round.

    One at a time: in turn piece by piece, and the median of a round's pieces counts, so that what
    else the machine does falls on all ways alike.
    """
    for work in ways.values():
        await spend(work, at_once * 2, at_once)  # connections, plans, scripts
    for _ in range(rounds):
        if at_once == 1:
            pieces: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(max(number, 1)):
                for way, work in ways.items():
                    pieces[way].append(await spend(work, 1, 1))
            for way, spent in pieces.items():
                row.setdefault(way, []).append(median(spent))
            continue
        for way, work in ways.items():
            row.setdefault(way, []).append(await spend(work, max(number, at_once), at_once))


class Pairs:
    """A claim and a completion."""

    def __init__(self, store: Any) -> None:
        self._store = store

    async def __call__(self, number: int) -> None:
        key = os.urandom(16)
        claimed = await self._store.aexecute(Claim(key, bytes(33), 30.0, os.urandom(14)))
        assert isinstance(claimed, Claimed)
        complete = Complete(key, claimed.token, ANSWER, 86400.0, 86400.0)
        assert await self._store.aexecute(complete)


class Plain:
    """psycopg by hand, with as many connections as there are clients."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: list[psycopg.AsyncConnection[Any]] = []

    async def _get(self) -> psycopg.AsyncConnection[Any]:
        if self._idle:
            return self._idle.pop()
        return await psycopg.AsyncConnection.connect(self._url, autocommit=True)

    async def _run(self, statement: str, values: tuple[Any, ...]) -> None:
        connection = await self._get()
        await connection.execute(statement, values)
        self._idle.append(connection)

    async def two_statements(self, number: int) -> None:
        key = os.urandom(16)
        await self._run(CLAIM, (key,))
        await self._run(COMPLETE, (bytes(600), key))

    async def transaction(self, number: int) -> None:
        """BEGIN, INSERT, COMMIT."""
        connection = await self._get()
        async with connection.transaction():
            await connection.execute(INSERT, (number, "a book"))
        self._idle.append(connection)

    async def three_commits(self, number: int) -> None:
        """A claim, the transaction, a completion: what libraries do."""
        key = os.urandom(16)
        await self._run(CLAIM, (key,))
        await self.transaction(number)
        await self._run(COMPLETE, (bytes(600), key))

    async def close(self) -> None:
        for connection in self._idle:
            await connection.close()


class Atomic:
    """The claim, the row and the record in one transaction."""

    def __init__(self, store: PostgreSQLStore) -> None:
        self._store = store

    async def __call__(self, number: int) -> None:
        key = os.urandom(16)
        opened: Any = await self._store.aopen(Open(key, bytes(33), os.urandom(14)))
        await opened.async_connection.execute(INSERT, (number, "a book"))
        assert await opened.acomplete(Complete(key, opened.token, ANSWER, 86400.0, 86400.0))


async def postgresql(
    url: str, far: str, rounds: int, scale: float, results: dict[str, Row]
) -> None:
    """Claims and completions against two autocommit statements; atomic against bare, near and far.

    The far network passes through a process beside the client: two of the machine's cores are then
    shared by three, so few operations at a time are measured there.
    """
    with psycopg.connect(url, autocommit=True) as sql:
        sql.execute("create table orders (id bigserial primary key, number int, item text)")
        sql.execute("create table record (key bytea primary key, state int, answer bytea)")
    store, away = PostgreSQLStore(url, pool_size=16), PostgreSQLStore(far, pool_size=16)
    store.start()
    away.start()
    plain, plain_away = Plain(url), Plain(far)
    for at_once, number in ((32, 3000), (128, 6000)):
        row = results.setdefault(f"PostgreSQL pairs {at_once}", {})
        ways: dict[str, Work] = {"plain": plain.two_statements, "semel": Pairs(store)}
        await compare(row, ways, int(number * scale), at_once, rounds)
    for name, one, other in (("", plain, store), (f", {AWAY} ms away", plain_away, away)):
        for at_once, number in ((1, 500), (16, 3000)):
            row = results.setdefault(f"PostgreSQL atomic {at_once}{name}", {})
            ways = {"plain": one.transaction, "semel": Atomic(other)}
            ways["three commits"] = one.three_commits
            await compare(row, ways, int(number * scale), at_once, rounds)
    await plain.close()
    await plain_away.close()
    store.stop()
    away.stop()


async def redis_pairs(url: str, rounds: int, scale: float, results: dict[str, Row]) -> None:
    """Claims and completions against two commands of redis-py with a pool."""
    store = RedisStore(url)
    store.start()
    pool = redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=128)
    client = redis.asyncio.Redis(connection_pool=pool)

    async def two_commands(number: int) -> None:
        key = os.urandom(16)
        await client.set(key, bytes(80), nx=True, get=True, ex=60)
        await client.set(key, bytes(600), ex=60)

    for at_once, number in ((32, 6000), (128, 8000)):
        row = results.setdefault(f"Redis pairs {at_once}", {})
        ways: dict[str, Work] = {"plain": two_commands, "semel": Pairs(store)}
        await compare(row, ways, int(number * scale), at_once, rounds)
    await client.aclose()
    store.stop()


def measure(rounds: int, scale: float) -> dict[str, Row]:
    """Start the servers and run all of it."""
    import uvloop

    results: dict[str, Row] = {}
    with ExitStack() as stack:
        server = stack.enter_context(running(lambda: PostgreSQL(fsync=True)))
        port = stack.enter_context(far_away(server.port, AWAY))
        far = server.url.replace(f":{server.port}/", f":{port}/")
        uvloop.run(postgresql(server.url, far, rounds, scale, results))
    with running(Valkey) as valkey:
        uvloop.run(redis_pairs(valkey.url, rounds, scale, results))
    return results
