"""System checks of the settings, the middleware and the project's views.

`manage.py check` and its kin make them; a server's first request has their findings logged.
"""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Iterator
from typing import Any, Final

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from semel.core.policy import Policy
from semel.stores.django.store import DjangoStore
from semel.web.django import ninja, rest, rules
from semel.web.django.conf import Configured, configured
from semel.web.django.survey import (
    ServedView,
    framework_view,
    hidden,
    is_served,
    parts,
    served_views,
    serves,
)

__all__ = ["check_middleware", "check_settings", "check_views", "look_at"]

log = logging.getLogger("semel")

MIDDLEWARE = "semel.web.django.middleware.IdempotencyMiddleware"
SESSION: Final = "django.contrib.sessions.middleware.SessionMiddleware"
AUTHENTICATION: Final = (
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.RemoteUserMiddleware",
    "django.contrib.auth.middleware.PersistentRemoteUserMiddleware",
    "django_otp.middleware.OTPMiddleware",
    "oauth2_provider.middleware.OAuth2TokenMiddleware",
)
BEFORE = (
    SESSION,
    "django.middleware.csrf.CsrfViewMiddleware",
    *AUTHENTICATION,
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
)
"""What has to have its say before a claim or a replay."""
AROUND: Final = (
    "django.middleware.gzip.GZipMiddleware",
    "django.middleware.http.ConditionalGetMiddleware",
    "corsheaders.middleware.CorsMiddleware",
)
"""What makes a response fit its request: it has to do so for replays, from outside."""


@register("semel")
def check_settings(**_: Any) -> list[CheckMessage]:
    """`SEMEL` can be used, and what it names is there."""
    try:
        store = configured().idempotency.store
    except ImproperlyConfigured as error:
        return [Error(str(error), id="semel.E001")]
    if isinstance(store, DjangoStore) and store.alias not in settings.DATABASES:
        return [
            Error(
                f"SEMEL names the database {store.alias!r}, which DATABASES does not have",
                id="semel.E002",
            )
        ]
    return []


@register("semel")
def check_middleware(**_: Any) -> list[CheckMessage]:
    """The middleware is there once, after those that know who asks."""
    placed = [_kinds(name) for name in settings.MIDDLEWARE]
    count = sum(MIDDLEWARE in kinds for kinds in placed)
    if count != 1:
        said = "is not in MIDDLEWARE" if not count else f"is in MIDDLEWARE {count} times"
        hint = f"add {MIDDLEWARE!r} after AuthenticationMiddleware, once"
        return [Error(f"IdempotencyMiddleware {said}", hint=hint, id="semel.E003")]
    position = next(at for at, kinds in enumerate(placed) if MIDDLEWARE in kinds)
    found: list[CheckMessage] = []
    for name, kinds in list(zip(settings.MIDDLEWARE, placed, strict=True))[position + 1 :]:
        said, hint = name.rpartition(".")[2], f"move {MIDDLEWARE!r} after {name!r}"
        if not kinds.isdisjoint(BEFORE):
            told = f"IdempotencyMiddleware comes before {said}: an answer would be replayed before"
            found.append(Error(f"{told} that has had its say", hint=hint, id="semel.E004"))
        elif not kinds.isdisjoint(AROUND):
            told = f"IdempotencyMiddleware comes before {said}: what that makes of the response to"
            told += " one request would be kept, and replayed to others"
            found.append(Warning(told, hint=hint, id="semel.W006"))
    return found


@register("semel")
def check_views(**_: Any) -> list[CheckMessage]:
    """Every mark and every route has a view, and callers can be told apart where they have to."""
    try:
        service, views = configured(), served_views()
    except ImproperlyConfigured:
        return []  # said by others
    for view in views:
        rules.meet(view.func)
    return [*_lost(service, views), *_unmet(service, views), *_alike(service, views)]


def look_at(service: Configured) -> None:
    """Look at the project once it is served: log what the checks find, and know its APIs."""
    service.looked_at = True
    try:
        findings = [*check_middleware(), *check_views()]
    except Exception:
        log.exception("the project's URLs could not be looked at")
        return
    for found in findings:
        if not found.is_silenced():
            log.log(found.level, "%s: %s (%s)", found.id, found.msg, found.hint)


def _kinds(name: str) -> set[str]:
    """The dotted paths of a middleware and of the classes that it derives from."""
    try:
        found = import_string(name)
    except ImportError:  # said by Django
        return {name}
    kinds = found.__mro__ if inspect.isclass(found) else ()
    return {name, *(f"{cls.__module__}.{cls.__qualname__}" for cls in kinds)}


def _lost(service: Configured, views: list[ServedView]) -> Iterator[CheckMessage]:
    behind = [part for view in views for part in parts(view.func)]
    inside = {id(each) for each in hidden(behind)}
    for mark in rules.lost_marks(service.idempotency, behind):
        name = f"{mark.__module__}.{getattr(mark, '__qualname__', mark)}"
        if id(mark) in inside:
            yield Error(
                f"the rules of {name} are lost: a decorator hides it",
                hint="use functools.wraps in the decorators above the mark, or put it above them",
                id="semel.E005",
            )
        else:
            yield Warning(
                f"{name} has rules, and no URL leads to it",
                hint="take the mark away, or put it on the view that the URL names",
                id="semel.W010",
            )


def _unmet(service: Configured, views: list[ServedView]) -> Iterator[CheckMessage]:
    paths = {view.path: view.path for view in views}
    for pattern in service.idempotency.routes.described:
        if is_served(pattern, views):
            continue
        path = pattern.rpartition(" ")[2]
        near = difflib.get_close_matches(path, paths, 1, 0.4)
        yield Warning(
            f'SEMEL["routes"]: {pattern!r} is no URL of the project: the rule protects nothing',
            hint=f"write {{name}} for <str:name>; near it is {near[0]!r}" if near else None,
            id="semel.W007",
        )


def _alike(service: Configured, views: list[ServedView]) -> Iterator[CheckMessage]:
    """Where nothing that can be seen tells callers apart."""
    own = service.idempotency
    if service.caller or own.scope or own.session_cookie or own.credentials:
        return
    placed = {kind for name in settings.MIDDLEWARE for kind in _kinds(name)}
    if not placed.isdisjoint((SESSION, *AUTHENTICATION)):
        return
    alike = []
    for view in views:
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            policy = _policy(service, view, method)
            if policy is None or policy.shared or _asks(view.func, method):
                continue
            if policy.key is None:
                alike.append(view.path)
                continue
            yield Error(
                f"{method} {view.path}: its key comes from the request's content, and nothing tells"
                " its callers apart: one would get the response of another",
                hint='give SEMEL["caller"], or say shared=True where all are one caller',
                id="semel.E008",
            )
    if alike:
        yield Warning(
            f"nothing that can be seen tells the callers of {', '.join(dict.fromkeys(alike))}"
            " apart: whoever sends another's key and request, and no credential header, gets the"
            " other's response",
            hint='give SEMEL["caller"], or say shared=True where that is meant',
            id="semel.W009",
        )


def _policy(service: Configured, view: ServedView, method: str) -> Policy | None:
    if not serves(view.func, method):
        return None
    return rules.policy_of(service.idempotency, view.func, method, view.sample)


def _asks(func: Any, method: str) -> bool:
    inner = framework_view(func)
    cls, operation = rest.rest_class(inner), ninja.ninja_operation(inner, method)
    if operation is not None:
        return bool(operation.auth_callbacks)
    return cls is not None and bool(cls.authentication_classes)
