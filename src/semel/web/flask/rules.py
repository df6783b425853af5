"""Rules of a Flask application's routes: marks beside views, and patterns as Flask writes them."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterator
from typing import Any, Final

from flask import Flask, Request
from werkzeug.routing import Rule

from semel.core.policy import Policy, PolicyError
from semel.idempotency import POLICY_ATTRIBUTE, Idempotency

_CONVERTER = re.compile(r"<(?:([a-zA-Z_]\w*)(\([^>]*\))?:)?([a-zA-Z_]\w*)>")
_KINDS: Final = {"path": ":path", "int": ":int", "float": ":float", "uuid": ":uuid"}
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

_Found = tuple[Policy | None] | tuple[()]
"""What a route says of itself: its policy, None where it is left alone, or nothing."""


class FlaskRules:
    """Finds the policy of a request by the route that Flask has found for it."""

    def __init__(self, app: Flask, idempotency: Idempotency) -> None:
        self._app = app
        self._idempotency = idempotency
        self._found: dict[tuple[Any, str, str], _Found] = {}
        self._resolved = False
        self._lock = threading.Lock()

    def policy(self, request: Request) -> Policy | None:
        """Return the rules of a request, or None where it passes untouched.

        What Flask answers by itself does: no route, another method, a redirect to the path with a
        slash.
        """
        rule = request.url_rule
        if rule is None or request.routing_exception is not None:
            return None
        view = self._app.view_functions.get(rule.endpoint)
        asked = (view, rule.rule, request.method)
        found = self._found.get(asked)
        if found is None:
            found = self._found[asked] = self._own(*asked)
        if found:
            return found[0]
        path = request.environ.get("PATH_INFO", "")
        return self._idempotency.routes.find(request.method, path)

    def _own(self, view: Any, rule: str, method: str) -> _Found:
        marked = mark(view, method)
        if marked is not None:
            return (marked,)
        described = self._idempotency.routes.described
        for pattern in (f"{method} {rule}", rule) if "<" in rule else ():
            if pattern in described:
                policy = described[pattern]
                return (policy if policy is not None and method in policy.methods else None,)
        return ()

    def resolve(self, *, last: bool) -> None:
        """Make the rules of marked views known to the service, which logs and checks them.

        `last`: no route comes any more. Raises `PolicyError` for a pattern that no route has.
        """
        if self._resolved:
            return
        with self._lock:
            if self._resolved:
                return
            rules = list(self._app.url_map.iter_rules())
            for rule in rules:
                for method, policy in _marks(self._app.view_functions.get(rule.endpoint), rule):
                    self._register(method, rule.rule, policy)
            if last:
                self._check_patterns(rules)
                self._resolved = True

    def _register(self, method: str, rule: str, policy: Policy) -> None:
        routes = self._idempotency.routes
        pattern, exact = _translated(rule)
        if exact or policy.remember_request:  # whose completer goes by the path
            routes.add(f"{method} {pattern}", policy)
        else:
            routes.described[f"{method} {rule}"] = policy

    def _check_patterns(self, rules: list[Rule]) -> None:
        known = {rule.rule for rule in rules}
        known |= {f"{method} {rule.rule}" for rule in rules for method in rule.methods or ()}
        for pattern in self._idempotency.routes.described:
            if "<" in pattern and pattern not in known:
                raise PolicyError(
                    f"route {pattern!r}: {self._app.name} has no such route; write it as the route"
                    " is declared, the prefix of its blueprint included, or as a path with"
                    " {name} in it"
                )


def mark(view: Any, method: str) -> Policy | None:
    """Return the policy that `@idempotency.route(…)` has given a view, for this method.

    The mark may stand on the view, on a class-based view (Flask's or Flask-RESTful's) or on the
    class's method. On a view it is for all methods but GET, HEAD and OPTIONS.
    """
    if method in _SAFE:
        return None
    cls = getattr(view, "view_class", None)
    handlers = (getattr(cls, method.lower(), None), getattr(cls, "dispatch_request", None))
    for marked in (*handlers, cls, view):
        policy: Policy | None = getattr(marked, POLICY_ATTRIBUTE, None)
        if policy is not None:
            if method not in policy.methods:
                policy = dataclasses.replace(policy, methods=(*policy.methods, method))
            return policy
    return None


def _marks(view: Any, rule: Rule) -> Iterator[tuple[str, Policy]]:
    for method in sorted(rule.methods or ()):
        policy = mark(view, method)
        if policy is not None:
            yield method, policy


def _translated(rule: str) -> tuple[str, bool]:
    """Return a rule as a pattern of `Routes`, and whether the two match the same paths."""
    exact = all(
        (kind or "string") in ("string", "default", *_KINDS) and not arguments
        for kind, arguments, _ in _CONVERTER.findall(rule)
    )
    return _CONVERTER.sub(lambda m: f"{{{m[3]}{_KINDS.get(m[1] or '', '')}}}", rule), exact
