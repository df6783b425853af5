"""Finds the policy of a view: its own mark, else that of its path in the settings."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from django.http import HttpRequest

from django.urls import Resolver404, resolve
from semel.applications import POLICY_ATTRIBUTE
from semel.core.policy import Policy
from semel.idempotency import Idempotency
from semel.web.django.conf import made_policy

RULES_ATTRIBUTE = "__semel_rules__"
EXEMPT_ATTRIBUTE = "__semel_exempt__"
"""On a view that is left alone, whatever the settings say."""
SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

View = TypeVar("View", bound=Callable[..., Any])


def idempotency_policy(**rules: Any) -> Callable[[View], View]:
    """Give one view rules of its own; the fields of `Policy`, the service's where not said.

        @idempotency_policy(required=True)
        def pay(request): ...

    For functions, classes of views, and methods of those (of DRF too). Raises `PolicyError`.
    """
    made_policy(Policy(), rules, "idempotency_policy")

    def mark(view: View) -> View:
        setattr(view, RULES_ATTRIBUTE, rules)
        return view

    return mark


def find(idempotency: Idempotency, request: HttpRequest) -> Policy | None:
    """Return the policy of the view that will answer, or None where it is left alone."""
    method = request.method or ""
    if method in SAFE:
        return None
    try:
        func = resolve(request.path_info, getattr(request, "urlconf", None)).func
    except Resolver404:
        return None
    if getattr(func, EXEMPT_ATTRIBUTE, False):
        return None
    marked = _marked(func, method)
    if marked is None:
        return idempotency.routes.find(method, request.path_info)
    if isinstance(marked, Policy):
        policy = marked
    else:
        policy = _merged(idempotency.routes.default, tuple(marked.items()))
    return policy if method in policy.methods else _with_method(policy, method)


@functools.lru_cache(maxsize=256)
def _merged(base: Policy, rules: tuple[tuple[str, Any], ...]) -> Policy:
    return made_policy(base, dict(rules), "idempotency_policy")


@functools.lru_cache(maxsize=256)
def _with_method(policy: Policy, method: str) -> Policy:
    return dataclasses.replace(policy, methods=(*policy.methods, method))


def _marked(func: Any, method: str) -> Policy | Mapping[str, Any] | None:
    """A mark on the method of a class, on the view, or on the class."""
    cls = getattr(func, "cls", None) or getattr(func, "view_class", None)
    actions: Mapping[str, str] = getattr(func, "actions", None) or {}
    handler = getattr(cls, actions.get(method.lower(), method.lower()), None)
    for marked in (handler, func, cls):
        found = getattr(marked, RULES_ATTRIBUTE, None) or getattr(marked, POLICY_ATTRIBUTE, None)
        if found is not None:
            return found  # type: ignore[no-any-return]
    return None
