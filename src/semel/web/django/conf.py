"""`SEMEL` in the settings: one dict that says what the service promises."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from semel.core.policy import Policy, PolicyError
from semel.idempotency import Idempotency
from semel.stores.django.store import DjangoStore
from semel.web.http.callers import one_way_to_ask

__all__ = ["Configured", "configured"]

KNOWN = (
    *("idempotency", "store", "alias", "policy", "routes", "caller", "scope", "authorize"),
    *("issuer", "credentials", "session_cookie", "problem_base", "sweep_every"),
)
"""- `policy`: the fields of `Policy`, for every route without rules of its own.
- `routes`: rules by path, `{"POST /payments/": {"required": True}, "/hooks/{name}": None}`.
- `alias`: the database that holds the records and whose transaction a view runs in ("default").
- `store`: a URL or a `Store`, in the place of `DjangoStore(alias)`.
- `caller`: a plain or async function of the request that says who has sent it (a user, an id, a
  mapping with `sub`; see `semel.web.http.callers.named_caller`), asked once the view's own
  authentication has let it through, before a claim and a replay. REST framework's views give it
  their own request. What it raises, or returns as a response, goes out instead.
- `scope`, `issuer`, `credentials`, `session_cookie`, `problem_base`, `sweep_every`: as
  `Idempotency` takes them.
- `authorize`: a function `(request, view, args, kwargs)` that says whether this request may have
  an answer at all; False is a 403. For permissions that a decorator of the view checks.
- `idempotency`: an `Idempotency` of yours; with it only `authorize` and `caller` may be given.

Functions and objects may be named by their dotted paths."""


@dataclasses.dataclass(eq=False)
class Configured:
    """The objects that the settings describe."""

    idempotency: Idempotency
    authorize: Callable[..., Any] | None
    caller: Callable[[Any], Any] | None = None
    looked_at: bool = False
    """Whether the project's URLs have been looked at; see `semel.web.django.checks`."""


@functools.cache
def configured() -> Configured:
    """Return what `SEMEL` says, made once. Raises `ImproperlyConfigured`."""
    given = getattr(settings, "SEMEL", {})
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(f"SEMEL: give a dict, not {type(given).__name__}")
    unknown = sorted(set(given) - set(KNOWN))
    if unknown:
        raise ImproperlyConfigured(
            f"SEMEL: unknown {', '.join(unknown)}; known are {', '.join(KNOWN)}"
        )
    try:
        idempotency = _idempotency(given)
        caller = _named(given.get("caller"))
        one_way_to_ask(idempotency, caller)
    except (ValueError, TypeError, ImportError) as error:  # PolicyError and StoreSetupError too
        raise ImproperlyConfigured(f"SEMEL: {error}") from error
    for pattern, policy in [("policy", idempotency.routes.default), *_described(idempotency)]:
        if policy is not None and policy.remember_request:
            raise ImproperlyConfigured(
                f"SEMEL: {pattern}: remember_request is not offered under Django; leave it out"
            )
    return Configured(idempotency, _named(given.get("authorize")), caller)


def _described(idempotency: Idempotency) -> list[tuple[str, Policy | None]]:
    return list(idempotency.routes.described.items())


def _idempotency(given: Mapping[str, Any]) -> Idempotency:
    if "idempotency" in given:
        if beside := set(given) - {"idempotency", "authorize", "caller"}:
            raise ValueError(f"{', '.join(sorted(beside))}: say it where the idempotency= is made")
        made = _named(given["idempotency"])
        if not isinstance(made, Idempotency):
            raise TypeError(f"idempotency: {made!r} is no Idempotency")
        return made
    policy = made_policy(Policy(), given.get("policy", {}), "policy")
    routes = {
        pattern: None if rules is None else made_policy(policy, rules, f"routes: {pattern}")
        for pattern, rules in given.get("routes", {}).items()
    }
    more = ("credentials", "session_cookie", "problem_base", "sweep_every")
    known = {name: given[name] for name in more if name in given}
    store = _named(given["store"]) if "store" in given else None
    if store is None:
        store = DjangoStore(given.get("alias", "default"))
    elif "alias" in given:
        raise ValueError("alias: it says where DjangoStore is; give it or store, not both")
    return Idempotency(
        store,
        policy=policy,
        routes=routes,
        scope=_named(given.get("scope")),
        issuer=_named(given.get("issuer")),
        **known,
    )


def made_policy(base: Policy, rules: object, where: str) -> Policy:
    """Return `base` with these fields changed. Raises `PolicyError` naming the field."""
    if isinstance(rules, Policy):
        return rules
    if not isinstance(rules, Mapping):
        raise PolicyError(f"{where}: give a dict of the fields of Policy, not {rules!r}")
    fields = {name: getattr(base, name) for name in Policy.__dataclass_fields__}
    if unknown := sorted(set(rules) - set(fields)):
        raise PolicyError(
            f"{where}: Policy has no {', '.join(unknown)}; it has {', '.join(fields)}"
        )
    return Policy(**{**fields, **rules})


def _named(value: Any) -> Any:
    if isinstance(value, str) and "://" not in value:
        return import_string(value)
    return value


def _changed(*, setting: str, **_: Any) -> None:
    if setting == "SEMEL":
        configured.cache_clear()


setting_changed.connect(_changed)
