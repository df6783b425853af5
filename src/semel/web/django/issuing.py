"""The view that issues keys: `path("idempotency-keys", issue_keys)` in your URLs."""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt

from semel.web.django.answers import plain
from semel.web.django.callers import DjangoView, django_caller
from semel.web.django.conf import configured
from semel.web.django.rules import EXEMPT_ATTRIBUTE
from semel.web.http import issue as issuer
from semel.web.http.callers import scope_name

__all__ = ["issue_keys"]


@csrf_exempt  # it changes nothing, and another site cannot read its answer
def issue_keys(request: HttpRequest) -> HttpResponse:
    """Answer `POST {"count": 50}` with that many keys for the present user.

    Under REST framework call it from an `@api_view(["POST"])` of yours, whose authentication then
    says who the user is, and leave that route alone (`"routes": {"/idempotency-keys": None}`).
    Raises `ImproperlyConfigured` where `SEMEL` names no issuer.
    """
    idempotency = configured().idempotency
    if idempotency.issuer is None:
        raise ImproperlyConfigured('SEMEL: issue_keys needs {"issuer": Issuer(secret)}')
    asking = DjangoView(request, getattr(request, "user", None))
    scope = scope_name(django_caller(idempotency, asking))
    body = request.read(issuer.LARGEST + 1)
    return plain(issuer.issue(idempotency, scope, request.method or "", body))


setattr(issue_keys, EXEMPT_ATTRIBUTE, True)  # a request for keys needs none
