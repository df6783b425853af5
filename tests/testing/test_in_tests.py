"""A service in its users' tests: in memory, or in a transaction that each test rolls back."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import sqlalchemy
from fastapi import Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient
from flask import Flask
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from semel import Idempotency, StoreSetupError, current_operation, idempotent
from semel.stores import open_store
from semel.stores.django import DjangoStore
from semel.stores.memory import MemoryStore
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.testing import in_memory, joined
from semel.testing.pytest_plugin import semel_in_memory
from semel.web.fastapi import AsyncOp, Op, init_app
from semel.web.fastapi import joined as joined_dependency
from semel.web.flask import init_app as init_flask
from tests import servers

semel_in_memory = semel_in_memory
AsyncOp, Op = AsyncOp, Op
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
KEY = {"Idempotency-Key": "k"}
TABLE = "create table charges (n int)"
COUNT = "select count(*) from charges"


@pytest.fixture(scope="module")
def postgresql_url() -> str:
    return servers.postgresql().database("in_tests")


# --- in memory ------------------------------------------------------------------------------------

idempotency = Idempotency(NOWHERE, sweep_every=None)
"""As applications have it: at module level, on a database that is not there."""
app = FastAPI()
flask_app = Flask("shop")


@app.post("/charges", status_code=201)
async def charge(op: AsyncOp) -> dict[str, int]:
    db = await op.connection()
    await db.execute("insert into charges values (1)")
    return {"count": (await db.execute(COUNT)).fetchone()[0]}


@flask_app.post("/charges")
def flask_charge() -> Any:
    db = current_operation().connection()
    db.execute("insert into charges values (1)")
    return {"count": db.execute(COUNT).fetchone()[0]}, 201


init_app(app, idempotency)
init_flask(flask_app, idempotency)


def on(store: Any) -> Idempotency:
    made = Idempotency("memory://", sweep_every=None)
    made.store = open_store(store) if isinstance(store, str) else store
    return made


def posted(client: Any) -> tuple[int, Any, bool]:
    told = client.post("/charges", headers=KEY)
    body = told.json() if callable(told.json) else told.json
    return told.status_code, body, "Idempotent-Replayed" in told.headers


@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize("lifespan", [False, True])
def test_a_service_works_in_memory(attempt: int, lifespan: bool) -> None:
    with in_memory(idempotency, setup=TABLE):
        client = TestClient(app)
        if lifespan:
            with client:
                assert posted(client) == (201, {"count": 1}, False)
                assert posted(client) == (201, {"count": 1}, True)
        assert posted(client) == (201, {"count": 1}, lifespan)
        assert posted(client) == (201, {"count": 1}, True)


def test_it_goes_back_to_its_own_store() -> None:
    own = idempotency.store, idempotency.runtime, idempotency.operations, idempotency.started
    with in_memory(idempotency, setup=TABLE) as store:
        assert idempotency.store is store is not own[0]
        assert posted(flask_app.test_client()) == (201, {"count": 1}, False)
        with in_memory(idempotency, setup=TABLE):
            assert posted(flask_app.test_client()) == (201, {"count": 1}, False)
        assert posted(flask_app.test_client()) == (201, {"count": 1}, True)
    assert own == (
        idempotency.store,
        idempotency.runtime,
        idempotency.operations,
        idempotency.started,
    )
    with pytest.raises(RuntimeError, match="in the block"), in_memory(idempotency):
        raise RuntimeError("in the block")
    assert idempotency.store is own[0]


def test_the_fixture(semel_in_memory: Any) -> None:
    semel_in_memory(idempotency, setup=TABLE)
    assert posted(TestClient(app)) == (201, {"count": 1}, False)


def test_the_fixture_again(semel_in_memory: Any) -> None:
    semel_in_memory(idempotency, setup=TABLE)
    assert posted(TestClient(app)) == (201, {"count": 1}, False)


def test_a_store_of_the_tests(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute(TABLE)
    with in_memory(idempotency, f"sqlite:///{tmp_path}/shop.db"):
        assert posted(TestClient(app)) == (201, {"count": 1}, False)
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        assert connection.execute(COUNT).fetchone() == (1,)


def test_a_factory_in_memory() -> None:
    keys = Idempotency(sweep_every=None)

    def create_app() -> FastAPI:
        keys.init(NOWHERE)
        made = FastAPI()

        @made.post("/charges", status_code=201)
        @keys.route(required=True)
        async def charge(op: AsyncOp) -> dict[str, int]:
            db = await op.connection()
            await db.execute("insert into charges values (1)")
            return {"count": (await db.execute(COUNT)).fetchone()[0]}

        init_app(made, keys)
        return made

    for _ in range(2):
        with in_memory(keys, setup=TABLE):
            client = TestClient(create_app())
            assert client.post("/charges").status_code == 400
            assert posted(client) == (201, {"count": 1}, False)
            assert posted(client) == (201, {"count": 1}, True)
    assert "store" not in vars(keys)
    create_app()
    assert keys.store.name == "postgresql"


def test_a_function_in_memory() -> None:
    runs: list[str] = []

    @idempotent(idempotency, key="order")
    def work(order: str) -> int:
        runs.append(order)
        return len(runs)

    for expected in (1, 2):
        with in_memory(idempotency):
            assert [work("a"), work("a")] == [expected, expected]


def test_services_that_share_no_transaction_get_memory() -> None:
    with in_memory(Idempotency("redis://127.0.0.1:1/0", sweep_every=None)) as store:
        assert isinstance(store, MemoryStore)


def test_what_needs_a_store_of_the_tests_says_so() -> None:
    engine = sqlalchemy.create_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    for store in (SQLAlchemyStore(engine), DjangoStore("default")):
        with pytest.raises(StoreSetupError, match="test_engine"), in_memory(on(store)):
            pass
    with (
        pytest.raises(StoreSetupError, match="setup"),
        in_memory(idempotency, "memory://", setup="x"),
    ):
        pass


# --- joined: SQLAlchemy ---------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sqlalchemy.Engine]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/shop.db"
        made = sqlalchemy.create_engine(url, connect_args={"check_same_thread": False})
    else:
        url = request.getfixturevalue("postgresql_url")
        made = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with made.begin() as connection:
        connection.exec_driver_sql("drop table if exists charges")
        connection.exec_driver_sql(TABLE)
    yield made
    made.dispose()


def sqlalchemy_app(keys: Idempotency) -> FastAPI:
    app = FastAPI()

    @app.post("/charges", status_code=201)
    def charge(op: Op, fails: str = "") -> dict[str, int]:
        session = op.session()
        session.execute(sqlalchemy.text("insert into charges values (1)"))
        session.commit()
        if fails == "raises":
            raise ValueError("after the write")
        if fails == "says 409":
            raise HTTPException(409)
        if fails == "breaks":
            try:
                session.connection().exec_driver_sql("insert into nowhere values (1)")
            except sqlalchemy.exc.DBAPIError:
                session.rollback()
        return {"count": session.scalar(sqlalchemy.text(COUNT))}

    init_app(app, keys)
    return app


def count(connection: Any) -> int:
    return int(connection.exec_driver_sql(COUNT).scalar_one())


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_test_in_a_transaction(engine: sqlalchemy.Engine, attempt: int) -> None:
    keys = Idempotency(SQLAlchemyStore(engine), sweep_every=None)
    client = TestClient(sqlalchemy_app(keys), raise_server_exceptions=False)
    for _ in range(2):
        with engine.connect() as connection, connection.begin() as transaction:
            with joined(keys, connection):
                assert posted(client) == (201, {"count": 1}, False)
                assert posted(client) == (201, {"count": 1}, True)
                assert count(connection) == 1
                failing = {"Idempotency-Key": "other"}
                for fails, status in (("raises", 500), ("says 409", 409)):
                    told = client.post(f"/charges?fails={fails}", headers=failing)
                    assert told.status_code == status
                    assert count(connection) == 1
                broken = client.post("/charges?fails=breaks", headers={"Idempotency-Key": "b"})
                assert (broken.status_code, count(connection)) == (201, 2)
            transaction.rollback()
        with engine.connect() as connection:
            assert count(connection) == 0


def test_a_session_of_the_test(engine: sqlalchemy.Engine) -> None:
    keys = Idempotency(SQLAlchemyStore(engine), sweep_every=None)
    client = TestClient(sqlalchemy_app(keys))
    with Session(engine) as session:
        session.execute(sqlalchemy.text("insert into charges values (1)"))
        with joined(keys, session):
            assert posted(client) == (201, {"count": 2}, False)
        session.rollback()
        assert session.scalar(sqlalchemy.text(COUNT)) == 0


def test_sessions_of_a_dependency_are_joined_too(engine: sqlalchemy.Engine) -> None:
    keys = Idempotency(SQLAlchemyStore(engine), sweep_every=None)
    sessions = sessionmaker(engine)

    def get_db() -> Iterator[Session]:
        with sessions() as session:
            yield session

    app = FastAPI()
    session = Depends(joined_dependency(keys, get_db))

    @app.post("/charges", status_code=201)
    def charge(db: Session = session, fails: bool = False) -> dict[str, int]:
        db.execute(sqlalchemy.text("insert into charges values (1)"))
        db.commit()
        if fails:
            raise HTTPException(402)
        return {"count": db.scalar(sqlalchemy.text(COUNT)) or 0}

    init_app(app, keys)
    client = TestClient(app)
    for _ in range(2):
        with engine.connect() as connection, connection.begin() as transaction:
            with joined(keys, connection):
                assert posted(client) == (201, {"count": 1}, False)
                assert posted(client) == (201, {"count": 1}, True)
                failing = client.post("/charges?fails=1", headers={"Idempotency-Key": "f"})
                assert (failing.status_code, count(connection)) == (402, 1)
            transaction.rollback()


def test_an_operation_does_not_end_the_transaction_of_the_test(engine: sqlalchemy.Engine) -> None:
    keys = Idempotency(SQLAlchemyStore(engine), sweep_every=None)

    @idempotent(keys, key="order")
    def work(order: str) -> None:
        db = current_operation().connection()
        db.exec_driver_sql("insert into charges values (1)")
        db.commit()

    with (
        engine.connect() as connection,
        connection.begin() as transaction,
        joined(keys, connection),
    ):
        for _ in range(2):
            with pytest.raises(
                sqlalchemy.exc.InvalidRequestError, match="belongs to the operation"
            ):
                work("a")
            assert (transaction.is_active, count(connection)) == (True, 0)


def test_what_it_cannot_join(engine: sqlalchemy.Engine) -> None:
    keys = Idempotency(SQLAlchemyStore(engine), sweep_every=None)
    with engine.connect() as connection:
        with pytest.raises(StoreSetupError, match="in no transaction"), joined(keys, connection):
            pass
        for store, told in (
            ("memory://", "MemoryStore"),
            (NOWHERE, "PostgreSQLStore"),
            (DjangoStore("default"), "TestCase"),
        ):
            other = on(store)
            with pytest.raises(StoreSetupError, match=told), joined(other, connection):
                pass


@pytest.fixture(params=["sqlite", "postgresql"])
async def async_engine(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[AsyncEngine]:
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path}/shop.db"
    else:
        found = request.getfixturevalue("postgresql_url")
        url = found.replace("postgresql://", "postgresql+psycopg://")
    made = create_async_engine(url, poolclass=StaticPool if request.param == "sqlite" else None)
    async with made.begin() as connection:
        await connection.exec_driver_sql("drop table if exists charges")
        await connection.exec_driver_sql(TABLE)
    yield made
    await made.dispose()


async def test_an_async_test_in_a_transaction(async_engine: AsyncEngine) -> None:
    keys = Idempotency(SQLAlchemyStore(async_engine), sweep_every=None)
    app = FastAPI()

    @app.post("/charges", status_code=201)
    async def charge(op: AsyncOp, fails: bool = False) -> dict[str, int]:
        session = await op.session()
        await session.execute(sqlalchemy.text("insert into charges values (1)"))
        await session.commit()
        if fails:
            raise ValueError("after the write")
        return {"count": await session.scalar(sqlalchemy.text(COUNT))}

    init_app(app, keys)

    async def counted(connection: AsyncConnection) -> int:
        return int((await connection.exec_driver_sql(COUNT)).scalar_one())

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        for _ in range(2):
            async with async_engine.connect() as connection:
                transaction = await connection.begin()
                with joined(keys, connection):
                    told = [await client.post("/charges", headers=KEY) for _ in range(2)]
                    assert [t.json() for t in told] == [{"count": 1}] * 2
                    assert "Idempotent-Replayed" in told[1].headers
                    failing = {"Idempotency-Key": "other"}
                    for _ in range(2):
                        broken = await client.post("/charges?fails=1", headers=failing)
                        assert (broken.status_code, await counted(connection)) == (500, 1)
                    first, second = await asyncio.gather(
                        *(client.post("/charges", headers={"Idempotency-Key": "g"}) for _ in "ab")
                    )
                    assert first.json() == second.json() == {"count": 2}
                await transaction.rollback()
                assert await counted(connection) == 0


# --- joined: psycopg ------------------------------------------------------------------------------


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_psycopg_connection(postgresql_url: str, autocommit: bool) -> None:
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute("drop table if exists charges")
        connection.execute(TABLE)
    keys = Idempotency(NOWHERE, sweep_every=None)

    @idempotent(keys, key="order", guarantee="atomic")
    def work(order: str, fails: bool = False) -> int:
        db = current_operation().connection()
        db.execute("insert into charges values (7)")
        db.rollback()
        db.execute("insert into charges values (1)")
        db.commit()
        db.close()
        if fails:
            raise ValueError("after the write")
        return int(db.execute(COUNT).fetchone()[0])

    for _ in range(2):
        with psycopg.connect(postgresql_url, autocommit=autocommit) as connection:
            with connection.transaction(force_rollback=True), joined(keys, connection):
                assert [work("a"), work("a"), work("b")] == [1, 1, 2]
                for _ in range(2):
                    with pytest.raises(ValueError, match="after the write"):
                        work("c", fails=True)
                assert connection.execute(COUNT).fetchone() == (2,)
            assert connection.execute(COUNT).fetchone() == (0,)
            connection.rollback()


def test_a_psycopg_connection_outside_of_a_transaction(postgresql_url: str) -> None:
    keys = Idempotency(NOWHERE, sweep_every=None)
    with (
        psycopg.connect(postgresql_url, autocommit=True) as connection,
        pytest.raises(StoreSetupError, match="commits by itself"),
        joined(keys, connection),
    ):
        pass


async def test_an_async_psycopg_connection(postgresql_url: str) -> None:
    keys = Idempotency(NOWHERE, sweep_every=None)
    app = FastAPI()

    @app.post("/charges", status_code=201)
    async def charge(op: AsyncOp, fails: bool = False) -> dict[str, int]:
        db = await op.connection()
        await db.execute("insert into charges values (1)")
        if fails:
            raise ValueError("after the write")
        return {"count": (await (await db.execute(COUNT)).fetchone())[0]}

    init_app(app, keys)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        await psycopg.AsyncConnection.connect(postgresql_url) as connection,
        httpx.AsyncClient(transport=transport, base_url="http://shop") as client,
    ):
        await connection.execute("drop table if exists charges")
        await connection.execute(TABLE)
        with joined(keys, connection):
            told = [await client.post("/charges", headers=KEY) for _ in range(2)]
            assert [t.json() for t in told] == [{"count": 1}] * 2
            broken = await client.post("/charges?fails=1", headers={"Idempotency-Key": "x"})
            assert broken.status_code == 500
            assert await (await connection.execute(COUNT)).fetchone() == (1,)
        await connection.rollback()
