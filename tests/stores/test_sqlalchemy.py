"""The SQLAlchemy store beyond the contract: sessions, the commit, snapshots, what breaks."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import (
    Engine,
    ForeignKey,
    MetaData,
    QueuePool,
    String,
    create_engine,
    event,
    exc,
    func,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.ext.asyncio import create_async_engine as create_async
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from semel import ASGIMiddleware, Idempotency, failpoints
from semel.core.commands import (
    Claim,
    Claimed,
    Complete,
    Found,
    Lookup,
    RecordStep,
    Release,
    Renew,
    Steps,
    StoreUnavailable,
    StoreUnknown,
    Takeover,
)
from semel.core.record import Response, State
from semel.failpoints import Failpoint
from semel.stores import StoreSetupError, open_store
from semel.stores.sqlalchemy import SQLAlchemyStore, metadata
from semel.stores.sqlalchemy.engines import CommandEngines
from semel.testing.proxy import Proxy
from semel.web.fastapi import Op
from tests import servers

PRINT = b"\x01" + b"f" * 32
ANSWER = Response(201, (), b"charged")
_numbers = itertools.count()


class Base(DeclarativeBase):
    pass


class Charge(Base):
    __tablename__ = "charge"
    __table_args__ = {"mysql_engine": "InnoDB"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)


class Line(Base):
    __tablename__ = "line"
    id: Mapped[int] = mapped_column(primary_key=True)
    charge_id: Mapped[int] = mapped_column(ForeignKey("charge.id"))


URLS = {
    "sqlite": ("sqlite", "sqlite+aiosqlite"),
    "postgresql": ("postgresql+psycopg", "postgresql+asyncpg"),
    "mariadb": ("mysql+pymysql", "mysql+asyncmy"),
}


class Place:
    """A database of one test."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        name = f"sa{next(_numbers)}"
        plain = {
            "sqlite": lambda: f"sqlite:///{folder / 'shop.db'}",
            "postgresql": lambda: servers.postgresql().database(name),
            "mariadb": lambda: servers.mariadb().database(name),
        }[kind]()
        self.url = make_url(plain)
        self.engine = self.make(pool_size=5)
        Base.metadata.create_all(self.engine)

    def make(self, *, port: int | None = None, **options: Any) -> Engine:
        return create_engine(self._url(0, port), poolclass=QueuePool, **options)

    def make_async(self, *, port: int | None = None, **options: Any) -> AsyncEngine:
        return create_async(self._url(1, port), **options)

    def _url(self, which: int, port: int | None) -> Any:
        url = self.url.set(drivername=URLS[self.kind][which])
        return url.set(port=port) if port else url

    def charges(self) -> list[str]:
        with self.engine.connect() as connection:
            return list(connection.scalars(select(Charge.name).order_by(Charge.id)))


