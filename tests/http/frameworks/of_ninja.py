from __future__ import annotations

import itertools
from typing import Any

from ninja import NinjaAPI, Status
from ninja.errors import HttpError
from ninja.security import APIKeyHeader

from django.urls import path
from semel.web.django import idempotency_policy, operation
from tests.http.frameworks import Crash, Shop
from tests.http.frameworks.of_django import write

numbers = itertools.count(1)


def patterns(shop: Shop) -> list[Any]:
    class Tokens(APIKeyHeader):
        param_name = "X-User"

        def authenticate(self, request: Any, key: str | None) -> Any:
            user = shop.user(key)
            return None if user is None else {"sub": user}

    named = f"frameworks{next(numbers)}"
    api = NinjaAPI(urls_namespace=named, auth=Tokens() if shop.asks else None)

    @api.post("/plain", response={201: dict[str, int]})
    def plain(request: Any) -> Any:
        return Status(201, {"run": shop.run("plain")})

    @api.post("/atomic/{how}", response={201: dict[str, int], 402: dict[str, int]})
    def atomic(request: Any, how: str) -> Any:
        shop.run(how)
        write(how)
        if how == "raised":
            raise HttpError(422, "declined")
        if how == "crash":
            raise Crash
        return Status(402 if how == "returned" else 201, {})

    @api.post("/needs")
    def needs(request: Any) -> Any:
        return {"attempt": operation(request).attempt}

    @api.post("/required")
    @idempotency_policy(required=True)
    def required(request: Any) -> Any:
        return {"run": shop.run("required")}

    return [path("", api.urls)]
