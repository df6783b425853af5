"""Redis: what the contract does not ask, on a real Valkey."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis as redis_py
from fastapi import FastAPI

from semel import ASGIMiddleware, Idempotency, Policy
from semel.core.commands import (
    Claim,
    Claimed,
    Complete,
    Found,
    Lookup,
    RecordStep,
    StoreError,
    StoreUnavailable,
    StoreUnknown,
    Sweep,
)
from semel.core.record import Response
from semel.stores import StoreSetupError, open_store
from semel.stores.redis import RedisStore
from semel.testing.servers import Valkey, running

ANSWER = Response(201, (), b"done")


@pytest.fixture
def server() -> Iterator[Valkey]:
    with running(Valkey) as made:
        yield made


@pytest.fixture
def plain(server: Valkey) -> Any:
    return redis_py.Redis(port=server.port)


@pytest.fixture
def store(server: Valkey) -> Iterator[RedisStore]:
    made = RedisStore(server.url, timeout=2)
    made.start()
    yield made
    made.stop()


def key() -> bytes:
    return os.urandom(16)


def claim(name: bytes) -> Claim:
    return Claim(name, b"\x01f", 30.0, os.urandom(8))


def complete(name: bytes, token: int, expires: float = 60.0, tombstone: float = 60.0) -> Complete:
    return Complete(name, token, ANSWER, expires, tombstone)


def calls(plain: Any) -> int:
    told = plain.info("commandstats")
    return sum(told.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))


def test_one_script_a_claim_and_one_a_completion(store: RedisStore, plain: Any) -> None:
    warm = key()
    store.execute(complete(warm, store.execute(claim(warm)).token))
    before = calls(plain)
    for _ in range(10):
        name = key()
        assert store.execute(complete(name, store.execute(claim(name)).token)) is True
    assert calls(plain) - before == 20


async def test_the_commands_of_a_moment_go_together(store: RedisStore, plain: Any) -> None:
    names = [key() for _ in range(100)]
    claimed = await asyncio.gather(*(store.aexecute(claim(name)) for name in names))
    assert all(isinstance(reply, Claimed) for reply in claimed)
    before = plain.info("stats")["total_reads_processed"]
    todo = zip(names, claimed, strict=True)
    told = await asyncio.gather(*(store.aexecute(complete(n, c.token)) for n, c in todo))
    assert told == [True] * 100
    assert plain.info("stats")["total_reads_processed"] - before < 50


async def test_a_command_that_fails_fails_alone(store: RedisStore, plain: Any) -> None:
    names = [key() for _ in range(10)]
    plain.set(f"semel:{{{names[4].hex()}}}", "not a record")
    asked = (store.aexecute(claim(name)) for name in names)
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(told[4], StoreUnavailable)
    assert "WRONGTYPE" in str(told[4])
    assert all(isinstance(reply, Claimed) for reply in told[:4] + told[5:])


async def test_one_call_of_a_script_carries_no_more_than_64(store: RedisStore, plain: Any) -> None:
    await store.aexecute(claim(key()))
    before = calls(plain)
    told = await asyncio.gather(*(store.aexecute(claim(key())) for _ in range(200)))
    assert all(isinstance(reply, Claimed) for reply in told)
    assert 4 <= calls(plain) - before <= 10


async def test_scripts_that_the_server_forgot_are_given_again(
    store: RedisStore, plain: Any
) -> None:
    for _ in range(2):
        plain.script_flush()
        assert isinstance(store.execute(claim(key())), Claimed)
        plain.script_flush()
        told = await asyncio.gather(*(store.aexecute(claim(key())) for _ in range(5)))
        assert all(isinstance(reply, Claimed) for reply in told)


def test_a_server_that_evicts_is_refused(server: Valkey, plain: Any, store: RedisStore) -> None:
    plain.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(StoreSetupError, match="set maxmemory-policy noeviction"):
        RedisStore(server.url).start()
    store.check()  # as the sweeper does, now and then
    with pytest.raises(StoreUnavailable, match="evicts"):
        store.execute(Lookup(key()))
    plain.config_set("maxmemory-policy", "noeviction")
    with pytest.raises(StoreUnavailable, match="evicts"):
        store.execute(Lookup(key()))
    store._checked = 0.0  # half a minute later
    assert store.execute(Sweep(10)) == 0
    assert store.execute(Lookup(key())) is None


def test_a_full_server_refuses_and_nothing_is_lost(store: RedisStore, plain: Any) -> None:
    name = key()
    token = store.execute(claim(name)).token
    plain.config_set("maxmemory", "1")
    with pytest.raises(StoreUnavailable, match="OutOfMemory"):
        store.execute(claim(key()))
    plain.config_set("maxmemory", "0")
    assert store.execute(complete(name, token)) is True


def test_atomic_is_refused() -> None:
    with pytest.raises(StoreSetupError, match='guarantee="atomic" cannot be kept on redis'):
        Idempotency("redis://127.0.0.1:1/0", policy=Policy(guarantee="atomic"))
    with pytest.raises(StoreSetupError, match="shares no transaction"):
        open_store("redis://127.0.0.1:1/0").begin()


def test_a_server_that_is_not_there() -> None:
    store = RedisStore("redis://127.0.0.1:1/0", timeout=1)
    with pytest.raises(StoreSetupError, match="connecting"):
        store.start()
    with pytest.raises(StoreUnavailable):
        store.execute(claim(key()))


async def test_a_crash_of_the_server_without_a_log_loses_records(server: Valkey) -> None:
    """The admitted weakness: what Redis loses runs again."""
    app = FastAPI()
    runs: list[int] = []
    idempotency = Idempotency(RedisStore(server.url, timeout=2), sweep_every=None)
    app.add_middleware(ASGIMiddleware, idempotency=idempotency)

    @app.post("/charges", status_code=201)
    async def charge() -> int:
        runs.append(1)
        return len(runs)

    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as http:

        async def post() -> Any:
            return await http.post("/charges", headers={"Idempotency-Key": "k"})

        assert (await post()).status_code == 201
        assert (await post()).headers["Idempotent-Replayed"] == "true"
        server.crash()
        assert (await post()).status_code == 503
        assert len(runs) == 1
        server.start()
        assert (await post()).status_code == 201
    assert len(runs) == 2
    idempotency.stop()


def test_a_log_that_is_always_written_keeps_them() -> None:
    made = lambda: Valkey("--appendonly", "yes", "--appendfsync", "always")  # noqa: E731
    with running(made) as server:
        store = RedisStore(server.url, timeout=2)
        store.start()
        name = key()
        store.execute(complete(name, store.execute(claim(name)).token))
        server.crash()
        server.start()
        deadline = time.monotonic() + 20
        while True:
            try:
                found = store.execute(Lookup(name))
                break
            except StoreError:
                assert time.monotonic() < deadline
        assert isinstance(found, Found)
        assert found.record.response == ANSWER
        store.stop()


async def test_a_server_that_stands_still(server: Valkey) -> None:
    store = RedisStore(server.url, timeout=0.3)
    store.start()
    await store.aexecute(claim(key()))
    server.pause()
    try:
        with pytest.raises(StoreUnknown):
            await store.aexecute(claim(key()))
        with pytest.raises(StoreUnknown):
            await asyncio.to_thread(store.execute, claim(key()))
    finally:
        server.go_on()
    name = key()
    assert isinstance(await store.aexecute(claim(name)), Claimed)
    assert isinstance(await store.aexecute(claim(name)), Found)
    store.stop()


async def test_a_cancelled_call_gives_nobody_elses_answer(store: RedisStore) -> None:
    names = [key() for _ in range(20)]
    for name in names:
        await store.aexecute(Claim(name, name, 30.0, name[:8]))
    for number in range(200):
        asked = asyncio.ensure_future(store.aexecute(Lookup(names[number % 20])))
        other = asyncio.ensure_future(store.aexecute(RecordStep(names[0], 1, "s", b"", 9.0)))
        for _ in range(number % 6):
            await asyncio.sleep(0)
        asked.cancel()
        other.cancel()
        name = names[(number + 1) % 20]
        found = await store.aexecute(Lookup(name))
        assert found.record.fingerprint == name


def test_the_server_itself_expires(store: RedisStore, plain: Any) -> None:
    name = key()
    token = store.execute(claim(name)).token
    store.execute(complete(name, token, expires=0.05, tombstone=0.15))
    time.sleep(0.08)
    assert plain.exists(f"semel:{{{name.hex()}}}:answer") == 0
    assert store.execute(Lookup(name)).record.response is None
    deadline = time.monotonic() + 20
    while store.execute(Lookup(name)) is not None:
        assert time.monotonic() < deadline
    assert store.execute(Sweep(10)) == 0
    assert store.execute(claim(name)).token > token


def test_threads_and_loops_share_a_store(store: RedisStore) -> None:
    wins: list[bool] = []
    names = [key() for _ in range(20)]

    def on_thread() -> None:
        told = [store.execute(claim(name)) for name in names]
        wins.extend(isinstance(reply, Claimed) for reply in told)

    async def on_loop() -> None:
        told = await asyncio.gather(*(store.aexecute(claim(name)) for name in names * 3))
        wins.extend(isinstance(reply, Claimed) for reply in told)

    threads = [threading.Thread(target=on_thread) for _ in range(3)]
    threads += [threading.Thread(target=asyncio.run, args=(on_loop(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(wins) == 20


def test_a_child_process_opens_connections_of_its_own(store: RedisStore) -> None:
    name = key()
    store.execute(claim(name))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if isinstance(store.execute(Lookup(name)), Found) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert isinstance(store.execute(Lookup(name)), Found)