@pytest.fixture(params=URLS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made = Place(request.param, tmp_path)
    yield made
    made.engine.dispose()


@pytest.fixture
def mariadb(tmp_path: Path) -> Iterator[Place]:
    made = Place("mariadb", tmp_path)
    yield made
    made.engine.dispose()


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[Place]:
    made = Place("postgresql", tmp_path)
    yield made
    made.engine.dispose()


@pytest.fixture
def store(place: Place) -> Iterator[SQLAlchemyStore]:
    made = SQLAlchemyStore(place.engine)
    made.start()
    yield made
    made.stop()


def claim(key: bytes, lease: float = 30.0) -> Claim:
    return Claim(key, PRINT, lease, b"me")


def complete(key: bytes, token: int) -> Complete:
    return Complete(key, token, ANSWER, 3600.0, 3600.0)


def claimed(store: SQLAlchemyStore, key: bytes, lease: float = 30.0) -> int:
    won = store.execute(claim(key, lease))
    assert isinstance(won, Claimed)
    return won.token


def state(store: SQLAlchemyStore, key: bytes) -> State | None:
    found = store.execute(Lookup(key))
    return found.record.state if isinstance(found, Found) else None


KEY = b"k" * 16


# --- the session --------------------------------------------------------------------------


def test_the_handlers_commit_is_a_savepoint(place: Place, store: SQLAlchemyStore) -> None:
    token = claimed(store, KEY)
    transaction = store.begin()
    session = transaction.session
    session.add(Charge(name="one"))
    session.commit()
    assert place.charges() == []
    session.add(Charge(name="two"))  # pending: written with the completion
    assert transaction.complete(complete(KEY, token)) is True
    assert place.charges() == ["one", "two"]
    assert state(store, KEY) is State.COMPLETED


def test_the_handlers_rollback_undoes_what_came_after_its_commit(
    place: Place, store: SQLAlchemyStore
) -> None:
    token = claimed(store, KEY)
    transaction = store.begin()
    session = transaction.session
    session.add(Charge(name="kept"))
    session.commit()
    session.add(Charge(name="undone"))
    session.flush()
    session.rollback()
    assert transaction.complete(complete(KEY, token)) is True
    assert place.charges() == ["kept"]


def test_an_error_of_the_database_can_be_survived_by_a_rollback(
    place: Place, store: SQLAlchemyStore
) -> None:
    token = claimed(store, KEY)
    transaction = store.begin()
    session = transaction.session
    session.add(Charge(name="one"))
    session.commit()
    session.add(Charge(name="one"))
    with pytest.raises(exc.IntegrityError):
        session.commit()
    session.rollback()
    session.add(Charge(name="two"))
    assert transaction.complete(complete(KEY, token)) is True
    assert place.charges() == ["one", "two"]


def test_pending_changes_that_cannot_be_flushed_undo_everything(
    place: Place, store: SQLAlchemyStore
) -> None:
    token = claimed(store, KEY)
    transaction = store.begin()
    transaction.session.add(Charge(name="one"))
    transaction.session.commit()
    transaction.session.add(Charge(name="one"))
    with pytest.raises(StoreUnavailable):
        transaction.complete(complete(KEY, token))
    assert place.charges() == []
    assert store.execute(Release(KEY, token)) is True


def test_session_and_connection_are_one_transaction(place: Place, store: SQLAlchemyStore) -> None:
    token = claimed(store, KEY)
    transaction = store.begin()
    transaction.connection.execute(text("insert into charge (name) values ('by connection')"))
    assert transaction.session is transaction.session
    assert transaction.session.scalar(select(func.count()).select_from(Charge)) == 1
    for ending in ("commit",):
        other = store.begin() if place.kind != "sqlite" else None
        if other is not None:
            with pytest.raises(exc.InvalidRequestError, match="belongs to the operation"):
                getattr(other.connection, ending)()
            other.rollback()
    assert transaction.complete(complete(KEY, token)) is True
    assert place.charges() == ["by connection"]


def test_a_commit_on_the_connection_is_refused_and_undoes_the_operation(
    place: Place, store: SQLAlchemyStore
) -> None:
    token = claimed(store, KEY)
    transaction = store.begin()
    transaction.connection.execute(text("insert into charge (name) values ('x')"))
    with pytest.raises(exc.InvalidRequestError, match="belongs to the operation"):
        transaction.connection.commit()
    with pytest.raises(StoreUnavailable):
        transaction.complete(complete(KEY, token))
    assert place.charges() == []


def test_nothing_can_be_had_after_the_end(store: SQLAlchemyStore) -> None:
    transaction = store.begin()
    transaction.rollback()
    with pytest.raises(exc.ResourceClosedError):
        transaction.session  # noqa: B018
    transaction.rollback()


def test_a_session_of_ones_own_making(place: Place) -> None:
    class Mine(Session):
        pass

    store = SQLAlchemyStore(place.engine, sessions=sessionmaker(place.engine, class_=Mine))
    store.start()
    transaction = store.begin()
    assert isinstance(transaction.session, Mine)
    transaction.session.add(Charge(name="x"))
    transaction.session.commit()
    transaction.rollback()
    assert place.charges() == []
    store.stop()


def test_one_that_was_taken_over_is_fenced(place: Place, store: SQLAlchemyStore) -> None:
    token = claimed(store, KEY, lease=0.0)
    transaction = store.begin() if place.kind != "sqlite" else None
    taken = store.execute(Takeover(KEY, token, PRINT, 30.0, b"you", expired=False))
    assert isinstance(taken, Claimed)
    assert taken.token > token
    transaction = transaction or store.begin()
    transaction.session.add(Charge(name="zombie"))
    assert transaction.complete(complete(KEY, token)) is False
    assert place.charges() == []
    assert store.execute(complete(KEY, taken.token)) is True


def test_the_pool_has_its_connection_back_clean(place: Place) -> None:
    engine = place.make(pool_size=1, max_overflow=0, pool_timeout=2)
    store = SQLAlchemyStore(engine)
    store.start()
    for number in range(3):
        key = bytes([number]) * 16
        token = claimed(store, key)
        transaction = store.begin()
        transaction.session.add(Charge(name=str(number)))
        # With the one connection held, a step has a connection all the same.
        store.execute(RecordStep(key, token, "call", b"1", 60.0))
        assert store.execute(Steps(key)) == {"call": b"1"}
        assert transaction.complete(complete(key, token)) is True
    assert place.charges() == ["0", "1", "2"]
    held = store.begin()
    with pytest.raises(StoreUnavailable):
        store.begin()
    held.rollback()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    store.stop()
    engine.dispose()


def test_a_failpoint_before_the_commit_leaves_nothing(place: Place, store: SQLAlchemyStore) -> None:
    token = claimed(store, KEY)
    transaction = store.begin()
    transaction.session.add(Charge(name="x"))
    failpoints.arm("before_commit=raise")
    try:
        with pytest.raises(StoreUnavailable) as raised:
            transaction.complete(complete(KEY, token))
    finally:
        failpoints.arm("")
    assert isinstance(raised.value.__cause__, Failpoint)
    assert place.charges() == []
    assert state(store, KEY) is State.IN_FLIGHT


# --- async --------------------------------------------------------------------------------


async def test_an_async_session_is_the_same(place: Place) -> None:
    engine = place.make_async()
    store = SQLAlchemyStore(engine)
    store.start()  # on a running loop, as in an application's lifespan
    won = await store.aexecute(claim(KEY))
    assert isinstance(won, Claimed)
    transaction = await store.abegin()
    session = transaction.async_session
    session.add(Charge(name="one"))
    await session.commit()
    session.add(Charge(name="undone"))
    await session.flush()
    await session.rollback()
    session.add(Charge(name="two"))
    with pytest.raises(StoreSetupError, match="async def"):
        transaction.session  # noqa: B018
    assert await transaction.acomplete(complete(KEY, won.token)) is True
    assert place.charges() == ["one", "two"]
    fenced = await store.abegin()
    fenced.async_session.add(Charge(name="late"))
    assert await fenced.acomplete(complete(KEY, won.token)) is False
    given_up = await store.abegin()
    given_up.async_session.add(Charge(name="given up"))
    await given_up.async_session.flush()
    given_up.rollback()
    await store.astop()
    assert engine.sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert place.charges() == ["one", "two"]
    await engine.dispose()


async def test_a_thread_beside_an_async_engine_is_served_and_refused_a_session(
    place: Place,
) -> None:
    engine = place.make_async()
    store = SQLAlchemyStore(engine)
    store.start()
    won = await store.aexecute(claim(KEY))
    assert isinstance(won, Claimed)
    renewed = await asyncio.to_thread(store.execute, Renew(((KEY, won.token),), 60.0))
    assert renewed == frozenset()
    with pytest.raises(StoreSetupError, match="create_engine"):
        await asyncio.to_thread(store.begin)
    await store.astop()
    await engine.dispose()


async def test_a_sync_engine_does_not_block_the_event_loop(place: Place) -> None:
    store = SQLAlchemyStore(place.engine)
    store.start()
    blocked = threading.Event()
    ticking = threading.Event()

    def wait(*_: Any) -> None:
        blocked.set()
        assert ticking.wait(20)  # in the driver's place: it is slow

    event.listen(store._engines.of_threads(), "commit", wait)
    asked = asyncio.create_task(store.aexecute(claim(KEY)))
    await asyncio.to_thread(blocked.wait)
    ticking.set()  # reached only where the loop runs on meanwhile
    assert isinstance(await asked, Claimed)
    with pytest.raises(StoreSetupError, match="create_async_engine"):
        await store.abegin()
    token = store.execute(Lookup(KEY)).record.token  # type: ignore[union-attr]
    transaction = await asyncio.to_thread(store.begin)  # a plain handler under ASGI
    transaction.session.add(Charge(name="plain"))
    assert await transaction.acomplete(complete(KEY, token)) is True
    assert place.charges() == ["plain"]
    store.stop()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
async def test_a_cancelled_command_discards_its_connection(kind: str, tmp_path: Path) -> None:
    place = Place(kind, tmp_path)
    proxy = Proxy(place.url.port)
    engine = place.make_async(port=proxy.port, pool_size=1, max_overflow=0)
    store = SQLAlchemyStore(engine)
    store.start()
    await store.aexecute(claim(KEY))
    proxy.black_hole = True
    asked = asyncio.create_task(store.aexecute(Lookup(KEY)))
    await asyncio.sleep(0.1)
    asked.cancel()
    await asyncio.sleep(0.1)
    proxy.black_hole = False
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert await store.aexecute(Lookup(b"o" * 16)) is None  # not the other's answer
    found = await store.aexecute(Lookup(KEY))
    assert isinstance(found, Found)
    await store.astop()
    await engine.dispose()
    proxy.close()
    place.engine.dispose()


# --- what breaks --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_lost_answer_to_the_commit_is_unknown_and_can_be_read_back(
    kind: str, tmp_path: Path
) -> None:
    place = Place(kind, tmp_path)
    proxy = Proxy(place.url.port)
    engine = place.make(port=proxy.port)
    store = SQLAlchemyStore(engine)
    store.start()
    token = claimed(store, KEY)
    transaction = store.begin()
    transaction.session.add(Charge(name="once"))
    transaction.session.flush()
    proxy.cut_answer_to = b"COMMIT"
    with pytest.raises(StoreUnknown):
        transaction.complete(complete(KEY, token))
    assert proxy.cuts == 1
    found = store.execute(Lookup(KEY))
    assert isinstance(found, Found)
    assert found.record.state is State.COMPLETED
    assert place.charges() == ["once"]
    store.stop()
    engine.dispose()
    proxy.close()
    place.engine.dispose()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
