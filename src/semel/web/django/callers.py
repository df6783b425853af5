"""Callers under Django: who asks, and whether they may, before anything is replayed or claimed.

A replay is given only after the present request has been authenticated and authorised. Middleware
does that before ours. Django REST framework does it inside the view, so it is asked here first, by
the view's own authenticators and permissions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest

from semel.idempotency import Idempotency
from semel.web.http.callers import Caller, Credentials, caller_of, credential_headers


class Authorized(NamedTuple):
    """The caller of a request; or the refusal of the framework itself."""

    caller: Caller
    refusal: Any = None


def authorize(
    idempotency: Idempotency,
    allowed: Any,
    request: HttpRequest,
    view: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Authorized:
    """Authenticate and authorise. Raises `PermissionDenied` where `allowed` says no."""
    if allowed is not None and not allowed(request, view, args, kwargs):
        raise PermissionDenied
    user = getattr(request, "user", None)
    if _is_drf(view):
        user, refusal = _ask_drf(request, view, args, kwargs)
        if refusal is not None:
            return Authorized("", refusal)
    return Authorized(django_caller(idempotency, DjangoView(request, user)))


def django_caller(idempotency: Idempotency, request: DjangoView) -> Caller:
    """Return who has sent a request."""
    names = credential_headers(idempotency.credentials)
    return caller_of(request, idempotency.scope, idempotency.session_cookie, names)


def _kind(user: Any) -> str:
    """Tell kinds of callers apart, who may share a pk: `user:1` is of AUTH_USER_MODEL only.

    Of another kind (a device that an authenticator of REST framework has found) it is
    `user:shop.device:1`.
    """
    if apps.is_installed("django.contrib.auth") and isinstance(user, get_user_model()):
        return ""
    cls = user.__class__  # what a lazy one stands for
    meta = getattr(cls, "_meta", None)
    label: str = getattr(meta, "label_lower", f"{cls.__module__}.{cls.__qualname__}")
    return f"{label}:"


class DjangoView:
    """A Django request, as a `scope` or `key` function and the way in see it.

    `native` is that request; the user is the one whom it was authenticated as.
    """

    def __init__(self, request: HttpRequest, user: Any = None) -> None:
        self.method: str = request.method or ""
        self.path: str = request.path
        self.native = request
        self._user = user

    def header(self, name: str) -> str | None:
        value: str | None = self.native.headers.get(name)
        return value

    def credentials(self, names: Iterable[bytes]) -> Credentials:
        found = []
        for name in names:
            value = self.native.META.get("HTTP_" + name.decode("latin-1").upper().replace("-", "_"))
            if value:
                found.append((name, value.encode()))
        return tuple(found)

    def session(self, cookie: str | None) -> bytes:
        value: str = self.native.COOKIES.get(cookie or settings.SESSION_COOKIE_NAME, "")
        return value.encode()

    def user(self) -> str | None:
        user = self._user
        if user is None or not getattr(user, "is_authenticated", False):
            return None
        name = getattr(user, "pk", None) or getattr(user, "username", None)
        if not name:
            raise TypeError(
                f"{type(user).__name__} has no pk or username that tells callers apart: name the"
                ' caller with SEMEL = {"scope": …}'
            )
        return f"{_kind(user)}{name}"


def _is_drf(view: Any) -> bool:
    views = sys.modules.get("rest_framework.views")
    cls = getattr(view, "cls", None)
    return views is not None and isinstance(cls, type) and issubclass(cls, views.APIView)


def _ask_drf(
    request: HttpRequest, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Return the caller by the view's authenticators and permissions, or the view's own refusal."""
    from rest_framework.exceptions import APIException

    view = func.cls(**getattr(func, "initkwargs", {}))
    actions: Mapping[str, str] = getattr(func, "actions", None) or {}
    if actions:
        view.action_map = actions
        for method, action in actions.items():
            setattr(view, method, getattr(view, action))
    view.args, view.kwargs = args, kwargs
    before = {name: request.__dict__.get(name) for name in ("user", "auth", "_cached_user")}
    try:
        view.request = view.initialize_request(request, *args, **kwargs)
        view.headers = view.default_response_headers
        view.format_kwarg = view.get_format_suffix(**kwargs)
        view.perform_authentication(view.request)
        view.check_permissions(view.request)
        return view.request.user, None
    except (APIException, PermissionDenied, Http404) as error:
        response = view.handle_exception(error)
        return None, view.finalize_response(view.request, response, *args, **kwargs)
    finally:
        # The view authenticates by itself: a user whom a token has named must not look to it like
        # one whom a session has, whose requests need a CSRF token.
        for name, value in before.items():
            if value is not None:
                request.__dict__[name] = value
            else:
                request.__dict__.pop(name, None)
