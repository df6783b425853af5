"""DjangoStore beyond the contract: its transaction, its connections, and networks that lose."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import DatabaseError
from django.db.transaction import TransactionManagementError

from semel.core.commands import (
    Claim,
    Complete,
    Lookup,
    Park,
    Recorded,
    RecordStep,
    Release,
    Renew,
    Settle,
    Steps,
    StoreUnavailable,
    StoreUnknown,
    Sweep,
    Takeover,
)
from semel.core.record import Response, State
from semel.stores import StoreSetupError
from semel.stores.django import DjangoStore
from semel.stores.django.errors import translate
from semel.testing.proxy import Proxy
from tests import servers
from tests.django import project, views
from tests.django.shop.models import Charge
from tests.django.test_middleware import JSON, orders

KEY, OTHER = b"k" * 16, b"o" * 16
PRINT = b"\x01" + b"f" * 32
ANSWER = Response(201, ((b"a", b"b"),), b"body")
SERVERS = ["postgresql", "mariadb"]


@pytest.fixture
def store(database: Any) -> Iterator[DjangoStore]:
    made = DjangoStore(command_connections=1, timeout=2)
    made.start()
    yield made
    made.stop()


def claimed(store: DjangoStore, key: bytes = KEY, lease: float = 30.0) -> int:
    return store.execute(Claim(key, PRINT, lease, b"me")).token


def complete(token: int) -> Complete:
    return Complete(KEY, token, ANSWER, 60.0, 60.0)


def test_writes_and_record_commit_together(store: DjangoStore) -> None:
    token = claimed(store)
    transaction = store.begin()
    Charge.objects.create(order="o")
    assert store.execute(Lookup(KEY)).record.state is State.IN_FLIGHT
    assert transaction.complete(complete(token)) is True
    assert store.execute(Lookup(KEY)).record.response == ANSWER
    assert orders() == ["o"]


def test_a_zombie_commits_nothing(store: DjangoStore) -> None:
    token = claimed(store, lease=0.0)
    transaction = store.begin()
    if transaction.connection.vendor != "sqlite":  # there the zombie holds the one writer
        Charge.objects.create(order="zombie")
        taken = store.execute(Takeover(KEY, token, PRINT, 30.0, b"you", expired=False))
        assert taken.attempt == 2
    else:
        transaction.rollback()
        taken = store.execute(Takeover(KEY, token, PRINT, 30.0, b"you", expired=False))
        transaction = store.begin()
        Charge.objects.create(order="zombie")
    assert transaction.complete(complete(token)) is False
    assert orders() == []
    assert store.execute(Lookup(KEY)).record.token == taken.token


def test_commands_in_an_open_transaction_neither_wait_for_it_nor_go_with_it(
    store: DjangoStore, vendor: str
) -> None:
    token = claimed(store)
    transaction = store.begin()
    Charge.objects.create(order="o")
    store.execute(RecordStep(KEY, token, "call", b"done", 60.0))
    if vendor != "sqlite":  # its one writer is the transaction
        assert store.execute(Renew(((KEY, token),), 30.0)) == frozenset()
    transaction.rollback()
    assert store.execute(Steps(KEY)) == {"call": b"done"}
    assert store.execute(Release(KEY, token)) is True
    assert orders() == []


def test_a_transaction_inside_another_is_refused(store: DjangoStore) -> None:
    first = store.begin()
    with pytest.raises(StoreUnavailable, match="in a transaction already"):
        store.begin()
    first.rollback()
    first.rollback()


def test_a_transaction_is_not_committed_from_within_an_atomic_of_the_view(
    store: DjangoStore,
) -> None:
    from django.db import transaction

    token = claimed(store)
    outer = store.begin()
    with transaction.atomic():
        Charge.objects.create(order="o")
        with pytest.raises(StoreUnavailable, match="still open"):
            outer.complete(complete(token))
        outer.rollback()
    outer.rollback()
    assert orders() == []


@pytest.mark.parametrize("vendor", ["mariadb"])
def test_a_deadlock_that_the_view_has_swallowed_commits_no_record_without_its_effect(
    store: DjangoStore, database: Any
) -> None:
    """InnoDB has undone all of it, and Django does not know: the statement was a plain select."""
    from django.db import OperationalError

    first, second = Charge.objects.create(order="1"), Charge.objects.create(order="2")
    token = claimed(store)
    transaction = store.begin()
    Charge.objects.create(order="effect")
    locked = Charge.objects.select_for_update()
    locked.get(pk=first.pk)
    has_second = threading.Event()
    other = threading.Thread(target=_locks, args=(second.pk, first.pk, has_second))
    other.start()
    assert has_second.wait(20)
    with pytest.raises(OperationalError, match="eadlock"):
        locked.get(pk=second.pk)
    other.join(20)
    assert not database.needs_rollback
    Charge.objects.create(order="after")
    with pytest.raises(StoreUnavailable, match="no record was committed"):
        transaction.complete(complete(token))
    assert orders() == ["1", "2"]
    assert store.execute(Lookup(KEY)).record.state is State.IN_FLIGHT


@pytest.mark.parametrize("vendor", ["mariadb"])
def test_ddl_in_a_view_commits_what_came_before_it_and_no_record(
    store: DjangoStore, database: Any
) -> None:
    """A weakness that the guide names."""
    token = claimed(store)
    transaction = store.begin()
    Charge.objects.create(order="before")
    with database.cursor() as cursor:
        cursor.execute("create or replace table scratch (id integer)")
    Charge.objects.create(order="after")
    with pytest.raises(StoreUnavailable, match="had ended before it"):
        transaction.complete(complete(token))
    assert orders() == ["before"]
    assert store.execute(Lookup(KEY)).record.state is State.IN_FLIGHT


def _locks(first: int, second: int, has_first: threading.Event) -> None:
    """Lock two rows. It has written more than the test has, so the test is InnoDB's victim."""
    from django.db import connection, transaction

    try:
        with transaction.atomic():
            Charge.objects.filter(pk=first).update(amount=2)
            Charge.objects.bulk_create(Charge(order="x") for _ in range(200))
            has_first.set()
            Charge.objects.filter(pk=second).update(amount=2)
            transaction.set_rollback(True)
    finally:
        connection.close()


