"""The table of `docs/frameworks.md`: a test for each of its cells, over real servers and SQLite."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import logging
import sqlite3
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType
from typing import Any

import pytest

from docs.frameworks_table import COLUMNS, FRAMEWORKS, Framework, claimed
from semel import Idempotency, Policy
from tests.http.frameworks import Shop
from tests.http.harness import Answer, Client, asgi_server, wsgi_server

numbers = itertools.count(1)


class Served:
    """A shop that is served by one of the frameworks, and the ledger that it writes."""

    def __init__(self, shop: Shop, client: Client, graphql: bool, ledger: Path) -> None:
        self.shop = shop
        self.client = client
        self._graphql = graphql
        self._ledger = ledger

    def send(self, path: str, key: str | None = "k", token: str | None = None) -> Answer:
        """Send a POST, or the mutation of the same name."""
        headers = [] if token is None else [("X-User", token)]
        if not self._graphql:
            return self.client.send(path, key=key, body=b"{}", headers=headers)
        _, name, *how = path.split("/")
        given = f'(how: "{how[0]}")' if how else ""
        body = json.dumps({"query": f"mutation {{ {name}{given} }}"}).encode()
        return self.client.send("/graphql", key=key, body=body, headers=headers)

    def rows(self) -> list[str]:
        with contextlib.closing(sqlite3.connect(self._ledger)) as database:
            return [how for (how,) in database.execute("select how from ledger")]


@cache
def django_database() -> tuple[Any, Path]:
    """Return the settings of a database with a ledger, made once, and its file."""
    from tests.django import project

    folder = Path(mkdtemp())
    settings = project.database("sqlite", "frameworks", folder)
    project.use("default", settings)
    with contextlib.closing(sqlite3.connect(folder / "frameworks.db")) as database, database:
        database.execute("create table ledger (how)")
    return settings, folder / "frameworks.db"


@contextlib.contextmanager
def django_server(framework: Framework, shop: Shop) -> Iterator[tuple[int, Path]]:
    """Serve a project with the URLs of this shop, on an empty database."""
    from tests.django import project

    settings, ledger = django_database()
    project.use("default", settings)

    from django.core.handlers.wsgi import WSGIHandler
    from django.core.management import call_command
    from django.test import override_settings

    from semel.web.django.conf import configured
    from tests.http.frameworks.of_django import caller_of

    call_command("flush", verbosity=0, interactive=False)
    with contextlib.closing(sqlite3.connect(ledger)) as database, database:
        database.execute("delete from ledger")
    urls = ModuleType(f"frameworks_urls_{next(numbers)}")
    module = importlib.import_module(f"tests.http.frameworks.of_{framework.application}")
    urls.urlpatterns = module.patterns(shop)  # type: ignore[attr-defined]
    sys.modules[urls.__name__] = urls
    own = framework.application == "django" and shop.asks
    semel = {"caller": caller_of(shop)} if own else {}
    with override_settings(SEMEL=semel, ROOT_URLCONF=urls.__name__, DEBUG=shop.debug):
        configured.cache_clear()
        try:
            with wsgi_server(WSGIHandler()) as port:
                yield port, ledger
        finally:
            configured().idempotency.stop()
            project.connections["default"].close()
            del sys.modules[urls.__name__]
    configured.cache_clear()


@contextlib.contextmanager
def plain_server(framework: Framework, shop: Shop) -> Iterator[int]:
    module = importlib.import_module(f"tests.http.frameworks.of_{framework.application}")
    server = asgi_server if framework.server == "asgi" else wsgi_server
    with server(module.make(shop)) as port:
        yield port


Serve = Callable[..., Served]


@pytest.fixture
def serve(framework: Framework, tmp_path: Path) -> Iterator[Serve]:
    with contextlib.ExitStack() as stack:

        def start(**settings: bool) -> Served:
            ledger = tmp_path / f"shop{next(numbers)}.db"
            rules = {} if framework.marks else {"POST /required": Policy(required=True)}
            url = f"sqlite:///{ledger}?synchronous=normal"
            shop = Shop(Idempotency(url, routes=rules), **settings)
            if framework.server == "django":
                port, ledger = stack.enter_context(django_server(framework, shop))
            else:
                with contextlib.closing(sqlite3.connect(ledger)) as database, database:
                    database.execute("create table ledger (how)")
                port = stack.enter_context(plain_server(framework, shop))
            return Served(shop, Client(port), framework.graphql, ledger)

        yield start


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Handlers that crash on purpose are not news."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(before)


def cells(column: str) -> pytest.MarkDecorator:
    """Give a test each framework whose cell in this column says yes."""
    rows = [pytest.param(row, id=row.application) for row in FRAMEWORKS if column in row.cells]
    return pytest.mark.parametrize("framework", rows)


@cells("plain")
def test_plain(serve: Serve) -> None:
    served = serve()
    first, again = served.send("/plain"), served.send("/plain")
    assert first.status in (200, 201)
    assert (again.status, again.body) == (first.status, first.body)
    assert (first.replayed, again.replayed) == (False, True)
    assert served.shop.runs == ["plain"]
    for _ in range(2):
        unkeyed = served.send("/plain", key=None)
        assert (unkeyed.status, unkeyed.replayed) == (first.status, False)
    assert served.shop.runs == ["plain"] * 3


@cells("atomic")
def test_atomic(serve: Serve, framework: Framework) -> None:
    served = serve()
    sent = [served.send("/atomic/ok") for _ in range(2)]
    assert [each.status for each in sent] == [200 if framework.graphql else 201] * 2
    assert [each.replayed for each in sent] == [False, True]
    assert served.rows() == ["ok"]
    for _ in range(2):
        crashed = served.send("/atomic/crash", key="another")
        assert not crashed.replayed
        assert b'"errors"' in crashed.body if framework.graphql else crashed.status == 500
    assert served.rows() == ["ok"]
    assert served.shop.runs == ["ok", "crash", "crash"]


@cells("raised")
def test_raised(serve: Serve) -> None:
    served = serve()
    for how, rows in (("raised", []), ("returned", ["returned"])):
        first, again = (served.send(f"/atomic/{how}", key=how) for _ in range(2))
        assert 400 <= first.status < 500
        assert (again.status, again.body) == (first.status, first.body)
        assert (first.replayed, again.replayed) == (False, True)
        assert served.rows() == rows
    assert served.shop.runs == ["raised", "returned"]


@cells("caller")
def test_caller(serve: Serve) -> None:
    served = serve(asks=True)
    served.shop.whose["anns-new"] = "ann"
    assert served.send("/plain").status == 401
    ann, bob = served.send("/plain", token="ann"), served.send("/plain", token="bob")
    assert (ann.replayed, bob.replayed) == (False, False)
    assert ann.body != bob.body
    assert served.shop.runs == ["plain"] * 2
    renewed = served.send("/plain", token="anns-new")
    assert (renewed.replayed, renewed.body) == (True, ann.body)
    served.shop.whose["ann"] = None
    revoked = served.send("/plain", token="ann")
    assert (revoked.status, revoked.replayed) == (401, False)
    assert served.send("/plain", token="anns-new").replayed
    assert served.shop.runs == ["plain"] * 2


@pytest.mark.parametrize("debug", [False, True], ids=["production", "debug"])
@cells("missing")
def test_missing(serve: Serve, framework: Framework, debug: bool) -> None:
    if framework.graphql:
        served = serve(required=True, debug=debug)
        refused = json.loads(served.send("/required", key=None).body)
        assert refused["errors"][0]["extensions"]["code"] == "key-missing"
        assert served.shop.runs == []
        return
    served = serve(debug=debug)
    for path in ("/needs", "/required"):
        refused = served.send(path, key=None)
        assert (refused.status, refused.problem) == (400, "key-missing")
        assert served.send(path, key=path).status in (200, 201)
    assert served.shop.runs == ["required"]


@cells("openapi")
def test_openapi(serve: Serve, framework: Framework) -> None:
    at = "/schema/openapi.json" if framework.application == "litestar" else "/openapi.json"
    document = json.loads(serve().client.send(at, key=None, method="GET", body=b"").body)
    for path, required in (("/plain", False), ("/required", True)):
        described = document["paths"][path]["post"]
        headers = {
            each["name"].lower(): each for each in described["parameters"] if each["in"] == "header"
        }
        assert headers["idempotency-key"].get("required", False) is required
        for status in ("400", "409", "422"):
            assert "application/problem+json" in described["responses"][status]["content"]


def test_each_cell_that_says_yes_has_a_test() -> None:
    """One that must run, too: `conftest.py` lets none of these tests be skipped."""
    tested = {
        (row.values[0].application, column)
        for column in COLUMNS
        for mark in globals()[f"test_{column}"].pytestmark
        if mark.args[0] == "framework"
        for row in mark.args[1]
    }
    assert tested == claimed()
    assert all({*row.cells, *row.others} == set(COLUMNS) for row in FRAMEWORKS)