async def test_a_lost_answer_is_unknown_on_an_event_loop_too(kind: str, tmp_path: Path) -> None:
    place = Place(kind, tmp_path)
    proxy = Proxy(place.url.port)
    engine = place.make_async(port=proxy.port)
    store = SQLAlchemyStore(engine)
    store.start()
    won = await store.aexecute(claim(KEY))
    assert isinstance(won, Claimed)
    transaction = await store.abegin()
    transaction.async_session.add(Charge(name="once"))
    await transaction.async_session.flush()
    proxy.cut_answer_to = b"COMMIT"
    with pytest.raises(StoreUnknown):
        await transaction.acomplete(complete(KEY, won.token))
    assert proxy.cuts == 1
    found = await store.aexecute(Lookup(KEY))
    assert isinstance(found, Found)
    assert found.record.state is State.COMPLETED
    await store.astop()
    await engine.dispose()
    proxy.close()
    place.engine.dispose()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_connections_that_have_gone_stale_do_not_fail_a_command(kind: str, tmp_path: Path) -> None:
    place = Place(kind, tmp_path)
    proxy = Proxy(place.url.port)
    engine = place.make(port=proxy.port)
    store = SQLAlchemyStore(engine)
    store.start()
    token = claimed(store, KEY)
    proxy.cut_all()
    assert store.execute(complete(KEY, token)) is True
    with pytest.raises(StoreUnavailable):
        for _ in range(3):  # the listener lets one more in
            proxy.close()
            store.execute(Lookup(KEY))
    store.stop()
    engine.dispose()
    place.engine.dispose()