@pytest.mark.parametrize("vendor", ["sqlite"])
def test_a_transaction_that_sqlite_has_undone_unseen_commits_no_record(
    store: DjangoStore, database: Any
) -> None:
    from django.db import IntegrityError

    token = claimed(store)
    transaction = store.begin()
    effect = Charge.objects.create(order="effect")
    again = "insert or rollback into shop_charge (id, \"order\", amount) values (%s, 'x', 1)"
    with database.cursor() as cursor, pytest.raises(IntegrityError):
        cursor.execute(again, [effect.pk])
    Charge.objects.create(order="after")
    with pytest.raises(StoreUnavailable, match="no record was committed"):
        transaction.complete(complete(token))
    assert store.execute(Lookup(KEY)).record.state is State.IN_FLIGHT
    assert "effect" not in orders()


@pytest.mark.parametrize("vendor", SERVERS)
def test_a_deadlock_is_tried_again(store: DjangoStore, database: Any) -> None:
    from django.db import transaction

    token = claimed(store)
    record = RecordStep(KEY, token, "call", b"first", 60.0)
    store.execute(record)
    recorded: list[Any] = []
    again = record._replace(result=b"second")
    thread = threading.Thread(target=lambda: recorded.append(store.execute(again)))
    try:
        with transaction.atomic(), database.cursor() as cursor:
            cursor.execute("update semel_step set purge_at = purge_at + 1")
            thread.start()
            thread.join(0.3)  # it has the record and waits for the step
            cursor.execute("update semel_record set attempt = attempt")
    except Exception as error:
        assert "eadlock" in str(error)  # the database has chosen the test
    thread.join(20)
    assert recorded == [Recorded(b"first")]


@contextlib.contextmanager
def locked(database: Any, key: bytes) -> Iterator[None]:
    """A record that another process has updated and stands still before its commit."""
    from django.db import transaction

    with transaction.atomic(), database.cursor() as cursor:
        touch = f"update semel_record set reason = 'x' where {database.ops.quote_name('key')} = %s"
        cursor.execute(touch, [key])
        yield
        transaction.set_rollback(True)


@pytest.mark.parametrize("vendor", SERVERS)
def test_a_repeat_waits_for_no_commit(store: DjangoStore, database: Any) -> None:
    """Each would take a connection for commands, and soon there were none for other keys."""
    token = claimed(store)
    with locked(database, KEY):
        repeat = at_once(lambda: store.execute(Claim(KEY, PRINT, 30.0, b"you")))
        assert repeat.record.token == token
        assert at_once(lambda: claimed(store, OTHER)) > token


def at_once(work: Any) -> Any:
    """What work gives, which waits for nobody: it has a thread, for the test holds the lock."""
    told: list[Any] = []
    thread = threading.Thread(target=lambda: told.append(work()), daemon=True)
    thread.start()
    thread.join(5)
    assert told, "it waits"
    return told[0]


@pytest.mark.parametrize("vendor", SERVERS)
@pytest.mark.parametrize(
    "writes",
    [
        lambda token: Release(KEY, token),
        lambda token: Complete(KEY, token, ANSWER, 60.0, 60.0),
        lambda token: Park(KEY, token, "who knows", False),
        lambda token: RecordStep(KEY, token, "call", b"done", 60.0),
    ],
    ids=["release", "complete", "park", "step"],
)
def test_no_command_waits_for_a_lock_for_ever(
    short: None, store: DjangoStore, database: Any, writes: Any
) -> None:
    command = writes(claimed(store))
    with locked(database, KEY), pytest.raises(StoreUnavailable, match="timeout"):
        store.execute(command)
    assert store.execute(command)


