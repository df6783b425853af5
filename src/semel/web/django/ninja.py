"""Django Ninja: who asks, what was raised, and the operation's key in the OpenAPI document.

Ninja authenticates inside the view, and makes responses of exceptions there. So its authenticators
are asked before a claim and a replay, and each API tells the operation what it makes a response of.
Nothing is to be called: an API is taken care of where the middleware meets its URLs.
"""

from __future__ import annotations

import copy
import functools
import re
import sys
from collections.abc import Callable
from typing import Any, Final

from asgiref.sync import async_to_sync
from django.conf import settings
from django.http import HttpRequest

from django.urls import get_script_prefix
from semel.core.policy import Policy
from semel.web import openapi
from semel.web.django.asked import Asked
from semel.web.django.conf import configured
from semel.web.django.exchange import exchange_of
from semel.web.http.callers import Credentials

__all__ = ["adopt", "ask", "ninja_operation", "ninja_operations"]

_PARAMETER: Final = re.compile(r"\{[^}]*\}")
_ADOPTED: Final = "_semel_adopted"
Find = Callable[[Any, str, str], Policy | None]
"""Finds the policy of an operation of Ninja's, by it, the method and the path."""


def ninja_operations(view: object) -> list[Any]:
    """Return Ninja's operations behind one of its views, none for another's."""
    ninja = sys.modules.get("ninja.operation")
    if ninja is None:
        return []
    cells = [cell.cell_contents for cell in getattr(view, "__closure__", None) or ()]
    for held in (getattr(view, "__self__", None), *cells):
        if isinstance(held, ninja.PathView):
            return list(held.operations)
    return []


def ninja_operation(view: object, method: str) -> Any:
    """Return Ninja's operation that serves this method, or None."""
    return next((each for each in ninja_operations(view) if method in each.methods), None)


def ask(operation: Any, request: HttpRequest) -> Asked:
    """Return whom the operation's authenticators name, or Ninja's own refusal."""
    if not operation.auth_callbacks:
        return Asked(request, user=getattr(request, "user", None))
    if getattr(operation, "csrf_exempt", False):
        request._ninja_csrf_exempt = True
    before = request.__dict__.get("user")
    authenticate = operation._run_authentication
    if operation.is_async:
        authenticate = async_to_sync(authenticate)
    refusal = authenticate(request)
    if refusal is not None:
        return Asked(request, refusal=refusal)
    exchange = exchange_of(request)
    if exchange is not None:
        exchange.authenticated = True
    user = request.__dict__.get("user")  # as the authenticator itself has set it
    found = getattr(request, "auth", None)
    return Asked(request, user if user is not before else None, found, _sent(operation, request))


def _sent(operation: Any, request: HttpRequest) -> Credentials:
    """The credentials that the authenticators read, wherever they find them."""
    found = []
    for each in operation.auth_callbacks:
        where, name = getattr(each, "openapi_in", ""), getattr(each, "param_name", None)
        if where == "cookie" and name == settings.SESSION_COOKIE_NAME:
            continue
        sent = {"header": request.headers, "cookie": request.COOKIES, "query": request.GET}
        if name is None:  # HttpBearer's
            where, name = "header", getattr(each, "header", None)
        if name and where in sent and (value := sent[where].get(name)):
            label = name.lower() if where == "header" else f"{where} {name}"
            found.append((label.encode(), value.encode()))
    return tuple(found)


def adopt(view: object, find: Find) -> None:
    """Have the API behind a view tell operations what is raised, and describe their keys."""
    for operation in ninja_operations(view):
        if getattr(operation, _ADOPTED, False):
            continue
        setattr(operation, _ADOPTED, True)
        operation._run_authentication = _asked_once(operation)
        api = operation.api
        if not getattr(api, _ADOPTED, False):
            setattr(api, _ADOPTED, True)
            api.on_exception = _noting(api.on_exception)
            api.get_openapi_schema = _describing(api, find)


def _asked_once(operation: Any) -> Callable[..., Any]:
    authenticate = operation._run_authentication

    def known(request: HttpRequest) -> bool:
        exchange = exchange_of(request)
        return exchange is not None and exchange.authenticated

    if not operation.is_async:
        return lambda request: None if known(request) else authenticate(request)

    async def asking(request: HttpRequest) -> Any:
        return None if known(request) else await authenticate(request)

    return asking


def _noting(original: Callable[..., Any]) -> Callable[..., Any]:
    """Ninja's `on_exception`, which the operation hears of first."""

    @functools.wraps(original)
    def on_exception(request: HttpRequest, exc: Exception) -> Any:
        exchange = exchange_of(request)
        if exchange is not None:
            exchange.note(exc)
            if exchange.concerns(exc):
                return exchange.raised(exc)
        return original(request, exc)

    return on_exception


def _describing(api: Any, find: Find) -> Callable[..., Any]:
    original = api.get_openapi_schema

    @functools.wraps(original)
    def get_openapi_schema(*args: Any, **kwargs: Any) -> Any:
        schema = original(*args, **kwargs)
        operations = {
            each.operation_id or api.get_openapi_operation_id(each): each
            for _, router in _routers(api)
            for view in router.path_operations.values()
            for each in view.operations
        }

        def policy(method: str, path: str, described: dict[str, Any]) -> Policy | None:
            operation = operations.get(described.get("operationId", ""))
            below = "/" + path.removeprefix(get_script_prefix()).lstrip("/")
            below = _PARAMETER.sub("0", below)  # a value that most patterns match
            return None if operation is None else find(operation, method, below)

        for item in schema.get("paths", {}).values():
            for method, described in item.items():
                own = copy.deepcopy(described)  # Ninja gives one to all methods of an operation
                own["responses"] = {str(k): v for k, v in own.get("responses", {}).items()}
                item[method] = own
        openapi.document(schema, configured().idempotency, policy)
        return schema

    return get_openapi_schema


def _routers(api: Any) -> list[tuple[str, Any]]:
    bound = getattr(api, "_get_bound_routers", None)
    return api._routers if bound is None else [(each.prefix, each) for each in bound()]