def test_a_serialization_failure_is_definite(postgresql: Place) -> None:
    engine = postgresql.make(isolation_level="SERIALIZABLE")
    store = SQLAlchemyStore(engine)
    store.start()
    keys = [b"a" * 16, b"b" * 16]
    tokens = [claimed(store, key) for key in keys]
    transactions = [store.begin(), store.begin()]
    for number, transaction in enumerate(transactions):  # write skew
        assert transaction.session.scalar(select(func.count()).select_from(Charge)) == 0
        transaction.session.add(Charge(name=str(number)))
        transaction.session.flush()
    assert transactions[0].complete(complete(keys[0], tokens[0])) is True
    with pytest.raises(StoreUnavailable):
        transactions[1].complete(complete(keys[1], tokens[1]))
    assert postgresql.charges() == ["0"]
    assert store.execute(Release(keys[1], tokens[1])) is True
    store.stop()
    engine.dispose()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_child_process_opens_connections_of_its_own(kind: str, tmp_path: Path) -> None:
    place = Place(kind, tmp_path)
    store = SQLAlchemyStore(place.engine)
    store.start()
    token = claimed(store, KEY)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            transaction = store.begin()
            transaction.session.add(Charge(name="by the child"))
            status = not transaction.complete(complete(KEY, token))
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert place.charges() == ["by the child"]  # on the parent's own, still whole
    assert state(store, KEY) is State.COMPLETED
    store.stop()
    place.engine.dispose()


