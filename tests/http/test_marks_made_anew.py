"""Marks that are made again with each request, as Django's `method_decorator` makes them."""

from __future__ import annotations

import functools
from typing import Any

from django.utils.decorators import method_decorator

from semel import Idempotency
from semel.applications import POLICY_ATTRIBUTE


def test_a_view_that_is_decorated_for_each_request_is_one_mark() -> None:
    idempotency = Idempotency("memory://")
    decorate = idempotency.route(required=True)

    class View:
        @method_decorator(decorate)
        def post(self) -> str:
            return "done"

    view = View()
    view.post()
    idempotency.applications.met = True
    before = len(idempotency.applications._marked)
    for _ in range(100):
        assert view.post() == "done"
    assert len(idempotency.applications._marked) == before
    assert idempotency.applications.met


def test_wrappers_of_different_handlers_are_marks_of_their_own() -> None:
    idempotency = Idempotency("memory://")

    def made(number: int) -> Any:
        def handler() -> int:
            return number

        @functools.wraps(handler)
        def wrapper() -> int:
            return handler()

        return idempotency.route(required=True)(wrapper)

    handlers = [made(number) for number in range(3)]
    assert len(idempotency.applications._marked) == 3
    assert all(getattr(each, POLICY_ATTRIBUTE).required for each in handlers)
    assert not idempotency.applications.met
