"""The portable tables: shared by two stores, brought up to date, checked, refused to others."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Double, Engine, MetaData, create_engine, inspect, make_url, text

from semel.core.commands import (
    Claim,
    Claimed,
    Complete,
    Found,
    Lookup,
    Park,
    Recorded,
    RecordStep,
    Settle,
    Steps,
    StoreUnavailable,
    Takeover,
)
from semel.core.record import COLUMNS, Response, State
from semel.stores import StoreSetupError, open_store
from semel.stores.django import DjangoStore
from semel.stores.django.connection import PARAMSTYLE, DjangoConnection
from semel.stores.portable import schema
from semel.stores.portable.commands import PortableCommands
from semel.stores.portable.dialects import DIALECTS, POSTGRESQL, ColumnType
from semel.stores.portable.statements import PortableStatement
from semel.stores.sqlalchemy import SQLAlchemyStore, metadata
from semel.stores.sqlalchemy.connection import SQLAlchemyConnection, paramstyle_of
from semel.stores.sqlite.steps import SQLiteSteps
from tests.django import project

PRINT = b"\x01" + b"f" * 32
RESPONSE = Response(201, ((b"a", b"b"),), b"charged")
KEY, OTHER = b"k" * 16, b"o" * 16
DRIVERS = {
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "mariadb": "mysql+pymysql",
}
_numbers = itertools.count()


class Place:
    """An empty database that both SQLAlchemy and Django can reach."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.alias = f"portable_{kind}_{next(_numbers)}"
        self.settings = project.database(kind, self.alias, folder)
        name, host = self.settings["NAME"], self.settings.get("HOST")
        self.url = make_url(f"{DRIVERS[kind]}:///{name}").set(
            host=host, port=self.settings.get("PORT"), username=self.settings.get("USER")
        )
        self.engine: Engine = create_engine(self.url)

    def migrate(self) -> None:
        """Have Django know the database, and make its tables."""
        project.use(self.alias, self.settings)

    def know(self) -> Any:
        """Have Django know the database as it is; return the connection."""
        whole = {**project.connections.settings["default"], **self.settings}
        project.connections.settings[self.alias] = whole
        project.connections.databases[self.alias] = whole
        return project.connections[self.alias]

    def run(self, *statements: str) -> None:
        with self.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    def version(self) -> int | None:
        with self.engine.connect() as connection:
            return connection.scalar(text("select version from semel_schema"))

    def columns(self) -> set[str]:
        return {column["name"] for column in inspect(self.engine).get_columns("semel_record")}

    def alchemy(self, **options: Any) -> SQLAlchemyStore:
        store = SQLAlchemyStore(self.engine, **options)
        store.start()
        return store

    def django(self) -> DjangoStore:
        store = DjangoStore(self.alias)
        store.start()
        return store


