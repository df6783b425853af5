"""Callers as a framework's own authentication has found them, and the names of their scopes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from django.apps import apps
from django.conf import settings
from django.contrib.auth import SESSION_KEY, get_user_model
from django.contrib.sessions.backends.signed_cookies import SessionStore as SignedCookies
from django.http import HttpRequest
from django.utils.functional import LazyObject, empty

from semel.web.http.callers import Credentials, name_of, named_caller


class Asked(NamedTuple):
    """What a framework says of a request: its caller, or its own refusal."""

    request: Any
    """The framework's own request, for `SEMEL["caller"]`."""
    user: Any = None
    auth: Any = None
    """What an authenticator has returned beside the user."""
    credentials: Credentials = ()
    """Those that the authenticators read, beside the known headers."""
    refusal: Any = None


class DjangoView:
    """A Django request, as a `scope` or `key` function and the way in see it.

    `native` is that request; the user is the one whom it was authenticated as.
    """

    def __init__(self, request: Any, asked: Asked | None = None) -> None:
        self.native: HttpRequest = getattr(request, "_request", request)
        self.method: str = self.native.method or ""
        self.path: str = self.native.path
        self._asked = asked or Asked(request)

    def header(self, name: str) -> str | None:
        value: str | None = self.native.headers.get(name)
        return value

    def places(self) -> set[str]:
        """Return its path below where Django is mounted, and below the server's root."""
        below: str = self.native.path_info
        return {self.path, below, self.native.META.get("SCRIPT_NAME", "").rstrip("/") + below}

    def credentials(self, names: Iterable[bytes]) -> Credentials:
        found = {}
        for name in names:
            value = self.native.META.get("HTTP_" + name.decode("latin-1").upper().replace("-", "_"))
            if value:
                found[name] = value.encode()
        return tuple({**dict(self._asked.credentials), **found}.items())

    def session(self, cookie: str | None) -> bytes:
        """Return what names the session.

        The cookie of a session that the server keeps is its key. One that carries the session
        itself changes with what is in it, and says whose it is where somebody has logged in.
        """
        own = settings.SESSION_COOKIE_NAME
        value: str = self.native.COOKIES.get(cookie or own, "")
        if not value or cookie not in (None, own):
            return value.encode()
        session = getattr(self.native, "session", None)
        if isinstance(session, SignedCookies):
            user = session.get(SESSION_KEY)
            return b"" if user is None else f"user:{user}".encode()
        return b"" if session is None else value.encode()

    def user(self) -> str | None:
        return user_name(self._asked.user) or auth_name(self._asked.auth)


def user_name(user: Any) -> str | None:
    """Return the name of an authenticated user, None where there is none. Raises `TypeError`.

    Kinds of callers may share a pk: `1` is of AUTH_USER_MODEL only. Of another kind (a device that
    an authenticator of REST framework has found) it is `shop.device:1`.
    """
    if user is None or not getattr(user, "is_authenticated", False):
        return None
    name = getattr(user, "pk", None) or getattr(user, "username", None)
    if not name:
        raise TypeError(
            f"{type(user).__name__} has no pk or username that tells callers apart: name the"
            ' caller with SEMEL = {"caller": …} or {"scope": …}'
        )
    return f"{_kind(user)}{name}"


def auth_name(found: Any) -> str | None:
    """Return the name of what an authenticator has returned; None where nothing names it.

    A user, a token that belongs to a `user`, a row of keys, the claims of a token, a string: each
    kind has names of its own. `True` names nobody.
    """
    for user in (found, getattr(found, "user", None)):
        if getattr(user, "is_authenticated", False):
            return user_name(user)
    if found is None or isinstance(found, bool):
        return None
    if getattr(found, "_meta", None) is not None and getattr(found, "pk", None):
        return f"{_kind(found)}{found.pk}"
    try:
        name = name_of(found)
    except TypeError:
        return None
    if name is None:
        return None
    plain = isinstance(found, Mapping) or not name.startswith(f"{type(found).__name__}:")
    return f"{type(found).__name__}:{name}" if plain else name


def scope_of(found: Any) -> str:
    """Return the scope of whom `SEMEL["caller"]` has found. Raises `TypeError`."""
    if isinstance(found, LazyObject):
        if found._wrapped is empty:
            found._setup()
        found = found._wrapped
    if is_account(found) and found.pk:
        return f"user:{found.pk}"
    return named_caller(found)


def is_account(user: Any) -> bool:
    """Say whether this is a user of AUTH_USER_MODEL."""
    return apps.is_installed("django.contrib.auth") and isinstance(user, get_user_model())


def _kind(user: Any) -> str:
    if is_account(user):
        return ""
    cls = user.__class__  # what a lazy one stands for
    meta = getattr(cls, "_meta", None)
    label: str = getattr(meta, "label_lower", f"{cls.__module__}.{cls.__qualname__}")
    return f"{label}:"
