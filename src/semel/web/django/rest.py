"""Django REST framework: who asks, by the view's own authenticators and permissions."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest

from semel.web.django.asked import Asked
from semel.web.django.exchange import exchange_of

_NOTES: Final = "_semel_notes"


def rest_class(view: object) -> Any:
    """Return the class behind a view of REST framework, None where it is another's."""
    views = sys.modules.get("rest_framework.views")
    cls = getattr(view, "cls", None)
    found = views is not None and isinstance(cls, type) and issubclass(cls, views.APIView)
    return cls if found else None


def ask(request: HttpRequest, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Asked:
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
        return Asked(view.request, view.request.user, view.request.auth)
    except (APIException, PermissionDenied, Http404) as error:
        response = view.handle_exception(error)
        refusal = view.finalize_response(view.request, response, *args, **kwargs)
        return Asked(request, refusal=refusal)
    finally:
        # The view authenticates by itself: a user whom a token has named must not look to it like
        # one whom a session has, whose requests need a CSRF token.
        for name, value in before.items():
            if value is not None:
                request.__dict__[name] = value
            else:
                request.__dict__.pop(name, None)


def adopt(view: object) -> None:
    """Have the class behind a view tell operations what it makes a response of."""
    cls = rest_class(view)
    if cls is None or hasattr(cls.handle_exception, _NOTES):
        return
    original = cls.handle_exception

    @functools.wraps(original)
    def handle_exception(self: Any, exc: Exception) -> Any:
        request = getattr(self, "request", None)
        exchange = exchange_of(getattr(request, "_request", request))
        if exchange is not None:
            exchange.note(exc)
            if exchange.concerns(exc):
                raise exc  # for Django to answer: the response is no page of REST framework's
        return original(self, exc)

    setattr(handle_exception, _NOTES, True)
    cls.handle_exception = handle_exception
