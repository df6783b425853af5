"""A Redis Cluster of three: keys everywhere, a node that goes, and what a failover loses."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis as redis_py

from semel.core.commands import (
    Abandoned,
    Claim,
    Claimed,
    Complete,
    Found,
    Lookup,
    StoreError,
    Sweep,
)
from semel.core.record import Response
from semel.stores import StoreSetupError, open_store
from semel.stores.redis import RedisStore
from semel.testing.servers import Valkey, ValkeyCluster, running

ANSWER = Response(201, (), b"done")


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with running(ValkeyCluster) as made:
        yield made


@pytest.fixture
def store(cluster: ValkeyCluster) -> Iterator[Any]:
    made = open_store(f"{cluster.url}?timeout=2")
    made.start()
    yield made
    made.stop()


def claim(name: bytes, request: bytes | None = None) -> Claim:
    return Claim(name, b"\x01f", 30.0, os.urandom(8), request)


def stored(cluster: ValkeyCluster) -> list[int]:
    return [redis_py.Redis(port=node.port).dbsize() for node in cluster.nodes]  # type: ignore[misc]


async def test_keys_lie_on_every_node_and_each_record_on_one(
    cluster: ValkeyCluster, store: Any
) -> None:
    names = [os.urandom(16) for _ in range(200)]
    claimed = await asyncio.gather(*(store.aexecute(claim(name)) for name in names))
    assert all(isinstance(reply, Claimed) for reply in claimed)
    assert all(count > 20 for count in stored(cluster))
    todo = zip(names, claimed, strict=True)
    told = await asyncio.gather(
        *(store.aexecute(Complete(n, c.token, ANSWER, 60.0, 60.0)) for n, c in todo)
    )
    assert told == [True] * 200
    found = await asyncio.to_thread(store.execute, Lookup(names[0]))
    assert found.record.response == ANSWER


def test_what_is_remembered_is_found_wherever_it_lies(store: Any) -> None:
    names = {os.urandom(16) for _ in range(20)}
    for name in names:
        store.execute(claim(name, b"request"))
    found = store.execute(Abandoned(100, -60.0))
    assert {remembered.key for remembered in found} == names


def test_a_cluster_that_is_named_as_one_server_is_refused(cluster: ValkeyCluster) -> None:
    with pytest.raises(StoreSetupError, match=r"redis\+cluster://"):
        RedisStore(cluster.nodes[0].url).start()


def test_one_server_that_is_named_as_a_cluster_is_refused() -> None:
    with running(Valkey) as server, pytest.raises(StoreSetupError):
        RedisStore(server.url, cluster=True, timeout=1).start()


def test_eviction_on_any_node_is_refused(cluster: ValkeyCluster, store: Any) -> None:
    node = redis_py.Redis(port=cluster.nodes[2].port)
    node.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(StoreSetupError, match="set maxmemory-policy noeviction"):
            open_store(cluster.url).start()
    finally:
        node.config_set("maxmemory-policy", "noeviction")


async def test_a_node_that_goes_and_comes_back(cluster: ValkeyCluster, store: Any) -> None:
    """Without a replica its keys cannot be had meanwhile, and without a log they are lost."""

    async def go() -> list[Any]:
        names = [os.urandom(16) for _ in range(60)]
        asked = (store.aexecute(claim(name)) for name in names)
        return await asyncio.gather(*asked, return_exceptions=True)

    assert all(isinstance(reply, Claimed) for reply in await go())
    cluster.nodes[1].crash()
    told = await go()
    assert all(isinstance(reply, (Claimed, StoreError)) for reply in told), told
    assert any(isinstance(reply, StoreError) for reply in told)
    cluster.nodes[1].start()
    deadline = time.monotonic() + 60
    while True:
        told = await go()
        if all(isinstance(reply, Claimed) for reply in told):
            break
        assert all(isinstance(reply, (Claimed, StoreError)) for reply in told), told
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
    name = os.urandom(16)
    assert isinstance(await asyncio.to_thread(store.execute, claim(name)), Claimed)
    assert isinstance(await store.aexecute(claim(name)), Found)
    assert store.execute(Sweep(10)) == 0