# --- MariaDB's own pitfalls -----------------------------------------------------------------


def test_a_stale_snapshot_is_not_what_a_completion_is_judged_by(mariadb: Place) -> None:
    store = SQLAlchemyStore(mariadb.engine)
    store.start()
    token = claimed(store, KEY, lease=0.0)
    transaction = store.begin()
    level = transaction.connection.get_isolation_level()
    assert level == "REPEATABLE READ"  # the handler's own, as its engine says
    record = metadata.tables["semel_record"]
    seen = select(record.c.token).where(record.c.key == KEY)
    assert transaction.connection.scalar(seen) == token  # the snapshot is taken
    taken = store.execute(Takeover(KEY, token, PRINT, 30.0, b"you", expired=False))
    assert isinstance(taken, Claimed)
    assert transaction.connection.scalar(seen) == token  # it still says so
    transaction.session.add(Charge(name="zombie"))
    assert transaction.complete(complete(KEY, token)) is False
    assert mariadb.charges() == []
    store.stop()


def test_commands_are_in_read_committed_whatever_the_server_says(mariadb: Place) -> None:
    store = SQLAlchemyStore(mariadb.engine)
    store.start()
    with store._engines.of_threads().connect() as connection:
        assert connection.get_isolation_level() == "READ COMMITTED"
    with mariadb.engine.connect() as connection:  # the handlers' own is left alone
        assert connection.get_isolation_level() == "REPEATABLE READ"
    store.stop()


def test_names_of_steps_are_told_apart_by_every_byte(store: SQLAlchemyStore) -> None:
    token = claimed(store, KEY)
    names = ["a", "A", "a ", "ä", "ае"]
    for name in names:
        store.execute(RecordStep(KEY, token, name, name.encode(), 60.0))
    assert store.execute(Steps(KEY)) == {name: name.encode() for name in names}


def test_a_name_too_long_for_an_index_is_refused(mariadb: Place) -> None:
    store = SQLAlchemyStore(mariadb.engine)
    store.start()
    token = claimed(store, KEY)
    store.execute(RecordStep(KEY, token, "x" * 512, None, 60.0))
    with pytest.raises(ValueError, match="512 bytes"):
        store.execute(RecordStep(KEY, token, "x" * 513, None, 60.0))
    store.stop()


def test_claims_and_takeovers_that_collide_are_given_again(mariadb: Place) -> None:
    """Deadlocks happen (gap locks, S before X); none comes out, and each key has one winner."""
    store = SQLAlchemyStore(mariadb.make(pool_size=8))
    store.start()
    winners: dict[tuple[bytes, int], int] = {}
    failures: list[BaseException] = []
    barrier = threading.Barrier(6)
    lock = threading.Lock()

    def contend(number: int) -> None:
        try:
            for round_ in range(8):
                key = round_.to_bytes(16, "big")
                barrier.wait(30)
                told = store.execute(Claim(key, PRINT, 0.0, b"%d" % number))
                for _ in range(3):
                    if isinstance(told, Claimed):
                        with lock:
                            winners[key, told.token] = winners.get((key, told.token), 0) + 1
                        store.execute(Release(key, told.token))
                        told = store.execute(Claim(key, PRINT, 0.0, b"%d" % number))
                    elif isinstance(told, Found):
                        told = store.execute(
                            Takeover(key, told.record.token, PRINT, 0.0, b"%d" % number, False)
                        )
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=contend, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert set(winners.values()) == {1}  # no token was given to two
    store.stop()


