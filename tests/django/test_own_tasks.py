"""Context variables that are set within an operation under ASGI are seen around it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
from asgiref.sync import markcoroutinefunction

from semel.operation import current
from tests.django.conftest import Serve

SET_INSIDE: ContextVar[str] = ContextVar("django_set_inside", default="outside")


def inside(get_response: Callable[[Any], Any]) -> Any:
    async def middleware(request: Any) -> Any:
        SET_INSIDE.set("inside")
        return await get_response(request)

    markcoroutinefunction(middleware)
    return middleware


def around(get_response: Callable[[Any], Any]) -> Any:
    async def middleware(request: Any) -> Any:
        response = await get_response(request)
        response["X-Seen"] = SET_INSIDE.get()
        response["X-Operation"] = str(current.get())
        return response

    markcoroutinefunction(middleware)
    return middleware


inside.async_capable = around.async_capable = True  # type: ignore[attr-defined]
inside.sync_capable = around.sync_capable = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("vendor", ["sqlite"])
@pytest.mark.parametrize("kind", ["asgi"])
@pytest.mark.parametrize("path", ["/charge", "/async_charge"])
@pytest.mark.parametrize("key", [None, "k"])
def test_they_are_seen_with_a_key_as_without(serve: Serve, path: str, key: str | None) -> None:
    from django.conf import settings

    *before, own = settings.MIDDLEWARE
    name = "tests.django.test_own_tasks"
    client = serve(MIDDLEWARE=[*before, f"{name}.around", own, f"{name}.inside"])
    told = client.send(path, key=key, body=b'{"order": "o1"}')
    assert told.status == 201
    assert told.header("X-Seen") == "inside"
    assert told.header("X-Operation") == "None"
