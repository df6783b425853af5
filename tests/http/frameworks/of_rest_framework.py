from __future__ import annotations

from typing import Any

from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed, ValidationError
from rest_framework.permissions import IsAuthenticated
from rest_framework.response import Response
from rest_framework.views import APIView

from django.urls import path
from semel.web.django import idempotency_policy, operation
from tests.http.frameworks import Crash, Shop
from tests.http.frameworks.of_django import write


class Customer:
    is_authenticated = True

    def __init__(self, name: str) -> None:
        self.pk = name


def patterns(shop: Shop) -> list[Any]:
    class Tokens(BaseAuthentication):
        def authenticate(self, request: Any) -> Any:
            user = shop.user(request.headers.get("X-User"))
            if user is None:
                raise AuthenticationFailed
            return Customer(user), None

        def authenticate_header(self, request: Any) -> str:
            return "Token"

    class Asking(APIView):
        authentication_classes = (Tokens,) if shop.asks else ()
        permission_classes = (IsAuthenticated,) if shop.asks else ()

    class Plain(Asking):
        def post(self, request: Any) -> Response:
            return Response({"run": shop.run("plain")}, 201)

    class Atomic(Asking):
        def post(self, request: Any, how: str) -> Response:
            shop.run(how)
            write(how)
            if how == "raised":
                raise ValidationError("declined")
            if how == "crash":
                raise Crash
            return Response({}, 402 if how == "returned" else 201)

    class Needs(Asking):
        def post(self, request: Any) -> Response:
            return Response({"attempt": operation(request).attempt})

    class Required(Asking):
        @idempotency_policy(required=True)
        def post(self, request: Any) -> Response:
            return Response({"run": shop.run("required")})

    return [
        path("plain", Plain.as_view()),
        path("atomic/<how>", Atomic.as_view()),
        path("needs", Needs.as_view()),
        path("required", Required.as_view()),
    ]
