"""PostgreSQL: what the contract does not ask, on a real server, through a real network."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from flask import Flask

from semel import ASGIMiddleware, Idempotency, Policy, WSGIMiddleware
from semel.core.commands import (
    Claim,
    Claimed,
    Complete,
    Found,
    Lookup,
    Open,
    RecordStep,
    StoreUnavailable,
    StoreUnknown,
    Sweep,
)
from semel.core.record import Response, State
from semel.stores import StoreSetupError, open_store
from semel.stores.postgres import PostgreSQLStore
from semel.stores.postgres.connections import Connector
from semel.stores.statements import migrations
from semel.testing.proxy import Proxy
from semel.web.fastapi import AsyncOp, Op
from semel.web.flask import operation as flask_operation
from tests import servers

ANSWER = Response(201, ((b"content-type", b"text/plain"),), b"done")
MIGRATIONS = [number for number, _ in migrations("postgres")]
_names = itertools.count()
AsyncOp = AsyncOp


@pytest.fixture
def url() -> str:
    return servers.postgresql().database(f"t{os.getpid()}_{next(_names)}")


@pytest.fixture
def sql(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table orders (key text, attempt int)")
        yield connection


@pytest.fixture
def store(url: str) -> Iterator[PostgreSQLStore]:
    made = PostgreSQLStore(url, timeout=5)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    made = Proxy(servers.postgresql().port)
    yield made
    made.close()


def through(proxy: Proxy, url: str) -> str:
    return urlunsplit(urlsplit(url)._replace(netloc=f"postgres@127.0.0.1:{proxy.port}"))


def key() -> bytes:
    return os.urandom(16)


def opening(name: bytes) -> Open:
    return Open(name, b"\x01" + bytes(32), os.urandom(14))


def complete(name: bytes, token: int) -> Complete:
    return Complete(name, token, ANSWER, 3600.0, 3600.0)


# --- one transaction ---------------------------------------------------------------------------


def test_an_opened_key_is_held_until_its_transaction_ends(store: PostgreSQLStore) -> None:
    name = key()
    first = store.open(opening(name))
    assert first.token
    assert store.open(opening(name)) is None
    first.rollback()
    second = store.open(opening(name))
    assert second.token > first.token
    assert second.complete(complete(name, second.token)) is True
    found = store.open(opening(name))
    assert isinstance(found, Found)
    assert (found.record.state, found.record.response) == (State.COMPLETED, ANSWER)


def test_what_was_written_commits_with_the_record_or_not_at_all(
    store: PostgreSQLStore, sql: Any
) -> None:
    for commits in (False, True):
        transaction = store.open(opening(name := key()))
        transaction.connection.execute("insert into orders values ('a', 1)")
        assert sql.execute("select count(*) from orders").fetchone() == (0,)
        assert store.execute(Lookup(name)) is None
        if commits:
            assert transaction.complete(complete(name, transaction.token))
        else:
            transaction.rollback()
        assert sql.execute("select count(*) from orders").fetchone() == (int(commits),)
        assert (store.execute(Lookup(name)) is not None) is commits


def test_a_claim_made_meanwhile_fences_an_opened_transaction(
    store: PostgreSQLStore, sql: Any
) -> None:
    """A server of another version, or a route that is no longer declared atomic."""
    name = key()
    transaction = store.open(opening(name))
    transaction.connection.execute("insert into orders values ('a', 1)")
    assert isinstance(store.execute(Claim(name, b"\x01", 30.0, b"other")), Claimed)
    assert transaction.complete(complete(name, transaction.token)) is False
    assert sql.execute("select count(*) from orders").fetchone() == (0,)


def test_a_first_completion_that_is_fenced_leaves_a_connection_that_works(
    url: str, sql: Any
) -> None:
    """What is prepared after a failure in the same message is not prepared."""
    store = PostgreSQLStore(url, pool_size=1)
    store.start()
    fenced = store.open(opening(name := key()))
    assert isinstance(store.execute(Claim(name, b"\x01", 30.0, b"other")), Claimed)
    assert fenced.complete(complete(name, fenced.token)) is False
    for _ in range(3):
        transaction = store.open(opening(name := key()))
        transaction.connection.execute("insert into orders values ('a', 1)")
        assert transaction.complete(complete(name, transaction.token))
    assert sql.execute("select count(*) from orders").fetchone() == (3,)
    store.stop()


def test_a_killed_session_frees_the_key_at_once(store: PostgreSQLStore, sql: Any) -> None:
    name = key()
    transaction = store.open(opening(name))
    pid = transaction.connection.info.backend_pid
    sql.execute("select pg_terminate_backend(%s, 5000)", (pid,))
    again = store.open(opening(name))
    assert again is not None
    assert again.complete(complete(name, again.token))
    with pytest.raises(StoreUnknown):
        transaction.complete(complete(name, transaction.token))


def test_a_transaction_that_stands_still_is_ended_by_the_server(url: str) -> None:
    store = PostgreSQLStore(url, idle_in_transaction=0.2)
    store.start()
    name = key()
    store.open(opening(name))
    deadline = time.monotonic() + 20
    while (again := store.open(opening(name))) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again.rollback()
    store.stop()


@pytest.mark.parametrize("way", ["sync", "async"])
def test_no_round_trip_and_no_commit_more_than_the_bare_transaction(
    url: str, sql: Any, proxy: Proxy, way: str
) -> None:
    store = PostgreSQLStore(through(proxy, url))
    store.start()

    def commits() -> int:
        time.sleep(0.2)  # the server's own counters are not written at once
        sql.execute("select pg_stat_clear_snapshot()")
        return sql.execute(
            "select xact_commit from pg_stat_database where datname = current_database()"
        ).fetchone()[0]

    async def on_loop() -> None:
        for number in range(31):
            if number == 11:  # what comes again and again has been prepared
                proxy.round_trips = 0
            name = key()
            transaction = await store.aopen(opening(name))
            await transaction.async_connection.execute("insert into orders values ('a', 1)")
            assert await transaction.acomplete(complete(name, transaction.token))

    def on_thread() -> None:
        for number in range(31):
            if number == 11:  # what comes again and again has been prepared
                proxy.round_trips = 0
            transaction = store.open(opening(name := key()))
            transaction.connection.execute("insert into orders values ('a', 1)")
            assert transaction.complete(complete(name, transaction.token))

    before = sql.execute("select txid_current()").fetchone()[0]
    if way == "sync":
        on_thread()
    else:
        asyncio.run(on_loop())
    written = sql.execute("select txid_current()").fetchone()[0] - before - 1
    assert proxy.round_trips == 20 * 3  # BEGIN, INSERT, COMMIT
    assert written == 31
    store.stop()


# --- lost answers ------------------------------------------------------------------------------


def serve(store: Any, policy: Policy | None = None) -> tuple[FastAPI, list[int]]:
    runs: list[int] = []
    idempotency = Idempotency(store, policy=policy or Policy(guarantee="atomic"), sweep_every=None)
    idempotency.start()
    app = FastAPI()
    app.add_middleware(ASGIMiddleware, idempotency=idempotency)

    @app.post("/orders", status_code=201)
    async def order(op: AsyncOp) -> dict[str, int]:
        runs.append(op.attempt)
        db = await op.connection()
        await db.execute("insert into orders values (%s, %s)", (op.key_hash.hex(), op.attempt))
        return {"run": len(runs)}

    @app.post("/plain", status_code=201)
    def plain(op: Op) -> dict[str, int]:
        runs.append(op.attempt)
        op.connection().execute(
            "insert into orders values (%s, %s)", (op.key_hash.hex(), op.attempt)
        )
        return {"run": len(runs)}

    @app.post("/fails")
    async def fails(op: AsyncOp) -> None:
        runs.append(op.attempt)
        db = await op.connection()
        await db.execute("insert into orders values ('x', 1)")
        raise ValueError("after the write")

    @app.post("/swallows", status_code=201)
    async def swallows(op: AsyncOp) -> str:
        db = await op.connection()
        try:
            await db.execute("select 1/0")
        except psycopg.Error:
            pass
        return "fine"

    @app.post("/forgets", status_code=201)
    async def forgets(op: AsyncOp) -> str:
        return "took no connection"

    @app.post("/steps", status_code=201)
    async def steps(op: AsyncOp) -> str:
        db = await op.connection()
        told = await op.step("far", lambda derived: runs.append(1) or derived)
        await db.execute("insert into orders values (%s, 1)", (told,))
        return told

    return app, runs


def client(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://shop")


@pytest.mark.parametrize("guarantee", ["atomic", None])
async def test_a_lost_commit_answer_is_read_back(
    url: str, sql: Any, proxy: Proxy, guarantee: Any
) -> None:
    app, runs = serve(PostgreSQLStore(through(proxy, url)), Policy(guarantee=guarantee))
    async with client(app) as http:
        for number in range(5):
            proxy.cut_answer_to = b"commit"
            headers = {"Idempotency-Key": f"k{number}"}
            first = await http.post("/orders", headers=headers)
            again = await http.post("/orders", headers=headers)
            assert (first.status_code, first.text) == (201, again.text)
    assert proxy.cuts == 5
    assert len(runs) == 5
    assert sql.execute("select count(*) from orders").fetchone() == (5,)


async def test_a_commit_that_never_arrived_is_run_again(url: str, sql: Any, proxy: Proxy) -> None:
    """The connection is cut before the commit is sent: certain to have been undone."""
    store = PostgreSQLStore(through(proxy, url))
    app, runs = serve(store)

    @app.post("/cut", status_code=201)
    async def cut(op: AsyncOp) -> str:
        runs.append(1)
        db = await op.connection()
        await db.execute("insert into orders values ('cut', 1)")
        if len(runs) == 1:
            proxy.cut_all()
        return "done"

    async with client(app) as http:
        first = await http.post("/cut", headers={"Idempotency-Key": "k"})
        assert (first.status_code, first.json()["title"]) == (
            503,
            "Idempotency keys cannot be checked now",
        )
        again = await http.post("/cut", headers={"Idempotency-Key": "k"})
        assert again.status_code == 201
    assert sql.execute("select count(*) from orders").fetchone() == (1,)


async def test_lost_answers_of_claims_and_completions(url: str, sql: Any, proxy: Proxy) -> None:
    app, runs = serve(PostgreSQLStore(through(proxy, url)), Policy())
    async with client(app) as http:
        for number, lost in enumerate((b"semel_claim", b"semel_complete")):
            proxy.cut_answer_to = lost
            headers = {"Idempotency-Key": f"k{number}"}
            first = await http.post("/orders", headers=headers)
            assert first.status_code == 201
            again = await http.post("/orders", headers=headers)
            assert again.headers["Idempotent-Replayed"] == "true"
    assert proxy.cuts == 2
    assert len(runs) == 2


async def test_a_black_hole_is_a_503_in_time(url: str, sql: Any, proxy: Proxy) -> None:
    store = PostgreSQLStore(through(proxy, url), timeout=0.5)
    app, runs = serve(store)
    async with client(app) as http:
        assert (await http.post("/orders", headers={"Idempotency-Key": "a"})).status_code == 201
        proxy.black_hole = True
        answer = await http.post("/orders", headers={"Idempotency-Key": "b"})
        assert answer.status_code == 503
        assert len(runs) == 1
        proxy.black_hole = False
        answer = await http.post("/orders", headers={"Idempotency-Key": "b"})
        assert answer.status_code == 201


# --- handlers ----------------------------------------------------------------------------------


async def test_what_a_handler_does_wrong_leaves_nothing(store: PostgreSQLStore, sql: Any) -> None:
    app, _ = serve(store)
    async with client(app) as http:
        for path, status in (("/fails", 500), ("/swallows", 503), ("/forgets", 500)):
            answer = await http.post(path, headers={"Idempotency-Key": path})
            assert answer.status_code == status, path
    assert sql.execute("select count(*) from orders").fetchone() == (0,)
    assert sql.execute("select count(*) from semel_record").fetchone() == (0,)


@pytest.mark.parametrize("guarantee", ["atomic", None])
@pytest.mark.parametrize("path", ["/orders", "/plain", "/steps"])
async def test_many_duplicates_have_one_effect(
    store: PostgreSQLStore, sql: Any, path: str, guarantee: Any
) -> None:
    app, runs = serve(store, Policy(guarantee=guarantee))
    async with client(app) as http:
        answers = await asyncio.gather(
            *(http.post(path, headers={"Idempotency-Key": f"k{n % 5}"}) for n in range(40))
        )
    assert {answer.status_code for answer in answers} == {201}
    assert len(runs) == 5
    assert sql.execute("select count(*) from orders").fetchone() == (5,)


async def test_more_operations_than_connections(url: str, sql: Any) -> None:
    """A pool of one: operations take turns, a step inside one does not wait for it."""
    app, runs = serve(PostgreSQLStore(url, pool_size=1, command_connections=1))
    async with client(app) as http:
        answers = await asyncio.gather(
            *(http.post("/steps", headers={"Idempotency-Key": f"k{n}"}) for n in range(50))
        )
    assert {answer.status_code for answer in answers} == {201}
    assert len(runs) == 50


async def test_an_exhausted_pool_is_a_503_and_nothing_runs(url: str, sql: Any) -> None:
    store = PostgreSQLStore(url, pool_size=1, timeout=0.3)
    app, runs = serve(store)
    async with client(app) as http:
        await http.post("/orders", headers={"Idempotency-Key": "first"})
        held = await store.aopen(opening(key()))
        answer = await http.post("/orders", headers={"Idempotency-Key": "k"})
        assert answer.status_code == 503
        assert len(runs) == 1
        held.rollback()
        await asyncio.sleep(0)
        answer = await http.post("/orders", headers={"Idempotency-Key": "k"})
        assert answer.status_code == 201


def test_flask_on_threads(store: PostgreSQLStore, sql: Any) -> None:
    app = Flask(__name__)
    app.wsgi_app = WSGIMiddleware(  # type: ignore[method-assign]
        app.wsgi_app, Idempotency(store, policy=Policy(guarantee="atomic"), sweep_every=None)
    )

    @app.post("/orders")
    def order() -> tuple[str, int]:
        op = flask_operation()
        op.connection().execute("insert into orders values (%s, 1)", (op.key_hash.hex(),))
        return "done", 201

    statuses: list[int] = []

    def post(name: str) -> None:
        answer = app.test_client().post("/orders", headers={"Idempotency-Key": name})
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=post, args=(f"k{n % 4}",)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {201}
    assert sql.execute("select count(*) from orders").fetchone() == (4,)


async def test_commit_and_rollback_belong_to_the_operation(
    store: PostgreSQLStore, sql: Any
) -> None:
    transaction = await store.aopen(opening(name := key()))
    connection = transaction.async_connection
    await connection.execute("insert into orders values ('a', 1)")
    await connection.commit()
    assert sql.execute("select count(*) from orders").fetchone() == (0,)
    for word in ("commit", "rollback", "begin; select 1"):
        with pytest.raises(psycopg.ProgrammingError, match="belongs to the operation"):
            await connection.execute(word)
    await connection.execute("insert into orders values ('undone', 1)")
    await connection.rollback()
    assert await (await connection.execute("select key from orders")).fetchall() == []
    await connection.execute("insert into orders values ('a', 1)")
    with pytest.raises(ZeroDivisionError):
        async with connection.transaction():
            await connection.execute("insert into orders values ('savepoint', 1)")
            raise ZeroDivisionError
    assert await transaction.acomplete(complete(name, transaction.token))
    assert sql.execute("select key from orders").fetchall() == [("a",)]
    with pytest.raises(psycopg.ProgrammingError, match="operation is over"):
        _ = transaction.async_connection


async def test_a_cancelled_call_gives_nobody_elses_answer(store: PostgreSQLStore) -> None:
    names = [key() for _ in range(50)]
    for name in names:
        await store.aexecute(Claim(name, name, 30.0, name[:8]))
    for number in range(200):
        name = names[number % 50]
        task = asyncio.ensure_future(store.aexecute(Lookup(name)))
        step = asyncio.ensure_future(store.aexecute(RecordStep(name, -1, "s", b"", 60.0)))
        for _ in range(number % 7):
            await asyncio.sleep(0)
        task.cancel()
        step.cancel()
        other = names[(number + 1) % 50]
        found = await store.aexecute(Lookup(other))
        assert found.record.fingerprint == other


def test_many_threads_and_loops_share_a_store(store: PostgreSQLStore) -> None:
    wins: list[bool] = []
    names = [key() for _ in range(20)]

    def on_thread() -> None:
        told = [store.execute(Claim(name, b"f", 30.0, os.urandom(8))) for name in names]
        wins.extend(isinstance(reply, Claimed) for reply in told)

    async def on_loop() -> None:
        told = await asyncio.gather(
            *(store.aexecute(Claim(name, b"f", 30.0, os.urandom(8))) for name in names * 3)
        )
        wins.extend(isinstance(reply, Claimed) for reply in told)

    threads = [threading.Thread(target=on_thread) for _ in range(3)]
    threads += [threading.Thread(target=asyncio.run, args=(on_loop(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(wins) == 20


# --- the server --------------------------------------------------------------------------------


async def test_a_restart_of_the_server_is_survived(sql: Any, url: str) -> None:
    server = servers.postgresql()
    app, runs = serve(PostgreSQLStore(url, timeout=3))
    async with client(app) as http:
        assert (await http.post("/orders", headers={"Idempotency-Key": "a"})).status_code == 201
        server.immediate()
        answer = await http.post("/orders", headers={"Idempotency-Key": "b"})
        assert answer.status_code == 503
        server.start()
        for _ in range(40):
            answer = await http.post("/orders", headers={"Idempotency-Key": "b"})
            if answer.status_code == 201:
                break
            await asyncio.sleep(0.25)
        assert answer.status_code == 201
        again = await http.post("/orders", headers={"Idempotency-Key": "a"})
        assert again.headers["Idempotent-Replayed"] == "true"
    assert len(runs) == 2


@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
async def test_other_isolation_levels(url: str, sql: Any, level: str) -> None:
    sql.execute(
        f"alter database {url.rsplit('/', 1)[1]} set default_transaction_isolation = '{level}'"
    )
    app, _ = serve(PostgreSQLStore(url))
    async with client(app) as http:

        async def until_known(name: str) -> None:
            for _ in range(50):
                answer = await http.post("/orders", headers={"Idempotency-Key": name})
                if answer.status_code == 201:
                    return
            raise AssertionError(answer.text)

        await asyncio.gather(*(until_known(f"k{n % 8}") for n in range(64)))
    assert sql.execute("select count(*), count(distinct key) from orders").fetchone() == (8, 8)


async def test_behind_pgbouncer_in_transaction_mode(url: str, sql: Any) -> None:
    bouncer = servers.pgbouncer()
    name = url.rsplit("/", 1)[1]
    # An operation with a step needs a second connection: fewer operations than pgbouncer has.
    app, runs = serve(PostgreSQLStore(bouncer.url.rsplit("/", 1)[0] + f"/{name}", pool_size=4))
    async with client(app) as http:
        for path in ("/orders", "/steps"):
            answers = await asyncio.gather(
                *(
                    http.post(path, headers={"Idempotency-Key": f"{path}{n % 10}"})
                    for n in range(60)
                )
            )
            assert {answer.status_code for answer in answers} == {201}
    assert sql.execute("select count(*) from orders").fetchone() == (20,)
    assert len(runs) == 20


def test_servers_that_start_at_once_migrate_once(url: str) -> None:
    stores = [PostgreSQLStore(url) for _ in range(8)]
    errors: list[Exception] = []

    def start(store: PostgreSQLStore) -> None:
        try:
            store.start()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=start, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with psycopg.connect(url) as sql:
        applied = sql.execute("select number from semel_migration order by number").fetchall()
    assert [number for (number,) in applied] == MIGRATIONS


def test_a_server_that_may_not_migrate_says_what_to_run(url: str) -> None:
    with pytest.raises(StoreSetupError, match="run `semel migrate"):
        open_store(f"{url}?semel_migrate=no").start()
    store = open_store(url)
    assert isinstance(store, PostgreSQLStore)
    assert store.migrate() == MIGRATIONS
    assert store.migrate() == []
    open_store(f"{url}?semel_migrate=no").start()


def test_a_migration_does_not_queue_behind_a_lock(url: str) -> None:
    with psycopg.connect(url) as other:
        other.execute("create table semel_migration (number integer primary key)")
        with pytest.raises(StoreSetupError, match="nothing was changed"):
            PostgreSQLStore(url).migrate(lock_timeout=0.1)


def test_a_url_that_cannot_be_used_is_told_without_its_password() -> None:
    store = PostgreSQLStore("postgresql://me:secret@127.0.0.1:1/shop", timeout=1)
    with pytest.raises(StoreSetupError) as told:
        store.start()
    assert "secret" not in str(told.value)
    with pytest.raises(StoreSetupError, match="unknown option 'pol'"):
        open_store("postgresql://x/y?semel_pol=3")


def test_the_sweeper_takes_what_is_due_beside_traffic(store: PostgreSQLStore, sql: Any) -> None:
    for _ in range(30):
        name = key()
        token = store.execute(Claim(name, b"f", 30.0, b"o")).token
        store.execute(Complete(name, token, ANSWER, 0.0, 0.0))
    held = store.begin()
    held.connection.execute("select 1 from semel_record order by key limit 10 for update")
    swept = store.execute(Sweep(100))
    assert swept == 20  # what is in use is left for the next time
    held.rollback()
    assert store.execute(Sweep(100)) == 10


def test_a_child_process_opens_connections_of_its_own(store: PostgreSQLStore) -> None:
    name = key()
    store.execute(Claim(name, b"f", 30.0, b"o"))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            found = store.execute(Lookup(name))
            code = 0 if isinstance(found, Found) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert isinstance(store.execute(Lookup(name)), Found)


def test_a_deadlock_is_run_again(store: PostgreSQLStore) -> None:
    """Two who lock the same records in opposite order: one is undone by the server, and repeats."""
    names = sorted(key() for _ in range(2))
    tokens = [store.execute(Claim(name, b"f", 30.0, b"o")).token for name in names]
    other = store.begin()
    other.connection.execute("set local deadlock_timeout = '10s'")
    other.connection.execute("update semel_record set reason = 'x' where key = %s", (names[1],))
    from semel.stores.postgres.commands import batch

    with psycopg.connect(store._url) as third:
        third.execute("set local deadlock_timeout = '50ms'")
        third.execute("update semel_record set reason = 'y' where key = %s", (names[0],))

        def cross() -> None:
            other.connection.execute(
                "update semel_record set reason = 'x' where key = %s", (names[0],)
            )

        crossing = threading.Thread(target=cross)
        crossing.start()
        time.sleep(0.2)
        statement, parameters = batch([complete(names[1], tokens[1])])
        with pytest.raises(psycopg.errors.DeadlockDetected):
            third.execute(statement, parameters, binary=True)
    crossing.join()
    other.rollback()
    assert store.execute(complete(names[0], tokens[0])) is True


# --- what is prepared ----------------------------------------------------------------------------


async def test_an_undone_savepoint_leaves_what_is_prepared(
    store: PostgreSQLStore, sql: Any
) -> None:
    """psycopg forgets all prepared statements there, ours among them, if it has prepared any."""
    sql.execute("create unique index on orders (key)")
    for number in range(20):
        transaction = await store.aopen(opening(name := key()))
        connection = transaction.async_connection
        insert = "insert into orders values (%s, 1)"
        await connection.execute(insert, (f"once {number // 2}",)) if number % 2 == 0 else None
        with contextlib.suppress(psycopg.errors.UniqueViolation):
            async with connection.transaction():
                await connection.execute(insert, (f"once {number // 2}",))
        assert await transaction.acomplete(complete(name, transaction.token))
    assert sql.execute("select count(*) from orders").fetchone() == (10,)


READ = "select * from orders where attempt = %s"


def read(store: PostgreSQLStore) -> int:
    transaction = store.open(opening(name := key()))
    try:
        cursor = transaction.connection.execute(READ, (1,))
        assert transaction.complete(complete(name, transaction.token))
        return len(cursor.description or ())
    finally:
        transaction.rollback()


async def aread(store: PostgreSQLStore) -> int:
    transaction = await store.aopen(opening(name := key()))
    try:
        cursor = await transaction.async_connection.execute(READ, (1,))
        assert await transaction.acomplete(complete(name, transaction.token))
        return len(cursor.description or ())
    finally:
        transaction.rollback()
        await asyncio.sleep(0.05)  # for the rollback to end: the next has the same connection


async def plain_read(store: PostgreSQLStore) -> int:
    transaction = await store.aopen(opening(name := key()))
    try:
        cursor = await asyncio.to_thread(transaction.connection.execute, READ, (1,))
        assert await transaction.acomplete(complete(name, transaction.token))
        return len(cursor.description or ())
    finally:
        transaction.rollback()
        await asyncio.sleep(0.05)


async def in_thread(store: PostgreSQLStore) -> int:
    return await asyncio.to_thread(read, store)


@pytest.mark.parametrize("once", [in_thread, aread, plain_read])
async def test_a_table_that_is_altered_meanwhile_is_read_as_it_is(
    url: str, sql: Any, once: Callable[[PostgreSQLStore], Coroutine[Any, Any, int]]
) -> None:
    """What was prepared is known to be wrong once it was tried, as with psycopg alone."""
    store = PostgreSQLStore(url, pool_size=1, timeout=5)
    store.start()
    try:
        assert [await once(store) for _ in range(8)] == [2] * 8
        sql.execute("alter table orders add column note text")
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            await once(store)
        assert [await once(store) for _ in range(8)] == [3] * 8
    finally:
        store.stop()


async def test_a_plain_handler_that_deallocates_does_so_for_all_that_use_the_session(
    url: str, sql: Any
) -> None:
    store = PostgreSQLStore(url, pool_size=1, timeout=5)
    store.start()
    try:
        for _ in range(8):
            assert await aread(store) == 2
        transaction = await store.aopen(opening(key()))
        await asyncio.to_thread(transaction.connection.execute, "deallocate all")
        transaction.rollback()
        await asyncio.sleep(0.05)
        assert [await aread(store) for _ in range(8)] == [2] * 8
        assert [await plain_read(store) for _ in range(8)] == [2] * 8
    finally:
        store.stop()


async def test_who_begins_after_a_failed_handler_that_deallocated_is_not_its_victim(
    url: str,
) -> None:
    store = PostgreSQLStore(url, pool_size=1, timeout=5)
    store.start()

    async def begun() -> tuple[Any, Complete]:
        claimed = await store.aexecute(Claim(name := key(), b"\x01" + bytes(32), 30.0, b"me"))
        assert isinstance(claimed, Claimed)
        return await store.abegin(), complete(name, claimed.token)

    try:
        transaction, completion = await begun()
        assert await transaction.acomplete(completion)
        transaction, _ = await begun()
        await transaction.async_connection.execute("deallocate all")
        transaction.rollback()
        await asyncio.sleep(0.05)
        for _ in range(2):
            transaction, completion = await begun()
            assert await transaction.acomplete(completion)
    finally:
        store.stop()


async def test_what_psycopg_refuses_by_itself_is_no_lost_connection(
    store: PostgreSQLStore,
) -> None:
    transaction = await store.aopen(opening(name := key()))
    with pytest.raises(UnicodeEncodeError):
        await transaction.async_connection.execute("select %s", ("\ud800",))
    assert await transaction.acomplete(complete(name, transaction.token))


async def test_sessions_that_were_ended_while_nobody_had_them_fail_nobody(
    store: PostgreSQLStore, sql: Any
) -> None:
    for _ in range(5):
        together = [await store.aopen(opening(key())) for _ in range(6)]
        for transaction in together:
            await transaction.async_connection.execute("select 1")
            transaction.rollback()
        await asyncio.sleep(0.1)
        sql.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        transaction = await store.aopen(opening(name := key()))
        assert await transaction.acomplete(complete(name, transaction.token))


@pytest.mark.parametrize("opens", [True, False])
async def test_a_handler_that_discards_all_harms_no_other(url: str, opens: bool) -> None:
    store = PostgreSQLStore(url, pool_size=3)
    store.start()

    async def begun() -> tuple[Any, Complete]:
        name = key()
        if opens:
            transaction = await store.aopen(opening(name))
            return transaction, complete(name, transaction.token)
        claimed: Any = await store.aexecute(Claim(name, b"\x01" + bytes(32), 30.0, b"me"))
        return await store.abegin(), complete(name, claimed.token)

    for number in range(4):
        together = [await begun() for _ in range(3)]  # on all connections
        for transaction, completion in together:
            if number == 1:
                await transaction.async_connection.execute("deallocate all")
                with pytest.raises(StoreUnavailable):
                    await transaction.acomplete(completion)
            elif number == 2:  # what comes after a savepoint that is undone is psycopg's own
                with contextlib.suppress(ZeroDivisionError):
                    async with transaction.async_connection.transaction():
                        for _ in range(8):
                            await transaction.async_connection.execute("select 1")
                        raise ZeroDivisionError
                assert await transaction.acomplete(completion)
            else:
                assert await transaction.acomplete(completion)
    store.stop()


def test_what_a_handler_says_often_is_prepared_but_not_on_a_pooler(url: str) -> None:
    bouncer = servers.pgbouncer()
    behind = f"{bouncer.url.rsplit('/', 1)[0]}/{url.rsplit('/', 1)[1]}"
    for where, prepared in ((url, True), (behind, False)):
        store = PostgreSQLStore(where, pool_size=1)
        store.start()
        for _ in range(8):
            transaction = store.open(opening(name := key()))
            found = transaction.connection.execute(
                "select count(*) from pg_prepared_statements where statement like '%%pg_prepared%%'"
                " and 0 < %s",
                (1,),
            ).fetchone()
            assert transaction.complete(complete(name, transaction.token))
        assert found == (int(prepared),)
        store.stop()


@pytest.mark.parametrize("opens", [True, False])
@pytest.mark.parametrize("pooled", [True, False])
def test_a_transaction_that_stands_still_is_bounded_wherever_it_began(
    url: str, opens: bool, pooled: bool
) -> None:
    if pooled:
        url = f"{servers.pgbouncer().url.rsplit('/', 1)[0]}/{url.rsplit('/', 1)[1]}"
    store = PostgreSQLStore(url, idle_in_transaction=77)
    store.start()
    transaction = store.open(opening(key())) if opens else store.begin()
    bound = transaction.connection.execute("show idle_in_transaction_session_timeout").fetchone()
    transaction.rollback()
    store.stop()
    assert bound == ("77s",)


@pytest.mark.parametrize("seconds", [-1, 2_147_484])
def test_a_bound_that_the_server_would_not_take_is_refused(url: str, seconds: float) -> None:
    with pytest.raises(StoreSetupError, match="idle_in_transaction: give seconds"):
        PostgreSQLStore(url, idle_in_transaction=seconds)


async def test_a_server_that_says_nothing_once_connected_is_given_up_in_time(
    url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PostgreSQLStore(through(proxy, url), timeout=0.5)
    store.start()
    bound = Connector._bound

    def connected(self: Connector, connection: Any) -> Any:
        proxy.black_hole = True
        return bound(self, connection)

    monkeypatch.setattr(Connector, "_bound", connected)
    with pytest.raises(StoreUnavailable):
        await store.aopen(opening(key()))
    proxy.black_hole = False
    with pytest.raises(StoreUnavailable):
        await asyncio.to_thread(store.open, opening(key()))
    store.stop()


async def test_a_plain_handler_may_say_the_same_thing_often(
    store: PostgreSQLStore, sql: Any
) -> None:
    app, _ = serve(store)

    @app.post("/lines", status_code=201)
    def lines(op: Op) -> str:
        for number in range(8):
            op.connection().execute("insert into orders values (%s, %s)", ("line", number))
        return "done"

    async with client(app) as http:
        for number in range(4):
            answer = await http.post("/lines", headers={"Idempotency-Key": f"k{number}"})
            assert answer.status_code == 201, answer.text
    assert sql.execute("select count(*) from orders").fetchone() == (32,)