@pytest.mark.parametrize("vendor", SERVERS)
def test_neither_a_claim_nor_a_settlement_nor_a_sweep_waits_for_ever(
    short: None, store: DjangoStore, database: Any
) -> None:
    from django.db import transaction

    with transaction.atomic():
        inserted = store.apply(database, Claim(KEY, PRINT, 30.0, b"other"))
        with pytest.raises(StoreUnavailable, match="timeout"):
            claimed(store)  # there is nothing to be read yet
    assert store.execute(Park(KEY, inserted.token, "who knows", False))
    settle = Settle(KEY, inserted.token, ANSWER, 0.0, 0.0)
    with locked(database, KEY), pytest.raises(StoreUnavailable, match="timeout"):
        store.execute(settle)
    assert store.execute(settle)
    with locked(database, KEY):
        assert at_once(lambda: [store.execute(Sweep(10))]) == [0]  # rows in use are left
    assert store.execute(Sweep(10)) == 1


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait of a second, where the store's own is ten."""
    postgresql, mysql = "set local lock_timeout = '1s'", "set innodb_lock_wait_timeout = 1"
    monkeypatch.setattr("semel.stores.django.connection._LOCK_TIMEOUT", postgresql)
    monkeypatch.setattr("semel.stores.django.pool._LOCK_TIMEOUT", mysql)


@pytest.mark.parametrize("vendor", SERVERS)
@pytest.mark.parametrize("skips", [True, False])
def test_a_record_that_is_locked_holds_up_the_renewal_of_no_other(
    short: None, store: DjangoStore, database: Any, skips: bool
) -> None:
    first, last = claimed(store, KEY), claimed(store, OTHER)
    before = store.execute(Lookup(OTHER)).record.lease_until
    claims = ((KEY, first), (OTHER, last), (b"n" * 16, 10**6))
    with store._opened().pool.take() as connection:
        connection.features.has_select_for_update_skip_locked = skips
    with locked(database, KEY):
        if skips:
            assert at_once(lambda: store.execute(Renew(claims, 99.0))) == {10**6}
        else:  # MariaDB before 10.6
            with pytest.raises(StoreUnavailable, match="timeout"):
                store.execute(Renew(claims, 99.0))
        assert store.execute(Lookup(OTHER)).record.lease_until > before + 50
    assert store.execute(Renew(claims, 99.0)) == {10**6}


@pytest.mark.parametrize("vendor", SERVERS)
def test_a_connection_that_died_idle_is_replaced(store: DjangoStore, database: Any) -> None:
    claimed(store)
    with store._opened().pool.take() as connection:
        kill(database, connection)
    assert store.execute(Lookup(KEY)).record.owner == b"me"


@pytest.mark.parametrize("vendor", SERVERS)
def test_stop_closes_every_connection_of_the_store(database: Any) -> None:
    store = DjangoStore(command_connections=3)
    pool = store._opened().pool
    with pool.take() as first, pool.take() as second, pool.take() as third:
        made = (first, second, third)
    assert all(connection.connection is not None for connection in made)
    store.stop()
    assert [connection.connection for connection in made] == [None] * 3
    with pytest.raises(StoreUnavailable, match="has been stopped"), pool.take():
        pass


@pytest.mark.parametrize("vendor", ["sqlite"])
@pytest.mark.parametrize("code", [1053, 1180, 1317, 1927, 2013, 3024])
def test_a_session_that_mysql_has_cut_off_leaves_the_outcome_unknown(
    database: Any, code: int
) -> None:
    from django.db import OperationalError

    error = OperationalError(code, "cut off")
    assert isinstance(translate(error, sent=True), StoreUnknown)
    assert isinstance(translate(error, sent=False), StoreUnavailable)
    assert isinstance(translate(OperationalError(1205, "lock"), sent=True), StoreUnavailable)


def kill(database: Any, other: Any) -> None:
    with other.cursor() as cursor:
        of = {"postgresql": "select pg_backend_pid()", "mysql": "select connection_id()"}
        cursor.execute(of[database.vendor])
        number = cursor.fetchone()[0]
    with database.cursor() as cursor:
        end = {"postgresql": "select pg_terminate_backend(%s)", "mysql": "kill %s"}
        cursor.execute(end[database.vendor], [number])


