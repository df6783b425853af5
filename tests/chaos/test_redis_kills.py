"""Real `kill -9` of processes and of the server on Valkey, and what its failover loses."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
import redis as redis_py

from lab.chaos.databases import DATABASE
from lab.chaos.databases_redis import RedisUnderTest, always_written
from lab.chaos.kills import storm, zombies
from lab.judge.findings import summary
from semel.core.commands import Claim, Claimed, Complete, Found, Lookup, StoreUnavailable
from semel.core.record import Response
from semel.stores.redis import RedisStore
from semel.testing.proxy import Proxy
from semel.testing.servers import Valkey, running

pytestmark = pytest.mark.chaos
ANSWER = Response(201, (), b"done")


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with running(always_written) as made:
        yield made


def test_at_most_once_parks_and_never_doubles(server: Valkey) -> None:
    report, killed = storm(
        "at-most-once", 60, seed=1, database=lambda folder: RedisUnderTest(server)
    )
    print(summary(report), killed)
    report.require("S1", "S2", "S3", "L1")
    assert not report.admitted
    assert killed[DATABASE]


def test_at_least_once_keeps_what_it_promises_and_is_shown_to_double(server: Valkey) -> None:
    report, _ = storm(
        "at-least-once",
        20,
        seed=2,
        point="before_complete",
        database=lambda f: RedisUnderTest(server),
    )
    report.require("S2", "S3")
    assert report.admitted, "the documented weakness did not show: the docs or the rig are wrong"


def test_zombies_are_fenced(server: Valkey) -> None:
    report = zombies("at-most-once", 8, database=lambda folder: RedisUnderTest(server))
    report.require("S1", "S2")


def test_a_server_that_writes_nothing_to_disk_loses_keys_and_they_run_again() -> None:
    """The admitted weakness, at most once as it may be called."""
    with running(Valkey) as forgetful:
        report, _ = storm(
            "at-most-once",
            6,
            seed=3,
            point=DATABASE,
            database=lambda folder: RedisUnderTest(forgetful),
        )
    assert any(violation.invariant == "S1" for violation in report.violations), summary(report)


def _replica(behind: int, *settings: str) -> Valkey:
    return Valkey("--replicaof", f"127.0.0.1 {behind}", *settings)


def _copied(replica: Valkey) -> None:
    client = redis_py.Redis(port=replica.port)
    deadline = time.monotonic() + 30
    while client.info("replication")["master_link_status"] != "up":  # type: ignore[index]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _done(store: RedisStore) -> bytes:
    name = os.urandom(16)
    claimed = store.execute(Claim(name, b"\x01f", 30.0, b"me"))
    assert isinstance(claimed, Claimed)
    assert store.execute(Complete(name, claimed.token, ANSWER, 600.0, 600.0)) is True
    return name


def test_a_replica_that_takes_over_has_not_what_was_not_copied() -> None:
    """The admitted weakness: an operation that was answered runs again."""
    with running(Valkey) as primary:
        between = Proxy(primary.port)
        with running(lambda: _replica(between.port)) as replica:
            _copied(replica)
            store, after = RedisStore(primary.url), RedisStore(replica.url)
            copied = _done(store)
            assert redis_py.Redis(port=primary.port).wait(1, 10_000) == 1
            between.black_hole = True
            lost = _done(store)
            primary.crash()
            between.close()
            redis_py.Redis(port=replica.port).replicaof("NO", "ONE")
            assert isinstance(after.execute(Lookup(copied)), Found)
            assert isinstance(after.execute(Claim(lost, b"\x01f", 30.0, b"me")), Claimed)


def test_min_replicas_to_write_bounds_what_a_failover_loses() -> None:
    """A primary that no replica hears any more refuses keys, and nothing runs."""
    bounded = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "1")
    with running(lambda: Valkey(*bounded, "--repl-ping-replica-period", "1")) as primary:
        between = Proxy(primary.port)
        with running(lambda: _replica(between.port)) as replica:
            _copied(replica)
            store = RedisStore(primary.url)
            deadline = time.monotonic() + 30
            while True:  # until the replica's first word has come
                try:
                    _done(store)
                    break
                except StoreUnavailable:
                    assert time.monotonic() < deadline
            between.black_hole = True
            with pytest.raises(StoreUnavailable, match=r"(?i)good replicas"):
                while time.monotonic() < deadline:
                    _done(store)
            between.close()
