"""Django with its views, REST framework's or Ninja's: each returns its URL patterns for a shop."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import SuspiciousOperation
from django.db import connection
from django.http import JsonResponse
from django.views.decorators.csrf import csrf_exempt

from django.urls import path
from semel.web.django import idempotency_policy, operation
from tests.http.frameworks import Crash, Shop


def write(how: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("insert into ledger values (%s)", [how])


def caller_of(shop: Shop) -> Any:
    """Return what `SEMEL["caller"]` is to be."""

    def caller(request: Any) -> Any:
        user = shop.user(request.headers.get("X-User"))
        return JsonResponse({}, status=401) if user is None else {"sub": user}

    return caller


def patterns(shop: Shop) -> list[Any]:
    def plain(request: Any) -> JsonResponse:
        return JsonResponse({"run": shop.run("plain")}, status=201)

    def atomic(request: Any, how: str) -> JsonResponse:
        shop.run(how)
        write(how)
        if how == "raised":
            raise SuspiciousOperation
        if how == "crash":
            raise Crash
        return JsonResponse({}, status=402 if how == "returned" else 201)

    def needs(request: Any) -> JsonResponse:
        return JsonResponse({"attempt": operation(request).attempt})

    @idempotency_policy(required=True)
    def required(request: Any) -> JsonResponse:
        return JsonResponse({"run": shop.run("required")})

    return [
        path("plain", csrf_exempt(plain)),
        path("atomic/<how>", csrf_exempt(atomic)),
        path("needs", csrf_exempt(needs)),
        path("required", csrf_exempt(required)),
    ]
