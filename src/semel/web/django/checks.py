"""System checks of the settings, before the first request."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import Error, register
from django.core.exceptions import ImproperlyConfigured

from semel.stores.django.store import DjangoStore
from semel.web.django.conf import configured

__all__ = ["check_settings"]

MIDDLEWARE = "semel.web.django.middleware.IdempotencyMiddleware"
BEFORE = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.auth.middleware.RemoteUserMiddleware",
    "django.contrib.auth.middleware.PersistentRemoteUserMiddleware",
)
"""What has to have its say before a claim or a replay."""


@register("semel")
def check_settings(**_: Any) -> list[Error]:
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
def check_middleware(**_: Any) -> list[Error]:
    """The middleware is there once, after those that know who asks."""
    placed = list(settings.MIDDLEWARE)
    count = placed.count(MIDDLEWARE)
    if count != 1:
        said = "is not in MIDDLEWARE" if not count else f"is in MIDDLEWARE {count} times"
        hint = f"add {MIDDLEWARE!r} after AuthenticationMiddleware, once"
        return [Error(f"IdempotencyMiddleware {said}", hint=hint, id="semel.E003")]
    position = placed.index(MIDDLEWARE)
    return [
        Error(
            f"IdempotencyMiddleware comes before {name.rpartition('.')[2]}: an answer would be"
            " replayed before that has had its say",
            hint=f"move {MIDDLEWARE!r} after {name!r}",
            id="semel.E004",
        )
        for name in BEFORE
        if name in placed[position + 1 :]
    ]
