"""Policies of views: a view's own mark, else that of its path in the settings."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from django.http import HttpRequest

from django.urls import Resolver404, resolve
from semel.applications import POLICY_ATTRIBUTE, layers
from semel.core.policy import Policy
from semel.idempotency import Idempotency
from semel.web.django import ninja, rest
from semel.web.django.conf import configured, made_policy
from semel.web.django.survey import framework_view

RULES_ATTRIBUTE = "__semel_rules__"
EXEMPT_ATTRIBUTE = "__semel_exempt__"
"""On a view that is left alone, whatever the settings say."""
SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

_MARKED: weakref.WeakSet[Any] = weakref.WeakSet()
View = TypeVar("View", bound=Callable[..., Any])


def idempotency_policy(**rules: Any) -> Callable[[View], View]:
    """Give one view rules of its own; the fields of `Policy`, the service's where not said.

        @idempotency_policy(required=True)
        def pay(request): ...

    For functions, classes of views, methods and actions of those (of REST framework too), and
    Ninja's operations, above or below the decorator that makes the route. Raises `PolicyError`.
    """
    made_policy(Policy(), rules, "idempotency_policy")

    def mark(view: View) -> View:
        setattr(view, RULES_ATTRIBUTE, rules)
        _MARKED.add(view)
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
    return policy_of(idempotency, func, method, request.path_info)


def policy_of(idempotency: Idempotency, func: Any, method: str, path: str) -> Policy | None:
    """Return the policy of a view under a method and a path below where Django is mounted."""
    marked = _looked_at(func, method)
    if marked is EXEMPT_ATTRIBUTE or method in SAFE:
        return None
    if marked is None:
        return idempotency.routes.find(method, path)
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


@functools.lru_cache(maxsize=1024)
def _looked_at(func: Any, method: str) -> Any:
    """Find the marks on a view when it is first met, and take care of what its framework does."""
    inner = framework_view(func)
    rest.adopt(inner)
    ninja.adopt(inner, _policy_of_operation)
    for layer in layers(func):
        if getattr(layer, EXEMPT_ATTRIBUTE, False):
            return EXEMPT_ATTRIBUTE
    for handler in handlers(func, method):
        for layer in layers(handler):
            marked = getattr(layer, RULES_ATTRIBUTE, None) or getattr(layer, POLICY_ATTRIBUTE, None)
            if marked is not None:
                return marked
    return None


def meet(func: Any) -> None:
    """Take care of what the framework behind a view does with what is raised, and its document."""
    _looked_at(func, "POST")


def handlers(func: Any, method: str) -> Iterator[Any]:
    """Yield what runs under a method behind a view: a method of a class, the view, the class."""
    classes = []
    for layer in (*layers(func), framework_view(func)):
        if (operation := ninja.ninja_operation(layer, method)) is not None:
            yield operation.view_func
        cls = getattr(layer, "cls", None) or getattr(layer, "view_class", None)
        if cls is None or cls in classes:
            continue
        classes.append(cls)
        actions: Mapping[str, str] = getattr(layer, "actions", None) or {}
        name = actions.get(method.lower(), method.lower())
        if (own := getattr(cls, name, None)) is not None:
            yield own
    yield func
    yield from classes


def _policy_of_operation(operation: Any, method: str, path: str) -> Policy | None:
    idempotency = configured().idempotency
    return policy_of(idempotency, operation.view_func, method, path)


def lost_marks(idempotency: Idempotency, reached: list[Any]) -> list[Any]:
    """Return the marked views that are none of these, by whichever of the two marks."""
    ids = {id(each) for each in reached}
    lost = [view for view in list(_MARKED) if id(view) not in ids]
    return [*lost, *idempotency.applications.lost(reached)]