@pytest.fixture
def proxy(database: Any, vendor: str) -> Iterator[Proxy]:
    """The default database, through a network that loses."""
    server = servers.postgresql() if vendor == "postgresql" else servers.mariadb()
    made = Proxy(server.port)
    through = {**database.settings_dict, "HOST": "127.0.0.1", "PORT": made.port}
    project.use("default", through)
    yield made
    project.connections["default"].close()
    made.close()


@pytest.mark.parametrize("vendor", SERVERS)
def test_a_lost_answer_to_commit_is_read_back(proxy: Proxy, serve: Any, vendor: str) -> None:
    client = serve()
    assert client.send("/charge", key="warm", body=JSON).status == 201
    proxy.cut_answer_to = b"COMMIT" if vendor == "postgresql" else b"\x03COMMIT"
    assert client.send("/charge", body=JSON).status == 201
    assert proxy.cuts == 1
    assert client.send("/charge", body=JSON).replayed
    assert (orders(), len(views.runs)) == (["o1", "o1"], 2)


@pytest.mark.parametrize("vendor", SERVERS)
def test_a_connection_cut_in_the_middle_of_a_view_has_done_nothing(
    proxy: Proxy, serve: Any
) -> None:
    client = serve()
    assert client.send("/charge", key="warm", body=JSON).status == 201
    proxy.cut_answer_to = b"shop_charge"
    assert client.send("/charge", body=JSON).status in (500, 503)
    assert proxy.cuts == 1
    again = client.send("/charge", body=JSON)
    assert (again.status, again.replayed) == (201, False)
    assert orders() == ["o1", "o1"]


SNAPSHOTS = {
    "postgresql": {"options": "-c default_transaction_isolation=repeatable\\ read"},
    "mariadb": {
        "isolation_level": "repeatable read",
        "init_command": "set session innodb_snapshot_isolation = on",
    },
}


@pytest.fixture
def on_snapshots(database: Any, vendor: str) -> Iterator[None]:
    project.use("default", {**database.settings_dict, "OPTIONS": SNAPSHOTS[vendor]})
    yield
    project.connections["default"].close()


@pytest.mark.parametrize("vendor", SERVERS)
def test_on_snapshots_a_claim_that_was_renewed_cannot_commit_and_that_is_warned_of(
    on_snapshots: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A weakness that the guide names: whatever takes longer than a third of its lease."""
    store = DjangoStore()
    with caplog.at_level("WARNING", "semel"):
        store.start()
    assert "raise the lease" in caplog.text
    token = claimed(store)
    short = store.begin()
    Charge.objects.create(order="short")
    assert short.complete(complete(token)) is True
    token = claimed(store, OTHER)
    long = store.begin()
    assert orders_inside() == ["short"]  # its snapshot
    assert store.execute(Renew(((OTHER, token),), 99.0)) == frozenset()
    with pytest.raises(StoreUnavailable):
        long.complete(complete(token)._replace(key=OTHER))
    store.stop()


def orders_inside() -> list[str]:
    return list(Charge.objects.values_list("order", flat=True))


@pytest.mark.parametrize("vendor", SERVERS)
def test_read_committed_is_warned_of_nothing(
    database: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = DjangoStore()
    with caplog.at_level("WARNING", "semel"):
        store.start()
    assert caplog.text == ""
    store.stop()


@pytest.mark.parametrize("vendor", ["sqlite"])
def test_a_database_without_the_tables_is_refused_with_the_way_to_them(
    database: Any, tmp_path: Any
) -> None:
    empty = project.database("sqlite", "empty", tmp_path)
    project.connections.settings["empty"] = {**database.settings_dict, **empty}
    with pytest.raises(StoreSetupError, match=r"manage\.py migrate"):
        DjangoStore("empty").start()
    with pytest.raises(StoreSetupError, match="command_connections"):
        DjangoStore(command_connections=0)


@pytest.mark.parametrize("said", ["commit", "ROLLBACK", "begin", "-- now\nend"])
def test_a_statement_does_not_end_the_transaction(
    store: DjangoStore, database: Any, said: str
) -> None:
    token = claimed(store)
    transaction = store.begin()
    Charge.objects.create(order="before")
    with database.cursor() as cursor:
        with pytest.raises(TransactionManagementError, match="belongs to the operation"):
            cursor.execute(said)
        cursor.execute("savepoint mine")
        cursor.execute("rollback to savepoint mine")
    assert transaction.complete(complete(token)) is True
    assert orders() == ["before"]
    assert database.execute_wrappers == []


def test_a_thread_does_not_get_at_the_views_connection(store: DjangoStore, database: Any) -> None:
    transaction = store.begin()
    told: list[BaseException] = []

    def go_on() -> None:
        try:
            transaction.connection.cursor().execute("select 1")
        except DatabaseError as error:
            told.append(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    thread.join()
    transaction.rollback()
    assert "can only be used in that same thread" in str(told[0])
    assert database.execute_wrappers == []
