"""Callers under Django: who asks, and whether they may, before anything is replayed or claimed.

A replay is given only after the present request has been authenticated and authorised. Middleware
does that before ours. Django REST framework and Django Ninja do it inside the view, so they are
asked here first.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from inspect import iscoroutinefunction
from typing import Any, NamedTuple

from asgiref.sync import async_to_sync
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from semel.core.policy import Policy
from semel.web.django import ninja, rest
from semel.web.django.asked import Asked, DjangoView, scope_of
from semel.web.django.conf import Configured
from semel.web.django.survey import framework_view
from semel.web.http.callers import ANONYMOUS, Caller, caller_of, credential_headers

log = logging.getLogger("semel")


class Authorized(NamedTuple):
    """The caller of a request; or the refusal of the framework itself."""

    caller: Caller
    refusal: Any = None


def authorize(
    service: Configured,
    policy: Policy,
    request: HttpRequest,
    view: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Authorized:
    """Authenticate and authorise. Raises `PermissionDenied` where `authorize` says no."""
    if service.authorize is not None and not service.authorize(request, view, args, kwargs):
        raise PermissionDenied
    inner = framework_view(view)
    operation = ninja.ninja_operation(inner, request.method or "")
    if operation is not None:
        asked = ninja.ask(operation, request)
    elif rest.rest_class(inner) is not None:
        asked = rest.ask(request, inner, args, kwargs)
    else:
        asked = Asked(request, getattr(request, "user", None))
    if asked.refusal is not None:
        return Authorized("", asked.refusal)
    found = django_caller(service, asked, ask=not policy.shared)
    if found.caller == (None, ()) and operation is not None and operation.auth_callbacks:
        _warn_of_nameless(request.path_info)
    return found


@functools.lru_cache(maxsize=256)
def _warn_of_nameless(path: str) -> None:
    log.warning(
        "%s: what its auth returned names nobody, and reads no credentials that can be seen: all"
        ' of its callers look the same. Let it return the user, or give SEMEL["caller"]',
        path,
    )


def django_caller(service: Configured, asked: Asked, *, ask: bool = True) -> Authorized:
    """Return who has sent a request, by the service's own function where it has given one."""
    idempotency = service.idempotency
    if service.caller is not None and ask:
        caller = service.caller
        found = (async_to_sync(caller) if iscoroutinefunction(caller) else caller)(asked.request)
        if isinstance(found, HttpResponseBase):
            return Authorized("", found)
        scope = scope_of(found)
        if scope != ANONYMOUS:  # else nobody is logged in: what there is tells them apart
            return Authorized(scope)
    names = credential_headers(idempotency.credentials)
    view = DjangoView(asked.request, asked)
    return Authorized(caller_of(view, idempotency.scope, idempotency.session_cookie, names))
