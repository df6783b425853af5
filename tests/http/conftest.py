from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from semel import Idempotency
from tests.http.harness import Recorder, Server, serve


@pytest.fixture(params=["asgi", "wsgi"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["memory", "sqlite"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return "memory://"
    return f"sqlite:///{tmp_path}/records.db?synchronous=normal"


Start = Callable[..., Server]


@pytest.fixture
def start(kind: str) -> Iterator[Start]:
    """Start the recorder's application behind a real server, with these settings."""
    with contextlib.ExitStack() as stack:

        def start(recorder: Recorder, store: Any = "memory://", **settings: Any) -> Server:
            return stack.enter_context(serve(kind, recorder, Idempotency(store, **settings)))

        yield start


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Handlers that raise on purpose are not news."""
    names = ("uvicorn.error", "waitress", "asyncio")
    levels = [logging.getLogger(name).level for name in names]
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    yield
    for name, level in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(level)
