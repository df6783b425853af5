"""Whose request it is, and whether it may have an answer: before anything is replayed or claimed.

A replay is given only after the present request has been authenticated and authorised. Middleware
does that before ours. Django REST framework does it inside the view, so it is asked here first, by
the view's own authenticators and permissions.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest

from semel.idempotency import Idempotency, Whose, named_scope


class Caller(NamedTuple):
    """What was found out: whose key it is; or the refusal of the framework itself."""

    whose: Whose
    refusal: Any = None


def caller(
    idempotency: Idempotency,
    authorize: Any,
    request: HttpRequest,
    view: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Caller:
    """Authenticate and authorise. Raises `PermissionDenied` where `authorize` says no."""
    if authorize is not None and not authorize(request, view, args, kwargs):
        raise PermissionDenied
    user = getattr(request, "user", None)
    if _is_drf(view):
        user, refusal = _ask_drf(request, view, args, kwargs)
        if refusal is not None:
            return Caller("", refusal)
    return Caller(whose(idempotency, request, user))


def whose(idempotency: Idempotency, request: HttpRequest, user: Any) -> Whose:
    if idempotency.scope is not None:
        return named_scope(idempotency.scope(View(request)))
    name = None
    if user is not None and getattr(user, "is_authenticated", False):
        name = getattr(user, "pk", None) or getattr(user, "username", None)
        if not name:
            raise TypeError(
                f"{type(user).__name__} has no pk or username that tells callers apart: name the"
                ' caller with SEMEL = {"scope": …}'
            )
    authorization: str = request.META.get("HTTP_AUTHORIZATION", "")
    cookie = request.COOKIES.get(idempotency.session_cookie or settings.SESSION_COOKIE_NAME, "")
    named = None if name is None else f"{_kind(user)}{name}"
    return named, authorization.encode(), cookie.encode()


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


class View:
    """What a `scope` function sees of a Django request; `native` is that request."""

    def __init__(self, request: HttpRequest) -> None:
        self.method: str = request.method or ""
        self.path: str = request.path
        self.native = request

    def header(self, name: str) -> str | None:
        value: str | None = self.native.headers.get(name)
        return value


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
