"""The view that issues keys: `path("idempotency-keys", issue_keys)` in your URLs."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.views.decorators.csrf import csrf_exempt

from semel.web.django.answers import plain
from semel.web.django.asked import Asked
from semel.web.django.callers import django_caller
from semel.web.django.conf import configured
from semel.web.django.rules import EXEMPT_ATTRIBUTE
from semel.web.http import issue as issuer
from semel.web.http.callers import scope_name

__all__ = ["issue_keys"]


@csrf_exempt  # it changes nothing, and another site cannot read its answer
def issue_keys(request: HttpRequest) -> Any:
    """Answer `POST {"count": 50}` with that many keys for the present user.

    Under REST framework and Ninja call it from a view of theirs (`@api_view(["POST"])`,
    `@api.post`), whose authentication then says who the user is, and leave that route alone
    (`"routes": {"/idempotency-keys": None}`).
    Raises `ImproperlyConfigured` where `SEMEL` names no issuer.
    """
    service = configured()
    idempotency = service.idempotency
    if idempotency.issuer is None:
        raise ImproperlyConfigured('SEMEL: issue_keys needs {"issuer": Issuer(secret)}')
    auth = getattr(request, "auth", None)  # REST framework's, Ninja's
    asked = Asked(request, getattr(request, "user", None), auth)
    found = django_caller(service, asked)
    if found.refusal is not None:
        return found.refusal
    scope = scope_name(found.caller)
    body = request.read(issuer.LARGEST + 1)
    return plain(issuer.issue(idempotency, scope, request.method or "", body))


setattr(issue_keys, EXEMPT_ATTRIBUTE, True)  # a request for keys needs none