def test_a_deadlock_that_a_handler_swallows_commits_no_record_without_its_effect(
    mariadb: Place,
) -> None:
    """InnoDB has undone the whole transaction: what comes after is another."""
    store = SQLAlchemyStore(mariadb.engine)
    store.start()
    with mariadb.engine.begin() as connection:
        connection.execute(text("insert into charge (name) values ('a'), ('b')"))
    locked = threading.Barrier(2)
    told: dict[str, bool | Exception] = {}

    def handle(name: str, first: str, then: str) -> None:
        key = name.encode() * 16
        token = claimed(store, key)
        transaction = store.begin()
        try:
            connection = transaction.connection
            connection.execute(text(f"insert into charge (name) values ('of {name}')"))
            lock = "select id from charge where name = '{}' for update"
            connection.execute(text(lock.format(first)))
            locked.wait(20)
            try:
                connection.execute(text(lock.format(then)))
            except exc.OperationalError:
                connection.execute(text("select 1"))  # swallowed
            told[name] = transaction.complete(complete(key, token))
        except Exception as error:
            told[name] = error
        finally:
            transaction.rollback()

    threads = [threading.Thread(target=handle, args=a) for a in (("x", "a", "b"), ("y", "b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (survivor,) = [name for name, value in told.items() if value is True]
    (victim,) = set(told) - {survivor}
    assert isinstance(told[victim], StoreUnavailable), told
    assert mariadb.charges() == ["a", "b", f"of {survivor}"]
    assert state(store, victim.encode() * 16) is State.IN_FLIGHT
    store.stop()


@pytest.mark.parametrize("kind", ["sqlite", "mariadb"])
def test_a_transaction_that_was_undone_beneath_its_handler_commits_no_record(
    kind: str, tmp_path: Path
) -> None:
    place = Place(kind, tmp_path)
    store = SQLAlchemyStore(place.engine)
    store.start()
    token = claimed(store, KEY)
    transaction = store.begin()
    transaction.connection.execute(text("insert into charge (name) values ('x')"))
    transaction.connection.exec_driver_sql("rollback")
    with pytest.raises(StoreUnavailable):
        transaction.complete(complete(KEY, token))
    assert (place.charges(), state(store, KEY)) == ([], State.IN_FLIGHT)
    store.stop()
    place.engine.dispose()


# --- setting up ---------------------------------------------------------------------------


def test_tables_that_are_missing_are_made_or_named(place: Place) -> None:
    with pytest.raises(StoreSetupError, match=r"semel_record.*Alembic"):
        SQLAlchemyStore(place.engine, create_tables=False).start()
    SQLAlchemyStore(place.engine).start()
    SQLAlchemyStore(place.engine, create_tables=False).start()


def test_an_index_lost_to_a_crash_is_made_up_for(place: Place) -> None:
    SQLAlchemyStore(place.engine).start()
    on = " on semel_record" if place.kind == "mariadb" else ""
    with place.engine.begin() as connection:
        connection.execute(text(f"drop index semel_record_due{on}"))
    SQLAlchemyStore(place.engine).start()
    there = {index["name"] for index in inspect(place.engine).get_indexes("semel_record")}
    assert "semel_record_due" in there


def test_the_tables_can_be_made_from_their_metadata_among_others(place: Place) -> None:
    everything = MetaData()
    for table in [*Base.metadata.sorted_tables, *metadata.sorted_tables]:
        table.to_metadata(everything)
    everything.create_all(place.engine)
    SQLAlchemyStore(place.engine, create_tables=False).start()


def test_servers_that_start_at_once_make_the_tables_once(place: Place) -> None:
    stores = [SQLAlchemyStore(place.make()) for _ in range(4)]
    failures: list[BaseException] = []

    def start(store: SQLAlchemyStore) -> None:
        try:
            store.start()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len({claimed(store, bytes([n]) * 16) for n, store in enumerate(stores)}) == 4
    for store in stores:
        store.stop()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SQLAlchemyStore("sqlite:///x.db"), "create_engine"),
        (lambda: SQLAlchemyStore(create_engine("sqlite://", isolation_level="AUTOCOMMIT")), "AUTO"),
        (lambda: SQLAlchemyStore(create_engine("sqlite://")).start(), "in memory"),
        (
            lambda: SQLAlchemyStore(create_engine("sqlite:///x.db"), sessions=async_sessionmaker()),
            "sessionmaker",
        ),
        (lambda: open_store("mysql://root@localhost/x"), "SQLAlchemyStore"),
        (lambda: open_store("postgresql+asyncpg://localhost/x"), "SQLAlchemyStore"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_fix(make: Any, says: str) -> None:
    with pytest.raises(StoreSetupError, match=says):
        make()


def test_a_store_that_was_not_started_says_so(place: Place) -> None:
    with pytest.raises(StoreUnavailable, match="not started"):
        SQLAlchemyStore(place.engine).execute(Lookup(KEY))


@pytest.mark.parametrize("make", ["make", "make_async"])
async def test_a_command_that_races_with_stop_makes_no_engine_behind_it(
    place: Place, make: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = getattr(place, make)()
    store = SQLAlchemyStore(engine)
    await asyncio.to_thread(store.start)
    engines = store._running()
    made = Mock(side_effect=AssertionError("an engine behind the stop"))
    await asyncio.to_thread(store.stop)
    with monkeypatch.context() as racing:
        racing.setattr(store, "_running", lambda: engines)
        racing.setattr(engines, "_made", made)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="has been stopped"):
                await asyncio.to_thread(store.execute, Lookup(KEY))
            with pytest.raises(StoreUnavailable, match="has been stopped"):
                await store.aexecute(Lookup(KEY))
    await asyncio.to_thread(store.start)
    assert await store.aexecute(Lookup(KEY)) is None
    assert await asyncio.to_thread(store.execute, Lookup(KEY)) is None
    store.stop()
    await store.astop()
    if isinstance(engine, AsyncEngine):
        await engine.dispose()
    else:
        engine.dispose()


def test_an_engine_that_is_being_made_while_the_store_stops_is_closed(place: Place) -> None:
    store = SQLAlchemyStore(place.engine)
    engines = CommandEngines(place.engine)
    making, go_on = threading.Event(), threading.Event()
    make = engines._made

    def slowly() -> Engine:
        making.set()
        assert go_on.wait(10)
        return make()

    engines._made = slowly  # type: ignore[method-assign]
    got: list[Engine] = []
    asks = threading.Thread(target=lambda: got.append(engines.of_threads()))
    asks.start()
    assert making.wait(10)
    ends = threading.Thread(target=engines.close, args=(store._keep,))
    ends.start()
    go_on.set()
    for thread in (asks, ends):
        thread.join(10)
    assert got
    assert engines._threads is None
    with pytest.raises(StoreUnavailable, match="has been stopped"):
        engines.of_threads()


async def test_completions_do_not_queue_behind_claims_that_wait_for_them(tmp_path: Path) -> None:
    """SQLite has one writer: claims wait for the operation whose end needs a thread too."""
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    with engine.begin() as connection:
        connection.execute(text("create table charge (number integer)"))
    idempotency = Idempotency(SQLAlchemyStore(engine), sweep_every=None)
    app = FastAPI()
    app.add_middleware(ASGIMiddleware, idempotency=idempotency)

    @app.post("/charges", status_code=201)
    def charge(op: Op) -> str:
        op.session().execute(text("insert into charge values (1)"))
        time.sleep(0.05)  # holds the writer
        return "charged"

    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop", timeout=60) as http:
        answers = await asyncio.gather(
            *(http.post("/charges", headers={"Idempotency-Key": f"k{n}"}) for n in range(14))
        )
    assert [answer.status_code for answer in answers] == [201] * 14
    idempotency.stop()


def test_a_snapshot_that_outlives_a_renewal_is_warned_of(caplog: Any) -> None:
    url = servers.postgresql().database(f"snapshots_{os.getpid()}")
    url = url.replace("postgresql", "postgresql+psycopg")
    for level, warned in (("READ COMMITTED", False), ("REPEATABLE READ", True)):
        caplog.clear()
        store = SQLAlchemyStore(create_engine(url, isolation_level=level))
        store.start()
        store.stop()
        assert ("can never commit" in caplog.text) is warned