@pytest.fixture(params=DRIVERS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    made = Place(request.param, tmp_path)
    yield made
    made.engine.dispose()
    if made.alias in project.connections.settings:
        project.connections[made.alias].close()


def claim(key: bytes = KEY) -> Claim:
    return Claim(key, PRINT, 30.0, b"me")


def each_sees_the_other(one: Any, two: Any) -> None:
    won = one.execute(claim())
    assert isinstance(won, Claimed)
    found = two.execute(claim())
    assert isinstance(found, Found)
    assert (found.record.token, found.record.owner) == (won.token, b"me")
    two.execute(RecordStep(KEY, won.token, "call", b"done", 60.0))
    assert one.execute(Steps(KEY)) == {"call": b"done"}
    assert two.execute(Complete(KEY, won.token, RESPONSE, 60.0, 60.0)) is True
    assert one.execute(Lookup(KEY)).record.response == RESPONSE
    lapsed = two.execute(claim(OTHER)._replace(lease=0.0))
    taken = one.execute(Takeover(OTHER, lapsed.token, PRINT, 30.0, b"you", expired=False))
    assert taken.token > lapsed.token > won.token
    assert two.execute(Complete(OTHER, lapsed.token, RESPONSE, 60.0, 60.0)) is False
    for store in (one, two):
        store.stop()


def test_sqlalchemy_and_django_share_the_tables_that_django_made(place: Place) -> None:
    place.migrate()
    alchemy, django = place.alchemy(create_tables=False), place.django()
    each_sees_the_other(alchemy, django)
    from semel.web.django.models import RecordedStep, StoredRecord

    record = StoredRecord.objects.using(place.alias).get(key=KEY)
    assert (record.state, record.key_hash, record.fingerprint) == (2, KEY.hex(), PRINT)
    if place.kind != "sqlite":  # there steps are in a file
        step = RecordedStep.objects.using(place.alias).get()
        assert str(step) == f"{KEY.hex()[:12]} call"


def test_sqlalchemy_and_django_share_the_tables_that_sqlalchemy_made(place: Place) -> None:
    alchemy = place.alchemy()
    place.migrate()
    each_sees_the_other(place.django(), alchemy)


def test_manage_py_makes_the_tables_where_no_migration_did(place: Place) -> None:
    place.know()
    manage = ("semel", "migrate", "--database", place.alias)
    said = io.StringIO()
    project.call_command(*manage, "--sql", stdout=said)
    assert inspect(place.engine).get_table_names() == []
    project.call_command(*manage, stdout=(did := io.StringIO()))
    assert did.getvalue() == said.getvalue()
    each_sees_the_other(place.alchemy(create_tables=False), place.django())
    assert place.version() == schema.MIGRATION


def test_a_transaction_of_the_one_completes_the_claim_of_the_other(place: Place) -> None:
    place.migrate()
    alchemy, django = place.alchemy(), place.django()
    for one, two, key in ((alchemy, django, KEY), (django, alchemy, OTHER)):
        token = one.execute(claim(key)).token
        assert two.begin().complete(Complete(key, token, RESPONSE, 60.0, 60.0)) is True
        assert one.execute(Lookup(key)).record.state is State.COMPLETED
    alchemy.stop()
    django.stop()


def made_by_alembic(place: Place) -> None:
    metadata.create_all(place.engine)
    place.know()


def made_by_the_models(place: Place) -> None:
    """As a test runner does that is told to run no migrations."""
    from semel.web.django.models import RecordedStep, StoredRecord

    with place.know().schema_editor() as editor:
        editor.create_model(StoredRecord)
        editor.create_model(RecordedStep)


@pytest.mark.parametrize("make", [made_by_alembic, made_by_the_models])
def test_tables_that_others_made_need_no_stamp(place: Place, make: Callable[[Place], None]) -> None:
    make(place)
    each_sees_the_other(place.alchemy(create_tables=False), place.django())
    place.alchemy().stop()  # stamps them
    assert place.version() == schema.MIGRATION


def test_every_way_makes_the_same_columns_and_indexes(place: Place) -> None:
    def type_of(column: Any) -> str:
        if place.kind == "sqlite":  # which looks at no more of it
            return str(column["type"]._type_affinity.__name__)
        return str(column["type"]).partition(" ")[0]

    def described() -> Any:
        looks = inspect(place.engine)
        return {
            name: (
                {(c["name"], type_of(c), c["nullable"]) for c in looks.get_columns(name)},
                {index["name"] for index in looks.get_indexes(name)},
                {tuple(unique["column_names"]) for unique in looks.get_unique_constraints(name)},
            )
            for name in ("semel_record", "semel_step")
        }

    place.alchemy().stop()
    ours = described()
    for make in (made_by_alembic, made_by_the_models):
        metadata.drop_all(place.engine)
        make(place)
        assert described() == ours, make


def test_alembic_sees_no_difference_whoever_made_the_tables(place: Place) -> None:
    """Types, defaults and identities as a comparison reflects them are those of the metadata."""

    def reflected() -> Any:
        looks = inspect(place.engine)
        return {
            table.name: {
                column.pop("name"): {**column, "type": repr(column["type"])}
                for column in looks.get_columns(table.name)
            }
            for table in schema.TABLES
        }

    made_by_alembic(place)
    ours = reflected()
    for table in metadata.tables.values():
        for column in table.columns:
            assert column.server_default is None
            there = ours[table.name][column.name]
            assert (there["default"] is None) or "nextval" in there["default"]
            assert "identity" not in there
            if isinstance(column.type, Double):
                assert there["type"].startswith("DOUBLE"), there
    for make in (lambda place: place.alchemy().stop(), Place.migrate):
        metadata.drop_all(place.engine)
        if make is Place.migrate:
            place.run("drop table if exists django_migrations")
        make(place)
        assert reflected() == ours, make


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_tables_of_a_native_store_are_refused(kind: str, tmp_path: Path) -> None:
    place = Place(kind, tmp_path)
    native = open_store(place.url.set(drivername=kind).render_as_string())
    native.start()
    native.stop()
    for options in ({}, {"create_tables": False}):
        with pytest.raises(StoreSetupError, match=r"SQLiteStore has its tables .* of its own"):
            place.alchemy(**options)
    with pytest.raises(StoreSetupError, match="SQLiteStore has its tables"):
        place.migrate()
    with pytest.raises(StoreSetupError, match="SQLiteStore has its tables"):
        place.django()
    assert isinstance(_execute(native, claim()), Claimed)
    project.connections[place.alias].close()
    place.engine.dispose()


@pytest.mark.parametrize("make", [made_by_alembic, Place.migrate])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_native_store_refuses_the_portable_tables(
    kind: str, make: Callable[[Place], None], tmp_path: Path
) -> None:
    place = Place(kind, tmp_path)
    make(place)
    alchemy = place.alchemy(create_tables=False)
    with pytest.raises(StoreSetupError, match="another kind of store"):
        open_store(place.url.set(drivername=kind).render_as_string()).start()
    each_sees_the_other(alchemy, place.django())
    place.alchemy().stop()
    project.connections[place.alias].close()
    place.engine.dispose()


def _execute(store: Any, command: Any) -> Any:
    store.start()
    try:
        return store.execute(command)
    finally:
        store.stop()


def test_a_column_that_is_missing_is_named(place: Place) -> None:
    place.migrate()
    place.run("alter table semel_record drop column reason")
    with pytest.raises(StoreSetupError, match=r"lacks semel_record\.reason: .*Alembic"):
        place.alchemy(create_tables=False)
    with pytest.raises(StoreSetupError, match=r"lacks semel_record\.reason: .*py semel migrate"):
        place.django()
    with pytest.raises(StoreSetupError, match=r"semel_record\.reason: .*without this column"):
        place.alchemy()


def test_a_table_of_somebody_else_is_refused(place: Place) -> None:
    place.run("create table semel_record (id integer, reason integer)")
    with pytest.raises(StoreSetupError, match=r"semel_record\.token.*semel_record\.request"):
        place.alchemy()


def test_an_index_that_is_missing_is_warned_of_and_refuses_nobody(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.migrate()
    on = " on semel_record" if place.kind == "mariadb" else ""
    place.run(f"drop index semel_record_due{on}")
    starts: list[Callable[[], Any]] = [lambda: place.alchemy(create_tables=False), place.django]
    for start in starts:
        caplog.clear()
        with caplog.at_level("WARNING", "semel"):
            store = start()
        assert "lacks the index semel_record_due" in caplog.text
        assert isinstance(store.execute(Lookup(KEY)), Found | None)
        store.stop()
    place.alchemy().stop()  # makes it
    caplog.clear()
    with caplog.at_level("WARNING", "semel"):
        place.django().stop()
    assert caplog.text == ""


def test_a_unique_constraint_that_is_missing_is_refused_and_made(place: Place) -> None:
    """Without it the same key could be claimed twice."""
    place.migrate()
    if place.kind == "sqlite":  # which cannot drop one
        place.run("drop table semel_record")
        with place.engine.begin() as connection:
            made = metadata.tables["semel_record"].to_metadata(MetaData())
            made.constraints = {c for c in made.constraints if c.name != "semel_record_key"}
            made.create(connection)
    elif place.kind == "postgresql":
        place.run("alter table semel_record drop constraint semel_record_key")
        place.run('create unique index some_of_them on semel_record ("key") where state = 1')
    else:
        place.run("alter table semel_record drop index semel_record_key")
    starts: list[Callable[[], Any]] = [lambda: place.alchemy(create_tables=False), place.django]
    for start in starts:
        with pytest.raises(StoreSetupError, match="lacks semel_record_key: "):
            start()
    each_sees_the_other(place.alchemy(), place.django())


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a release that has one column more."""
    added = schema.PortableColumn("added", ColumnType.BYTES, null=True, since=2)
    index = schema.PortableIndex("semel_record_purge", ("purge_at",), since=2)
    record = schema.RECORD._replace(
        columns=(*schema.RECORD.columns, added), indexes=(*schema.RECORD.indexes, index)
    )
    monkeypatch.setattr(schema, "TABLES", (record, schema.STEP, schema.STAMP))
    monkeypatch.setattr(schema, "MIGRATION", 2)


def test_what_a_later_release_adds_is_named_and_then_made(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place.migrate()
    token = place.alchemy().execute(claim()).token  # type: ignore[union-attr]
    assert place.version() == 1
    with monkeypatch.context() as newer:
        later(newer)
        with (
            caplog.at_level("WARNING", "semel"),
            pytest.raises(StoreSetupError, match=r"lacks semel_record\.added: .*Al"),
        ):
            place.alchemy(create_tables=False)
        assert "lacks the index semel_record_purge" in caplog.text
        with pytest.raises(StoreSetupError, match=r"semel_record\.added.*migrate"):
            place.django()
        place.alchemy().stop()
        place.alchemy(create_tables=False).stop()
        place.django().stop()
        assert (place.version(), "added" in place.columns()) == (2, True)
    with caplog.at_level("WARNING", "semel"):  # the older release goes on meanwhile
        older = place.alchemy()
    assert "has migration 2" in caplog.text
    assert older.execute(Complete(KEY, token, RESPONSE, 60.0, 60.0)) is True
    assert isinstance(older.execute(claim(OTHER)), Claimed)
    assert place.version() == 2
    older.stop()


def test_migrate_makes_what_a_later_release_adds(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.test import override_settings

    from semel.web.django.tables import drop_tables, migrate_tables

    place.migrate()
    connection = project.connections[place.alias]
    later(monkeypatch)
    semel = override_settings(SEMEL={"alias": place.alias})
    with semel, connection.schema_editor() as editor:
        migrate_tables(None, editor)
    place.django().stop()
    assert (place.version(), "added" in place.columns()) == (2, True)
    with connection.schema_editor() as editor:
        drop_tables(None, editor)
    assert not set(inspect(place.engine).get_table_names()) & {t.name for t in schema.TABLES}


def test_the_record_has_every_column_that_is_read() -> None:
    assert set(COLUMNS) <= {column.name for column in schema.RECORD.columns}
    assert {dialect.name for dialect in DIALECTS.values()} == {"postgresql", "mysql", "sqlite"}
    for dialect in DIALECTS.values():
        assert set(dialect.types) == set(ColumnType)


@pytest.mark.parametrize(
    ("style", "written"),
    [
        ("qmark", "a in (?, ?) and b = ? or b = ?"),
        ("pyformat", "a in (%s, %s) and b = %s or b = %s"),
        ("numeric_dollar", "a in ($1, $2) and b = $3 or b = $4"),
    ],
)
def test_parameters_are_written_as_the_driver_wants_them(style: str, written: str) -> None:
    statement = PortableStatement("a in (:ids) and b = :b or b = :b", POSTGRESQL, style)
    assert statement.bind({"ids": [1, 2], "b": 3, "c": 4}) == (written, (1, 2, 3, 3))
    assert statement.bind({"ids": [1], "b": 3})[1] == (1, 3, 3)


def test_a_style_of_parameters_that_is_not_known_is_refused() -> None:
    with pytest.raises(StoreSetupError, match="'named'"):
        PortableStatement("select :a", POSTGRESQL, "named")
    style = paramstyle_of(create_engine("sqlite://", paramstyle="named").dialect)
    assert PortableStatement("select :a", DIALECTS["sqlite"], style).bind({"a": 1})[1] == (1,)


def test_a_step_is_recorded_on_a_snapshot_that_still_sees_an_earlier_life(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Django's connections may be REPEATABLE READ: what a sweep deletes stays in sight."""
    if place.kind == "sqlite":
        return  # one writer: nobody sweeps meanwhile
    store = place.alchemy(create_tables=True)
    claimed = store.execute(Claim(KEY, PRINT, 30, b"one"))
    assert isinstance(claimed, Claimed)
    store.execute(RecordStep(KEY, claimed.token, "card", b"of an earlier life", 0.0))
    looked = PortableCommands._may_record

    def swept_meanwhile(*arguments: Any) -> bool:
        held = looked(*arguments)
        place.run("delete from semel_step")
        return held

    monkeypatch.setattr(PortableCommands, "_may_record", swept_meanwhile)
    engine = place.engine.execution_options(isolation_level="REPEATABLE READ")
    dialect = engine.dialect
    commands = PortableCommands(DIALECTS[dialect.name], paramstyle_of(dialect))
    with engine.begin() as connection:
        command = RecordStep(KEY, claimed.token, "card", b"charged", 100.0)
        recorded = commands.apply(SQLAlchemyConnection(connection), command)
    assert recorded == Recorded(b"charged")
    assert store.execute(Steps(KEY)) == {"card": b"charged"}
    store.stop()


@pytest.mark.parametrize("kind", ["sqlalchemy", "django"])
def test_a_settlement_takes_its_steps_along_or_does_nothing(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite, whose steps are in a file of their own."""
    place = Place("sqlite", tmp_path)
    place.migrate()
    store = place.alchemy() if kind == "sqlalchemy" else place.django()
    claimed = store.execute(Claim(KEY, PRINT, 30, b"one"))
    assert isinstance(claimed, Claimed)
    store.execute(RecordStep(KEY, claimed.token, "card", None, 100.0))
    store.execute(Park(KEY, claimed.token, "why", lapsed=False))
    settle = Settle(KEY, claimed.token, None, 0.0, 0.0)

    def locked(self: SQLiteSteps, key: bytes) -> None:
        raise StoreUnavailable("the file is locked")

    with monkeypatch.context() as patched:
        patched.setattr(SQLiteSteps, "forget_unsure", locked)
        with pytest.raises(StoreUnavailable):
            store.execute(settle)
    assert isinstance(store.execute(Lookup(KEY)), Found)
    assert store.execute(settle) is True
    assert (store.execute(Lookup(KEY)), store.execute(Steps(KEY))) == (None, {})
    store.stop()


def test_a_start_with_nothing_to_do_waits_for_no_writer(tmp_path: Path) -> None:
    place = Place("sqlite", tmp_path)
    place.alchemy(create_tables=True).stop()
    impatient = create_engine(place.url, connect_args={"timeout": 0})
    with place.engine.connect() as writer:
        writer.exec_driver_sql("begin immediate")
        store = SQLAlchemyStore(impatient, create_tables=True)
        store.start()
        store.stop()
        writer.rollback()


def test_django_may_log_the_queries(place: Place) -> None:
    """Its cursors for debugging write the parameters into the statement."""
    connection = place.know()
    connection.force_debug_cursor = True
    place.migrate()
    held = DjangoConnection(connection)
    dialect = DIALECTS[connection.vendor]
    assert schema.PortableSchema(dialect, PARAMSTYLE).check(held) == []
    commands = PortableCommands(dialect, PARAMSTYLE)
    claimed = commands.apply(held, Claim(KEY, PRINT, 30, b"one"))
    assert isinstance(claimed, Claimed)
    assert commands.apply(held, RecordStep(KEY, claimed.token, "card", b"5", 9)) == Recorded(b"5")
    assert commands.apply(held, Steps(KEY)) == {"card": b"5"}
    assert commands.apply(held, Complete(KEY, claimed.token, RESPONSE, 10, 10)) is True
    found = commands.apply(held, Lookup(KEY))
    assert isinstance(found, Found)
    assert found.record.response == RESPONSE
    assert any("semel_record" in query["sql"] for query in connection.queries)
    connection.close()
