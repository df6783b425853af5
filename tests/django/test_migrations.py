"""What `manage.py migrate` does to tables that DjangoStore has, or that another store has."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client as Browser
from django.test import override_settings

from semel.core.commands import Claim, Claimed, Found
from semel.stores import Store, StoreSetupError, open_store
from semel.stores.django import DjangoStore
from semel.web.django.conf import configured
from tests.django import project

KEY = b"k" * 16
ALIAS = "default"
pytestmark = pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
_made = iter(range(1000))


@pytest.fixture
def native(kind: str, tmp_path: Path) -> Iterator[str]:
    """An empty database that Django knows as `default`; its URL for a native store."""
    settings = project.database(kind, f"migrations_{kind}_{next(_made)}", tmp_path)
    before = project.connections.settings[ALIAS]
    _know({**before, **settings})
    if kind == "sqlite":
        yield f"sqlite:///{settings['NAME']}"
    else:
        host = f"{settings['USER']}@{settings['HOST']}:{settings['PORT']}"
        yield f"postgresql://{host}/{settings['NAME']}"
    _know(before)


def _know(settings: dict[str, Any]) -> None:
    project.connections[ALIAS].close()
    del project.connections[ALIAS]
    project.connections.settings[ALIAS] = settings
    project.connections.databases[ALIAS] = settings


def manage(*arguments: str) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()


def run(*statements: str) -> None:
    with project.connections[ALIAS].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def claims(store: Store) -> type:
    store.start()
    try:
        return type(store.execute(Claim(KEY, b"\x01print", 30.0, b"owner")))
    finally:
        store.stop()


def tables() -> set[str]:
    names = project.connections[ALIAS].introspection.table_names()
    return {name for name in names if name.startswith("semel_")}


@pytest.mark.parametrize("first", ["migrate", "start"])
def test_a_project_with_a_native_store_is_deployed_in_either_order(native: str, first: str) -> None:
    with override_settings(SEMEL={"store": native}):
        store = configured().idempotency.store
        if first == "start":
            assert claims(store) is Claimed
        manage("migrate")
        assert "semel_schema" not in tables()
        assert claims(store) is (Found if first == "start" else Claimed)
        assert "No migrations to apply" in manage("migrate")
        assert claims(store) is Found


@pytest.mark.parametrize(
    "semel", [{}, {"alias": ALIAS}, {"store": "no.such.store"}, {"polcy": {}}, [], None]
)
def test_the_tables_are_made_for_django_store_and_where_settings_cannot_be_read(
    native: str, semel: Any
) -> None:
    with override_settings(SEMEL=semel):
        manage("migrate")
    assert claims(DjangoStore(ALIAS)) is Claimed


@pytest.mark.parametrize("semel", [{"alias": "elsewhere"}, {"store": "memory://"}])
def test_no_tables_are_made_where_nobody_uses_them(native: str, semel: Any) -> None:
    with override_settings(SEMEL=semel):
        manage("migrate")
    assert tables() == set()
    assert claims(open_store(native)) is Claimed


def test_operators_of_a_native_store_are_shown_no_models(native: str) -> None:
    with override_settings(SEMEL={"store": native}):
        manage("migrate")
        User.objects.create_superuser("olga", password="x")
        page = Browser()
        page.force_login(User.objects.get())
        index = page.get("/admin/")
        assert index.status_code == 200
        assert "storedrecord" not in index.content.decode()
        assert page.get("/admin/semel/storedrecord/").status_code in (403, 404)
        with pytest.raises(CommandError, match="Store: only DjangoStore"):
            manage("semel", "show", KEY.hex())
        configured().idempotency.stop()


# --- migrate semel zero ------------------------------------------------------------------------


def test_tables_with_rows_are_not_dropped(native: str) -> None:
    manage("migrate")
    assert claims(DjangoStore(ALIAS)) is Claimed
    with pytest.raises(StoreSetupError, match=r"shares it .*`delete from semel_record` first"):
        manage("migrate", "semel", "zero")
    assert claims(DjangoStore(ALIAS)) is Found
    run("delete from semel_record")
    manage("migrate", "semel", "zero")
    assert tables() == set()


def test_the_tables_of_a_native_store_are_not_dropped(native: str) -> None:
    with override_settings(SEMEL={"store": native}):
        manage("migrate")
        assert claims(configured().idempotency.store) is Claimed
        manage("migrate", "semel", "zero")
        assert claims(configured().idempotency.store) is Found


# --- manage.py semel migrate -------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
def test_a_project_switches_to_django_store_later(native: str, kept: bool) -> None:
    """With the tables of the native store still there, it says what to do about them."""
    with override_settings(SEMEL={"store": native if kept else "memory://"}):
        manage("migrate")
        assert claims(configured().idempotency.store) is Claimed
        with pytest.raises(CommandError, match="looks after its own tables"):
            manage("semel", "migrate")
    with override_settings(SEMEL={}):
        assert "No migrations to apply" in manage("migrate")
        if kept:
            for command in (("migrate",), ("migrate", "--sql")):
                with pytest.raises(CommandError, match=r"Or drop semel_record, semel_step and"):
                    manage("semel", *command)
            for table in ("semel_record", "semel_step", "semel_migration"):
                run(f"drop table if exists {table}")
        else:
            with pytest.raises(StoreSetupError, match=r"py semel migrate --database default"):
                claims(DjangoStore(ALIAS))
        made = manage("semel", "migrate")
        assert "create table semel_record" in made
        assert claims(configured().idempotency.store) is Claimed
        assert manage("semel", "migrate") == "-- the tables lack nothing\n"


def test_sql_is_printed_for_whoever_reviews_it(native: str) -> None:
    with override_settings(SEMEL={"store": "memory://"}):
        manage("migrate")
    with override_settings(SEMEL={}):
        printed = manage("semel", "migrate", "--sql")
        assert tables() == set()
        run(*printed.strip().removesuffix(";").split(";\n"))
        assert manage("semel", "migrate", "--sql") == "-- the tables lack nothing\n"
        assert claims(DjangoStore(ALIAS)) is Claimed


def test_what_was_lost_is_made_again_or_refused(native: str) -> None:
    manage("migrate")
    run("drop index semel_record_due")
    assert manage("semel", "migrate", "--sql").startswith("create index semel_record_due on")
    assert manage("semel", "migrate").startswith("create index semel_record_due on")
    run("drop table semel_step")
    with pytest.raises(StoreSetupError, match=r"lacks semel_step.*py semel migrate"):
        claims(DjangoStore(ALIAS))
    manage("semel", "migrate", "--database", ALIAS)
    assert claims(DjangoStore(ALIAS)) is Claimed
    run("alter table semel_record drop column reason")
    with pytest.raises(CommandError, match=r"semel_record\.reason: .*without this column"):
        manage("semel", "migrate")
    with pytest.raises(CommandError, match="nowhere: DATABASES has default"):
        manage("semel", "migrate", "--database", "nowhere")
