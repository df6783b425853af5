from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from tests.django import project
from tests.http.harness import Client, asgi_server, wsgi_server


@cache
def _database(vendor: str) -> dict[str, Any]:
    return project.database(vendor, f"shop_{vendor}", Path(mkdtemp()))


@pytest.fixture(params=project.VENDORS)
def vendor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["wsgi", "asgi"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def database(vendor: str) -> Iterator[Any]:
    """The default database, empty, on this vendor's server."""
    from django.core.management import call_command

    from tests.django import views

    project.use("default", _database(vendor))
    call_command("flush", verbosity=0, interactive=False)
    project.forget_steps("default")
    for seen in (views.runs, views.hooks):
        seen.clear()
    views.begun.clear()
    views.go_on.clear()
    yield project.connections["default"]
    project.connections["default"].close()


Serve = Callable[..., Client]


@pytest.fixture
def serve(kind: str, database: Any) -> Iterator[Serve]:
    """Serve the project behind a real server, with these settings."""
    from django.core.handlers.asgi import ASGIHandler
    from django.core.handlers.wsgi import WSGIHandler
    from django.test import override_settings

    from semel.web.django.conf import configured

    with contextlib.ExitStack() as stack:

        def serve(semel: dict[str, Any] | None = None, **settings: Any) -> Client:
            stack.enter_context(override_settings(SEMEL=semel or {}, **settings))
            configured.cache_clear()
            idempotency = configured().idempotency
            stack.callback(idempotency.stop)
            server = asgi_server(ASGIHandler()) if kind == "asgi" else wsgi_server(WSGIHandler())
            return Client(stack.enter_context(server))

        yield serve


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Views that raise on purpose are not news."""
    names = ("django.request", "django.security", "semel", "waitress", "uvicorn.error", "asyncio")
    before = [logging.getLogger(name).level for name in names]
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    yield
    for name, level in zip(names, before, strict=True):
        logging.getLogger(name).setLevel(level)
