"""Sessions of the application's own that join an operation: rows, savepoints, what they refuse."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, exc, insert, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from semel import Idempotency, current_async_operation, current_operation, idempotent
from semel.sessions import join_sessionmaker
from semel.sessions.watch import watch
from semel.stores import StoreSetupError
from semel.stores.sqlalchemy import SQLAlchemyStore
from tests.sessions.places import ASYNC, SYNC, Place, Thing


class Failed(Exception):
    pass


@pytest.fixture(params=SYNC)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made = Place(request.param, tmp_path)
    yield made
    made.looks.dispose()


@pytest.fixture
def engine(place: Place) -> Iterator[Engine]:
    made = place.engine(pool_timeout=5)
    yield made
    made.dispose()


@pytest.fixture
def idempotency(engine: Engine) -> Iterator[Idempotency]:
    made = Idempotency(SQLAlchemyStore(engine))
    made.start()
    yield made
    made.stop()


Once = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def once(idempotency: Idempotency) -> Once:
    """Run a function as an operation."""

    def run(handler: Callable[[], Any], key: str = "k") -> Any:
        @idempotent(idempotency, key="key", name="handler")
        def operation(key: str) -> Any:
            return handler()

        return operation(key)

    return run


class Routing(Session):
    """Chooses among engines, as a reader/writer session does."""

    engines: Any

    def get_bind(self, mapper: Any = None, **named: Any) -> Any:
        return self.engines(mapper, self._flushing)


@pytest.mark.parametrize("ends", ["commit", "begin", "scoped"])
def test_a_joined_factory_writes_with_the_operation(
    place: Place, engine: Engine, idempotency: Idempotency, once: Once, ends: str
) -> None:
    made = sessionmaker(engine)
    sessions: Any = join_sessionmaker(
        scoped_session(made) if ends == "scoped" else made, idempotency
    )

    def write(name: str) -> None:
        if ends == "begin":
            with sessions.begin() as session:
                session.add(Thing(name=name))
        elif ends == "scoped":
            sessions.add(Thing(name=name))
            sessions.commit()
            sessions.remove()
        else:
            with sessions() as session:
                session.add(Thing(name=name))
                session.commit()

    def handler() -> None:
        write("in vain")
        raise Failed

    for _ in range(2):
        with pytest.raises(Failed):
            once(handler)
    assert place.things() == []
    for _ in range(2):
        once(lambda: write("joined"))
    write("outside")
    assert place.things() == ["joined", "outside"]


def test_what_a_session_leaves_uncommitted_is_rolled_back_and_said(
    place: Place,
    engine: Engine,
    idempotency: Idempotency,
    once: Once,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sessions = join_sessionmaker(sessionmaker(engine), idempotency)
    left: list[Session] = []

    def handler() -> None:
        left.append(sessions())
        left[0].add(Thing(name="left"))
        left[0].flush()
        with sessions.begin() as other:
            other.execute(select(Thing))

    once(handler)
    assert place.things() == []
    assert "has written and not committed" in caplog.text


def test_a_session_that_only_reads_takes_nothing_of_another_away(
    place: Place, engine: Engine, idempotency: Idempotency, once: Once
) -> None:
    sessions = join_sessionmaker(sessionmaker(engine), idempotency)

    def handler() -> list[str]:
        reader = sessions()  # who asks: it is open to the end
        assert reader.scalars(select(Thing)).all() == []
        with sessions.begin() as session:
            session.add(Thing(name="one"))
        with sessions() as session:
            session.add(Thing(name="two"))
            session.commit()
            session.scalars(select(Thing)).all()
            with sessions.begin() as inner:
                inner.add(Thing(name="three"))
            session.rollback()
        names = [thing.name for thing in reader.scalars(select(Thing).order_by(Thing.id))]
        reader.rollback()
        reader.close()
        return names

    assert once(handler) == ["one", "two", "three"]
    assert place.things() == ["one", "two", "three"]


def test_sessions_that_end_out_of_their_order_keep_what_each_has_committed(
    place: Place, engine: Engine, idempotency: Idempotency, once: Once
) -> None:
    sessions = join_sessionmaker(sessionmaker(engine), idempotency)

    def handler() -> None:
        first, second = sessions(), sessions()
        first.execute(text("select 1"))
        second.execute(text("select 1"))
        first.add(Thing(name="first"))
        first.commit()
        second.add(Thing(name="second"))
        second.flush()
        first.close()
        second.commit()
        second.close()

    once(handler)
    assert place.things() == ["first", "second"]


def test_a_rollback_that_would_undo_what_another_has_committed_is_refused(
    place: Place, engine: Engine, idempotency: Idempotency, once: Once
) -> None:
    sessions = join_sessionmaker(sessionmaker(engine), idempotency)

    def handler() -> None:
        outer = sessions()
        outer.add(Thing(name="outer"))
        outer.flush()
        with sessions.begin() as inner:
            inner.add(Thing(name="inner"))
        try:
            outer.rollback()
        except exc.InvalidRequestError as error:
            assert "written in turns" in str(error)
        else:
            raise AssertionError

    with pytest.raises(Exception, match="nothing was done"):
        once(handler)
    assert place.things() == []


@pytest.mark.parametrize("ends", ["rollback", "close"])
def test_a_rollback_to_an_inner_savepoint_does_not_forget_what_was_written_before_it(
    place: Place, idempotency: Idempotency, once: Once, engine: Engine, ends: str
) -> None:
    sessions = join_sessionmaker(sessionmaker(engine), idempotency)

    def handler() -> str:
        first, second = sessions(), sessions()
        first.execute(insert(Thing).values(name="before"))
        inner = first.begin_nested()
        first.execute(insert(Thing).values(name="inside"))
        inner.rollback()
        second.execute(insert(Thing).values(name="another's"))
        second.commit()
        with contextlib.suppress(exc.InvalidRequestError):
            getattr(first, ends)()  # would take the other's away, or leave its own
        return "done"

    with pytest.raises(Exception, match="nothing was done"):
        once(handler)
    assert place.things() == []


def test_what_a_session_wrote_before_an_inner_rollback_and_left_is_said(
    place: Place,
    idempotency: Idempotency,
    once: Once,
    engine: Engine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sessions = join_sessionmaker(sessionmaker(engine), idempotency)

    def handler() -> str:
        session = sessions()
        session.execute(insert(Thing).values(name="before"))
        with contextlib.suppress(Failed), session.begin_nested():
            session.execute(insert(Thing).values(name="inside"))
            raise Failed
        kept.append(session)
        return "done"

    kept: list[Session] = []
    assert once(handler) == "done"
    assert place.things() == []
    assert "written and not committed" in caplog.text


def test_a_rollback_goes_back_to_the_last_commit(
    place: Place, engine: Engine, idempotency: Idempotency, once: Once
) -> None:
    sessions = join_sessionmaker(sessionmaker(engine), idempotency)

    def handler() -> None:
        with sessions() as session:
            session.add(Thing(name="kept"))
            session.commit()
            session.add(Thing(name="undone"))
            session.flush()
            session.rollback()
            with pytest.raises(exc.DBAPIError):
                session.execute(text("select nothing from nowhere"))
            session.rollback()
            with session.begin_nested():
                session.add(Thing(name="nested"))
            nested = session.begin_nested()
            session.add(Thing(name="undone too"))
            nested.rollback()
            connection = session.connection()
            connection.execute(insert(Thing).values(name="by the connection"))
            session.commit()
            session.connection().execute(insert(Thing).values(name="undone as well"))
            session.rollback()

    once(handler)
    assert place.things() == ["kept", "nested", "by the connection"]


def _bound(kind: str, engine: Engine) -> Any:
    if kind == "class":
        options: dict[str, Any] = {"engines": staticmethod(lambda mapper, flushing: engine)}
        return sessionmaker(class_=type("Own", (Routing,), options))
    if kind == "binds":
        return sessionmaker(binds={Thing: engine})
    if kind == "none":
        return sessionmaker()
    if kind == "twophase":
        return sessionmaker(engine, twophase=True)
    if kind == "same url":
        return sessionmaker(create_engine(engine.url))
    if kind == "options":
        return sessionmaker(engine.execution_options(logging_token="shop"))
    return sessionmaker(
        class_=ShardedSession,
        shards={"one": engine},
        shard_chooser=lambda *_, **__: "one",
        identity_chooser=lambda *_, **__: ["one"],
        execute_chooser=lambda _: ["one"],
    )


@pytest.mark.parametrize(
    "kind", ["class", "binds", "none", "twophase", "same url", "options", "sharded"]
)
@pytest.mark.parametrize("way", ["op.session", "joined"])
def test_a_session_that_chooses_its_engine_stays_in_the_transaction(
    place: Place, engine: Engine, kind: str, way: str
) -> None:
    factory = _bound(kind, engine)
    own = Idempotency(SQLAlchemyStore(engine, sessions=factory))
    if way == "joined":
        own = Idempotency(SQLAlchemyStore(engine))
        join_sessionmaker(factory, own)

    @idempotent(own, key="key")
    def handler(key: str, fails: bool) -> None:
        session = current_operation().session() if way == "op.session" else factory()
        session.add(Thing(name="flushed"))
        session.flush()
        session.connection(bind_arguments={"mapper": inspect(Thing)}).execute(
            insert(Thing).values(name="by the connection")
        )
        session.commit()
        if fails:
            raise Failed

    for _ in range(3):
        with pytest.raises(Failed):
            handler("failing", True)
    assert place.things() == []
    handler("k", False)
    assert place.things() == ["flushed", "by the connection"]
    own.stop()


@pytest.mark.parametrize(
    "write",
    [
        lambda session, other: session.execute(
            insert(Thing).values(name="x"), bind_arguments={"bind": other}
        ),
        lambda session, other: session.connection(bind_arguments={"bind": other}).execute(
            insert(Thing).values(name="x")
        ),
    ],
    ids=["execute", "connection"],
)
def test_a_write_to_another_database_is_refused(
    place: Place, engine: Engine, once: Once, tmp_path: Path, write: Any
) -> None:
    other = Place("sqlite", tmp_path)

    def handler() -> None:
        session = current_operation().session()
        session.add(Thing(name="mine"))
        session.flush()
        write(session, other.looks)

    with pytest.raises(StoreSetupError, match="writes to"):
        once(handler)
    assert other.things() == []
    assert place.things() == []


def test_a_session_that_has_left_the_operation_keeps_it_from_committing(
    place: Place, engine: Engine, once: Once, tmp_path: Path
) -> None:
    other = Place("sqlite", tmp_path)

    def handler() -> None:
        session = current_operation().session()
        for _ in range(2):
            with contextlib.suppress(StoreSetupError):
                session.connection(bind_arguments={"bind": other.looks}).execute(
                    insert(Thing).values(name="x")
                )

    with pytest.raises(Exception, match="nothing was done"):
        once(handler)
    assert other.things() == []
    assert place.things() == []


def test_a_model_of_another_database_can_be_read_and_not_written(
    place: Place, engine: Engine, tmp_path: Path
) -> None:
    other = Place("sqlite", tmp_path)
    with Session(other.looks) as session:
        session.add(Thing(name="theirs"))
        session.commit()
    factory = sessionmaker(binds={Thing: other.looks})
    own = Idempotency(SQLAlchemyStore(engine, sessions=factory))

    @idempotent(own, key="key")
    def handler(key: str) -> list[str]:
        session = current_operation().session()
        names = [thing.name for thing in session.scalars(select(Thing))]
        session.add(Thing(name="new"))
        with pytest.raises(StoreSetupError, match="writes to"):
            session.flush()
        session.rollback()
        return names

    assert handler("k") == ["theirs"]
    assert other.things() == ["theirs"]
    own.stop()


def test_a_reading_engine_of_the_same_database_is_the_operations(
    place: Place, engine: Engine
) -> None:
    reader = create_engine(engine.url)
    options = {"engines": staticmethod(lambda _, flushing: engine if flushing else reader)}
    factory = sessionmaker(class_=type("ReaderWriter", (Routing,), options))
    own = Idempotency(SQLAlchemyStore(engine, sessions=factory))

    @idempotent(own, key="key")
    def handler(key: str) -> int:
        session = current_operation().session()
        session.add(Thing(name="mine"))
        session.flush()
        return len(session.scalars(select(Thing)).all())

    assert handler("k") == 1
    own.stop()
    reader.dispose()


def test_an_isolation_level_of_its_own_is_refused(engine: Engine, once: Once) -> None:
    def handler() -> None:
        session = current_operation().session()
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})

    with pytest.raises(exc.InvalidRequestError, match="isolation_level"):
        once(handler)


def test_listeners_for_after_commit_wait_for_the_real_commit(
    place: Place, engine: Engine, idempotency: Idempotency, once: Once
) -> None:
    sessions = join_sessionmaker(sessionmaker(engine), idempotency)
    seen: list[tuple[str, list[str]]] = []

    def note(name: str) -> Callable[[Session], None]:
        return lambda session: seen.append((name, place.things()))

    event.listen(sessions, "after_commit", note("factory"))

    def handler(fails: bool = False) -> None:
        with sessions() as session:
            event.listen(session, "after_commit", note("session"), once=True)
            session.add(Thing(name="thing"))
            session.commit()
            assert seen == []
        own = current_operation().session()
        event.listen(own, "after_commit", note("own"))
        own.add(Thing(name="own"))
        own.commit()
        assert seen == []
        if fails:
            raise Failed

    with pytest.raises(Failed):
        once(lambda: handler(True))
    assert seen == []
    once(handler)
    assert {name for name, _ in seen} == {"factory", "session", "own"}
    assert all(sorted(things) == ["own", "thing"] for _, things in seen)
    seen.clear()
    with sessions.begin() as session:
        session.add(Thing(name="outside"))
    assert [name for name, _ in seen] == ["factory"]


def test_a_scoped_session_that_has_begun_before_the_operation_goes_on_in_it(
    place: Place, engine: Engine, idempotency: Idempotency, once: Once
) -> None:
    sessions = join_sessionmaker(scoped_session(sessionmaker(engine)), idempotency)
    with Session(engine) as session:
        session.add(Thing(name="old"))
        session.commit()
    thing = sessions.scalars(select(Thing)).one()

    def handler(fails: bool = False) -> None:
        thing.name = "changed"
        sessions.add(Thing(name="new"))
        sessions.commit()
        if fails:
            raise Failed

    with pytest.raises(Failed):
        once(lambda: handler(True))
    assert place.things() == ["old"]
    sessions.remove()
    thing = sessions.scalars(select(Thing)).one()
    once(handler)
    sessions.remove()
    assert sorted(place.things()) == ["changed", "new"]


def test_after_its_operation_a_factory_gives_the_applications_own_sessions(
    place: Place, engine: Engine, idempotency: Idempotency, once: Once
) -> None:
    sessions = join_sessionmaker(sessionmaker(engine), idempotency)
    kept: list[Session] = []

    def handler() -> None:
        kept.append(sessions())
        kept[0].add(Thing(name="in it"))
        kept[0].commit()

    once(handler)
    kept[0].add(Thing(name="after it"))
    kept[0].commit()
    kept[0].close()
    assert place.things() == ["in it", "after it"]


def test_the_pool_is_whole_afterwards(
    place: Place, idempotency: Idempotency, engine: Engine, once: Once
) -> None:
    sessions = join_sessionmaker(sessionmaker(engine), idempotency)

    def handler() -> None:
        with sessions.begin() as session:
            session.add(Thing(name="x"))
            sessions().scalars(select(Thing)).all()

    for number in range(20):
        once(handler, str(number))  # type: ignore[call-arg]
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_another_kind_of_factory_is_refused_with_what_to_give(idempotency: Idempotency) -> None:
    with pytest.raises(TypeError, match="give a sessionmaker"):
        join_sessionmaker(Session, idempotency)


def test_a_store_with_transactions_of_another_kind_is_refused(
    place: Place, engine: Engine, tmp_path: Path
) -> None:
    own = Idempotency(f"sqlite:///{tmp_path}/records.db")
    sessions = join_sessionmaker(sessionmaker(engine), own)

    @idempotent(own, key="key")
    def handler(key: str) -> None:
        with sessions() as session:
            session.add(Thing(name="x"))
            session.commit()

    with pytest.raises(StoreSetupError, match="sqlite://, whose transaction a session"):
        handler("k")
    own.stop()
    assert place.things() == []


def test_on_a_store_without_transactions_sessions_are_the_applications_own(
    place: Place, engine: Engine
) -> None:
    own = Idempotency("memory://")
    sessions = join_sessionmaker(sessionmaker(engine), own)

    @idempotent(own, key="key")
    def handler(key: str) -> None:
        with sessions.begin() as session:
            session.add(Thing(name="x"))

    for _ in range(2):
        handler("k")
    own.stop()
    assert place.things() == ["x"]


@pytest.mark.parametrize("guarantee", [None, "atomic"])
def test_a_write_beside_an_atomic_operation_is_told_of_once(
    place: Place,
    engine: Engine,
    idempotency: Idempotency,
    caplog: pytest.LogCaptureFixture,
    guarantee: Any,
) -> None:
    watch()
    sessions = sessionmaker(engine)

    @idempotent(idempotency, key="key", guarantee=guarantee)
    def handler(key: str) -> None:
        current_operation().connection()
        if place.url.get_backend_name() == "sqlite":
            return  # it has one writer
        with sessions.begin() as session:
            session.scalars(select(Thing)).all()
            session.add(Thing(name=f"beside {guarantee}"))

    for number in range(3):
        handler(str(number))
    told = [record for record in caplog.records if "another connection" in record.message]
    expected = guarantee == "atomic" and place.url.get_backend_name() != "sqlite"
    assert len(told) == expected
    assert all(record.levelno == logging.ERROR for record in told)


# --- async -----------------------------------------------------------------------------------


@pytest.fixture(params=ASYNC)
def async_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made = Place(request.param, tmp_path)
    yield made
    made.looks.dispose()


@pytest.mark.parametrize("scoped", [False, True])
async def test_async_factories_join(async_place: Place, scoped: bool) -> None:
    engine = async_place.async_engine()
    own = Idempotency(SQLAlchemyStore(engine))
    made = async_sessionmaker(engine, expire_on_commit=False)
    sessions: Any = join_sessionmaker(
        async_scoped_session(made, scopefunc=lambda: 1) if scoped else made, own
    )
    committed: list[str] = []

    @idempotent(own, key="key")
    async def handler(key: str, fails: bool) -> None:
        async with sessions() as session:
            event.listen(session.sync_session, "after_commit", lambda _: committed.append(key))
            session.add(Thing(name=key))
            await session.commit()
            session.add(Thing(name="undone"))
            await session.flush()
            await session.rollback()
        async with sessions() as session:
            await session.scalars(select(Thing))
            connection = await session.connection()
            await connection.execute(insert(Thing).values(name=f"{key} by the connection"))
            await session.commit()
        if scoped:
            await sessions.remove()
        if fails:
            raise Failed

    for _ in range(2):
        with pytest.raises(Failed):
            await handler("bad", True)
    assert async_place.things() == []
    assert committed == []
    for _ in range(2):
        await handler("k", False)
    async with sessions() as session, session.begin():
        session.add(Thing(name="outside"))
    assert async_place.things() == ["k", "k by the connection", "outside"]
    assert set(committed) == {"k"}
    await own.store.astop()  # type: ignore[attr-defined]
    await engine.dispose()


async def test_an_async_session_that_chooses_its_engine_stays_in_the_transaction(
    async_place: Place,
) -> None:
    engine = async_place.async_engine()
    options = {"engines": staticmethod(lambda *_: engine.sync_engine)}
    routing = type("AsyncRouting", (Routing,), options)
    factory: Any = async_sessionmaker(sync_session_class=routing, expire_on_commit=False)
    own = Idempotency(SQLAlchemyStore(engine, sessions=factory))

    @idempotent(own, key="key")
    async def handler(key: str, fails: bool) -> None:
        session: AsyncSession = await current_async_operation().session()
        session.add(Thing(name=key))
        await session.commit()
        if fails:
            raise Failed

    for _ in range(3):
        with pytest.raises(Failed):
            await handler("bad", True)
    await handler("good", False)
    assert async_place.things() == ["good"]
    await own.store.astop()  # type: ignore[attr-defined]
    await engine.dispose()


async def test_the_drivers_own_connection_is_in_the_transaction(async_place: Place) -> None:
    engine = async_place.async_engine()
    own = Idempotency(SQLAlchemyStore(engine))

    @idempotent(own, key="key")
    async def handler(key: str, fails: bool) -> None:
        driver = await current_async_operation().driver()
        await driver.execute(f"insert into thing (name) values ('{key}')")
        if fails:
            raise Failed

    for _ in range(3):
        with pytest.raises(Failed):
            await handler("bad", True)
    for _ in range(2):
        await handler("good", False)
    assert async_place.things() == ["good"]
    await own.store.astop()  # type: ignore[attr-defined]
    await engine.dispose()


def test_the_plain_drivers_own_connection_is_in_the_transaction(place: Place, once: Once) -> None:
    def handler(fails: bool = False) -> None:
        driver = current_operation().driver()
        driver.execute("insert into thing (name) values ('by the driver')")
        if fails:
            raise Failed

    for _ in range(3):
        with pytest.raises(Failed):
            once(lambda: handler(True))
    once(handler)
    assert place.things() == ["by the driver"]


def test_a_store_without_sqlalchemy_has_no_driver_to_give(tmp_path: Path) -> None:
    own = Idempotency(f"sqlite:///{tmp_path}/x.db")

    @idempotent(own, key="key")
    def handler(key: str) -> None:
        current_operation().driver()

    with pytest.raises(StoreSetupError, match=r"op.driver\(\) is for SQLAlchemyStore"):
        handler("k")
    own.stop()
