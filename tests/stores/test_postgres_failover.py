"""PostgreSQL with a standby that takes over: what is lost, what is not, and who is refused."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from semel.core.commands import Claim, Complete, Found, Lookup, Open, StoreError, StoreUnknown
from semel.core.record import Response
from semel.stores import StoreSetupError
from semel.stores.postgres import PostgreSQLStore
from semel.stores.postgres import transaction as postgres_transaction
from semel.testing.proxy import Proxy
from semel.testing.servers import PostgreSQL, Standby, running

ANSWER = Response(201, (), b"done")


@pytest.fixture
def primary() -> Iterator[PostgreSQL]:
    with running(PostgreSQL) as made:
        with psycopg.connect(made.url, autocommit=True) as connection:
            connection.execute("create table orders (key bytea)")
        yield made


@pytest.fixture
def between(primary: PostgreSQL) -> Iterator[Proxy]:
    """The network between the two."""
    made = Proxy(primary.port)
    yield made
    made.close()


@pytest.fixture
def standby(primary: PostgreSQL, between: Proxy) -> Iterator[Standby]:
    made = Standby(primary, port=between.port)
    made.start()
    yield made
    made.close()


@pytest.fixture
def store(primary: PostgreSQL) -> Iterator[PostgreSQLStore]:
    made = PostgreSQLStore(primary.url)
    made.start()
    yield made
    made.stop()


def order(store: PostgreSQLStore) -> bytes:
    """One operation, in one transaction; it was answered if this returns."""
    name = os.urandom(16)
    opened: Any = store.open(Open(name, b"\x01f", b"me"))
    opened.connection.execute("insert into orders values (%s)", (name,))
    assert opened.complete(Complete(name, opened.token, ANSWER, 600.0, 600.0)) is True
    return name


def caught_up(primary: PostgreSQL) -> None:
    deadline = time.monotonic() + 60
    with psycopg.connect(primary.url, autocommit=True) as connection:
        query = "select count(*) from pg_stat_replication where replay_lsn >= pg_current_wal_lsn()"
        while connection.execute(query).fetchone() != (1,):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def wait_for_the_standby(primary: PostgreSQL) -> None:
    """Have the primary call nothing committed before its standby has it."""
    with psycopg.connect(primary.url, autocommit=True) as connection:
        connection.execute("alter system set synchronous_standby_names = '*'")
        connection.execute("select pg_reload_conf()")
        deadline = time.monotonic() + 60
        query = "select count(*) from pg_stat_replication where sync_state = 'sync'"
        while connection.execute(query).fetchone() != (1,):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def what_is_there(standby: Standby, names: list[bytes]) -> list[tuple[bool, bool]]:
    """Whether the key and the order of each are there."""
    after = PostgreSQLStore(standby.url)
    after.start()
    with psycopg.connect(standby.url) as connection:
        orders = {key for (key,) in connection.execute("select key from orders")}
    there = [(isinstance(after.execute(Lookup(n)), Found), n in orders) for n in names]
    after.stop()
    return there


def test_an_asynchronous_standby_lacks_the_last_keys_and_their_effects_together(
    primary: PostgreSQL, between: Proxy, standby: Standby, store: PostgreSQLStore
) -> None:
    """The admitted weakness: what was answered is gone, and a retry runs again."""
    copied = order(store)
    caught_up(primary)
    between.black_hole = True
    lost = order(store)
    primary.immediate()
    between.close()
    standby.promote()
    assert what_is_there(standby, [copied, lost]) == [(True, True), (False, False)]
    again = PostgreSQLStore(standby.url)
    assert order(again) != lost
    again.stop()


def test_a_synchronous_standby_has_all_that_was_answered(
    primary: PostgreSQL, between: Proxy, standby: Standby, store: PostgreSQLStore
) -> None:
    wait_for_the_standby(primary)
    answered = [order(store) for _ in range(30)]
    primary.immediate()
    standby.promote()
    assert set(what_is_there(standby, answered)) == {(True, True)}


def test_a_stale_primary_of_a_synchronous_pair_acknowledges_nothing(
    primary: PostgreSQL,
    between: Proxy,
    standby: Standby,
    store: PostgreSQLStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes on running beside the promoted one, and servers still talk to it."""
    wait_for_the_standby(primary)
    answered = order(store)
    standby.promote()
    monkeypatch.setattr(postgres_transaction, "COMMIT_LIMIT", 1.0)
    with pytest.raises(StoreUnknown):
        order(store)
    assert what_is_there(standby, [answered]) == [(True, True)]


def test_a_standby_is_refused_and_the_primary_is_found_among_several(
    primary: PostgreSQL, standby: Standby, store: PostgreSQLStore
) -> None:
    caught_up(primary)
    with pytest.raises(StoreSetupError, match="target_session_attrs=read-write"):
        PostgreSQLStore(standby.url).start()
    both = f"postgresql://postgres@127.0.0.1:{standby.port},127.0.0.1:{primary.port}/postgres"
    found = PostgreSQLStore(f"{both}?target_session_attrs=read-write", timeout=5)
    found.start()
    before = order(found)
    caught_up(primary)
    primary.immediate()
    with pytest.raises(StoreError):
        found.execute(Claim(os.urandom(16), b"\x01f", 30.0, b"me"))
    standby.promote()
    deadline = time.monotonic() + 30
    while True:
        try:
            after = order(found)
            break
        except StoreError:
            assert time.monotonic() < deadline
    found.stop()
    assert what_is_there(standby, [before, after]) == [(True, True)] * 2
