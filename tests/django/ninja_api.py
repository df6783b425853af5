"""A shop's API as Django Ninja serves it."""

from __future__ import annotations

import functools
from typing import Any

from asgiref.sync import sync_to_async
from ninja import NinjaAPI, Router, Schema, Status
from ninja.errors import HttpError
from ninja.security import APIKeyCookie, APIKeyHeader, HttpBearer, django_auth
from ninja.throttling import BaseThrottle

from semel.operation import current_async_operation, current_operation
from semel.web.django import idempotency_policy, operation
from tests.django.shop.models import Charge
from tests.django.views import marking, runs

tokens: dict[str, Any] = {}
"""Whom bearer tokens and API keys stand for."""
asked: list[str] = []


class DomainError(Exception):
    pass


class Bearer(HttpBearer):
    def authenticate(self, request: Any, token: str) -> Any:
        asked.append(token)
        return tokens.get(token)


class AsyncBearer(HttpBearer):
    async def authenticate(self, request: Any, token: str) -> Any:
        asked.append(token)
        return tokens.get(token)


class Key(APIKeyHeader):
    param_name = "X-Shop-Key"

    def authenticate(self, request: Any, key: str | None) -> Any:
        return key in tokens


class CookieKey(APIKeyCookie):
    param_name = "shop"

    def __init__(self) -> None:
        super().__init__(csrf=False)

    def authenticate(self, request: Any, key: str | None) -> Any:
        return key in tokens


class Counted(BaseThrottle):
    count = 0

    def allow_request(self, request: Any) -> bool:
        Counted.count += 1
        return True


class Order(Schema):
    item: str


api = NinjaAPI(title="shop", urls_namespace="shop", auth=Bearer())
lax = NinjaAPI(title="lax", urls_namespace="lax")
router = Router(auth=Key())


@api.exception_handler(DomainError)
def domain_error(request: Any, error: DomainError) -> Any:
    return api.create_response(request, {"error": str(error)}, status=402)


@lax.exception_handler(Exception)
def everything(request: Any, error: Exception) -> Any:
    return lax.create_response(request, {"own": type(error).__name__}, status=400)


def _fail(how: str) -> Any:
    if how == "http":
        raise HttpError(402, "no money")
    if how == "domain":
        raise DomainError("no money")
    if how == "broken":
        raise RuntimeError("on purpose")
    return Status(402, {"error": "no money"})


@api.post("/orders", response={201: dict[str, Any], 402: dict[str, Any]}, throttle=[Counted()])
def order(request: Any, order: Order, how: str = "") -> Any:
    runs.append("order")
    Charge.objects.create(order=order.item)
    if how:
        return _fail(how)
    return Status(201, {"order": order.item, "of": str(request.auth)})


@api.post("/async_orders", response={201: dict[str, Any], 402: dict[str, Any]}, auth=AsyncBearer())
async def async_order(request: Any, order: Order, how: str = "") -> Any:
    runs.append("async_order")
    await Charge.objects.acreate(order=order.item)
    if how:
        return _fail(how)
    return Status(201, {"order": order.item, "of": str(request.auth)})


@idempotency_policy(required=True)
@api.post("/above", auth=None)
def above(request: Any) -> Any:
    runs.append("above")
    return "had"


@api.post("/below/{int:number}", auth=None)
@idempotency_policy(required=True)
def below(request: Any, number: int) -> Any:
    runs.append("below")
    return "had"


@api.post("/marked", auth=None)
@marking.route(required=True)
def marked(request: Any) -> Any:
    runs.append("marked")
    return "had"


@api.post("/cookie", auth=CookieKey())
def cookie(request: Any) -> Any:
    runs.append("cookie")
    return len(runs)


@api.post("/session", auth=django_auth)
def session(request: Any) -> Any:
    runs.append("session")
    return str(request.auth)


@api.api_operation(["GET", "PATCH"], "/both", auth=None)
def both(request: Any) -> Any:
    return "both"


@router.post("/pay")
def pay(request: Any) -> Any:
    runs.append("pay")
    return len(runs)


def _counting(view: Any) -> Any:
    @functools.wraps(view)
    def around(request: Any, *args: Any, **kwargs: Any) -> Any:
        return view(request, *args, **kwargs)

    return around


router.add_decorator(_counting)
api.add_router("/keyed", router)


@lax.post("/asks")
def asks(request: Any, current: bool = False) -> Any:
    runs.append("asks")
    return (current_operation() if current else operation(request)).attempt


@lax.post("/async_asks")
async def async_asks(request: Any) -> Any:
    runs.append("async_asks")
    await sync_to_async(str)(1)
    return current_async_operation().attempt


@api.post("/asks", auth=None)
def asks_plainly(request: Any) -> Any:
    runs.append("asks")
    return operation(request).attempt


@api.post("/async_asks", auth=None)
async def async_asks_plainly(request: Any) -> Any:
    return current_async_operation().attempt
