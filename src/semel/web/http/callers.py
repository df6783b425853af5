"""Callers: who sends a request, and the scope under which the caller's keys are stored."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol
from uuid import UUID

from semel.core.policy import PolicyError, RequestView
from semel.idempotency import Idempotency, Scope

ANONYMOUS: Final = "anonymous"
"""The scope of requests that nothing tells apart."""

KNOWN_CREDENTIALS: Final = (
    b"authorization",
    b"x-api-key",
    b"api-key",
    b"apikey",
    b"x-apikey",
    b"x-api-token",
    b"x-auth-token",
    b"x-auth-key",
    b"x-access-token",
    b"x-session-token",
)
"""The request headers that carry credentials by common usage. `Idempotency(credentials=…)` adds the
service's own, such as the one in which a proxy names the client certificate."""

Credentials = tuple[tuple[bytes, bytes], ...]
"""Names and values of headers, and of the session cookie as `cookie`."""

Caller = str | tuple[str | None, Credentials]
"""The name that `scope` or `caller` gave; or the framework's authenticated user, and the
credentials."""


class CallerView(RequestView, Protocol):
    """A request, as far as it says who has sent it."""

    def user(self) -> str | None:
        """Return the name of the framework's authenticated user. Raises `TypeError`."""

    def credentials(self, names: Iterable[bytes]) -> Credentials:
        """Return those of these headers (lower case) that the request has, in their order."""

    def session(self, cookie: str | None) -> bytes:
        """Return what tells the caller's session from others, empty where there is none.

        `cookie` is the one that the service has named; None: the framework's own, if it has one.
        """


def one_way_to_ask(idempotency: Idempotency, caller: object) -> None:
    """Raise `PolicyError` where both `caller=` and `Idempotency(scope=…)` name the caller."""
    if caller is not None and idempotency.scope is not None:
        raise PolicyError(
            "caller=: Idempotency(scope=…) names the caller already; give one of the two"
        )


class Protection(Protocol):
    """What an adapter has put into an application."""

    idempotency: Idempotency
    caller: Any
    """The service's own function, as `init_app` was given it; None: there is none."""


def there_already(there: Protection | None, idempotency: Idempotency, caller: object) -> bool:
    """Say whether an application has Semel, by an earlier call with the same objects.

    Raises `PolicyError` where the earlier call was with others.
    """
    if there is None:
        return False
    if there.idempotency is not idempotency or caller not in (None, there.caller):
        raise PolicyError(
            "init_app: this application is protected already, by another Idempotency or with"
            " another caller=; call it once"
        )
    return True


@functools.lru_cache(maxsize=64)
def credential_headers(more: tuple[str, ...] = ()) -> tuple[bytes, ...]:
    """Return the headers that are looked at: the known ones, and the service's own."""
    own = (name.lower().encode("latin-1") for name in more)
    return tuple(dict.fromkeys((*KNOWN_CREDENTIALS, *own)))


def caller_of(
    request: CallerView,
    scope: Scope | None,
    session_cookie: str | None = None,
    names: Iterable[bytes] = KNOWN_CREDENTIALS,
) -> Caller:
    """Return who has sent a request, by the service's own function where it has given one.

    Asked once a request. Raises `TypeError` where `scope` returned no name, or the user has none.
    """
    if scope is not None:
        name = scope(request)
        if not isinstance(name, str) or not name:
            raise TypeError(f"scope= has to return a non-empty string, not {name!r}")
        return name
    credentials = request.credentials(names)
    session = request.session(session_cookie)
    if session:
        credentials += ((b"cookie", session),)
    return request.user(), credentials


def scope_name(caller: Caller) -> str:
    """Return the scope under which a caller's keys are stored. See `Idempotency`."""
    if isinstance(caller, str):
        return caller
    user, credentials = caller
    if user is not None:
        return f"user:{user}"
    if not credentials:
        return ANONYMOUS
    if len(credentials) == 1:
        ((name, value),) = credentials
        return f"{name.decode('latin-1')}:{hashlib.sha256(value).hexdigest()}"
    digest = hashlib.sha256()
    for part in (part for field in credentials for part in field):
        digest.update(b"%d:" % len(part) + part)
    return f"credentials:{digest.hexdigest()}"


_NAMES: Final = ("id", "pk", "identity", "user_id", "sub", "username")
"""The attributes, or keys, that name a user, in the order in which they are looked for."""


def named_caller(user: object) -> str:
    """Return the scope of the user whom a `caller` function or dependency has found.

    A string, a whole number or a UUID is the name itself. Of an object it is the first of `id`,
    `pk`, `identity`, `user_id`, `sub` and `username` that it has, together with the name of its
    class, since an administrator and a customer may share a number; of a mapping (the claims of a
    token) or a driver's row (asyncpg's `Record`, `sqlite3.Row`) the first of these keys. None:
    nobody is logged in, and the credentials say, if there are any.

    Raises `TypeError` where nothing names the user.
    """
    name = name_of(user)
    return ANONYMOUS if name is None else f"user:{name}"


def name_of(user: object) -> str | None:
    """Return the user's name within the scope; None where nobody is logged in.

    Raises as `named_caller` does.
    """
    if user is None or getattr(user, "is_authenticated", None) is False:
        return None
    name = _plain_name(user)
    if name is not None:
        return name
    items = _items(user)
    if items is not None:
        found = (_plain_name(items.get(key)) for key in _NAMES)
        kind = ""
    else:
        found = (_plain_name(_attribute(user, key)) for key in _NAMES)
        kind = f"{user.__class__.__name__}:"  # of a proxy, what it stands for
    name = next((name for name in found if name is not None), None)
    if name is None:
        raise TypeError(
            f"caller= gave {type(user).__name__}, of which nothing names the user: let it return a"
            f" string or a number, or something that has one of {', '.join(_NAMES)}"
        )
    return f"{kind}{name}"


SESSION_KEYS: Final = (
    "_user_id",  # Flask-Login's
    "user_id",
    "userid",
    "uid",
    "user",
    "username",
    "identity.id",  # Flask-Principal's
    "profile",
    "email",
    "account_id",
)
"""Where sessions say whose they are, in the order in which they are looked at."""


def session_user(session: Mapping[str, object]) -> str | None:
    """Return the name of the user whom a session names, None where it names none.

    For sessions that are in a signed cookie: what else they hold changes, and with it the cookie.
    The name begins with the key it was found under: an email address that a visitor has typed in
    is not the number of another's account.
    """
    for key in SESSION_KEYS:
        found = session.get(key)
        if isinstance(found, Mapping) and isinstance(found.get("userinfo"), Mapping):
            found = found["userinfo"]  # an OpenID token, as Authlib puts it into a session
        try:
            name = name_of(found)
        except TypeError:
            continue
        if name is not None:
            return f"{key}:{name}"
    return None


def _plain_name(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, UUID)):
        return None
    return str(value) or None


def _items(user: object) -> Mapping[str, object] | None:
    """Return what a mapping or a driver's row holds by name; None for any other object."""
    if isinstance(user, Mapping):
        return user
    read: Any = user
    if not (hasattr(read, "keys") and hasattr(read, "__getitem__")) or any(
        hasattr(read, name) for name in _NAMES
    ):
        return None
    return {name: read[name] for name in _NAMES if name in read.keys()}  # noqa: SIM118


def _attribute(user: object, name: str) -> object:
    try:
        return getattr(user, name, None)
    except NotImplementedError:  # Starlette's BaseUser.identity
        return None
