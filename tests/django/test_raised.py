"""What is raised is undone, whatever makes a response of it; a view that misses its key says so."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from semel.stores.sqlite import SQLiteStore
from tests import servers
from tests.django import views
from tests.django.test_middleware import orders


@pytest.fixture(params=["sqlite", "postgresql"])
def vendor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def twice(client: Any, path: str, status: int, **more: Any) -> None:
    first, repeat = client.send(path, **more), client.send(path, **more)
    assert (first.status, repeat.status, first.replayed) == (status, status, False)
    assert repeat.replayed
    assert len(views.runs) == 1


@pytest.mark.parametrize(
    ("path", "status"),
    [("/gets", 404), ("/async_fails?how=404", 404), ("/async_fails?how=400", 400)],
)
def test_it_is_undone_in_plain_and_async_views(serve: Any, path: str, status: int) -> None:
    twice(serve(), path, status)
    assert orders() == []


def test_what_an_async_view_denies_may_be_tried_again(serve: Any) -> None:
    client = serve()
    for _ in range(2):
        assert client.send("/async_fails?how=403").status == 403
    assert (orders(), len(views.runs)) == ([], 2)


@pytest.mark.parametrize("path", ["/lenient", "/own_way"])
def test_it_is_undone_where_the_service_makes_its_own_response(serve: Any, path: str) -> None:
    twice(serve(), path, 400)
    assert orders() == []


@pytest.mark.parametrize("order", [b"order=too-long", b"order=tea"])
def test_a_forms_errors_that_were_returned_keep_what_was_written(serve: Any, order: bytes) -> None:
    form = [("Content-Type", "application/x-www-form-urlencoded")]
    status = 201 if order == b"order=tea" else 422
    twice(serve(), "/validated", status, body=order, headers=form)
    assert orders() == ["attempt"]


@cache
def _other_database() -> str:
    return servers.postgresql().database("other")


@pytest.fixture(params=["sqlite", "postgres", "sqlalchemy"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Another store than Django's, with a table of the service's own; and how to count it."""
    if request.param == "postgres":
        url = _other_database()
        engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        store: Any = url
    else:
        engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'own.db'}")
        store = engine if request.param == "sqlalchemy" else SQLiteStore(str(tmp_path / "own.db"))
    with engine.begin() as connection:
        if request.param == "postgres":
            connection.exec_driver_sql("drop schema public cascade; create schema public")
        connection.exec_driver_sql("create table own (what varchar(9))")
    yield store, lambda: _count(engine)
    engine.dispose()


def _count(engine: Any) -> int:
    with engine.connect() as connection:
        return int(connection.exec_driver_sql("select count(*) from own").scalar())


@pytest.mark.parametrize("vendor", ["sqlite"])
@pytest.mark.parametrize("kind", ["wsgi"])
@pytest.mark.parametrize(("how", "written"), [("404", 0), ("422", 1), ("201", 1)])
def test_it_is_undone_on_other_stores_too(serve: Any, other: Any, how: str, written: int) -> None:
    from semel import Idempotency

    store, count = other
    client = serve({"idempotency": Idempotency(store)})
    twice(client, f"/own_store?how={how}", int(how))
    assert count() == written


@pytest.mark.parametrize("vendor", ["sqlite"])
@pytest.mark.parametrize("debug", [False, True])
def test_a_view_that_asks_for_its_operation_needs_a_key(serve: Any, kind: str, debug: bool) -> None:
    client = serve(DEBUG=debug)
    paths = ["/asks", "/asks?current=1", "/lenient?asks=1", "/own_way?asks=1"]
    if kind == "asgi":
        paths += ["/async_asks", "/async_asks?current=1"]
    for path in paths:
        refused = client.send(path, key=None)
        assert (refused.status, refused.problem) == (400, "key-missing"), path


@pytest.mark.parametrize("vendor", ["sqlite"])
def test_a_page_for_errors_does_not_hide_that_a_key_is_missing(serve: Any) -> None:
    from django.conf import settings

    own = [*settings.MIDDLEWARE, "tests.django.views.AnswersEverything"]
    client = serve(MIDDLEWARE=own)
    assert client.send("/asks", key=None).problem == "key-missing"
    assert client.send("/asks").body == b"1"
    assert client.send("/fails?how=raise", key=None).body == b"sorry"
