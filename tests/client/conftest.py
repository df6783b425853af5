from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.client.wire import Caller, Wire


@pytest.fixture
def serve() -> Iterator[Callable[..., Wire]]:
    """Start servers that follow a script."""
    wires: list[Wire] = []

    def start(*script: Any) -> Wire:
        wires.append(Wire(list(script)))
        return wires[-1]

    yield start
    for wire in wires:
        wire.close()


@pytest.fixture(params=["httpx", "async", "requests"])
def call(request: pytest.FixtureRequest) -> Iterator[Callable[..., Caller]]:
    """Make clients of each kind."""
    callers: list[Caller] = []

    def make(**how: Any) -> Caller:
        callers.append(Caller(request.param, **how))
        return callers[-1]

    make.kind = request.param  # type: ignore[attr-defined]
    yield make
    for caller in callers:
        caller.close()
