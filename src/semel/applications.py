"""Applications: the routes that the adapters of one service have found, and what they must keep.

A rule that met no route would be lost without a word, and so would the key of a caller whom nothing
tells apart from others: both are looked at here, once, before the first request is served.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple, Protocol

from semel.core.policy import Policy, PolicyError
from semel.core.routes import NONE, Path, Routes, Segments, read_path

log = logging.getLogger("semel")

POLICY_ATTRIBUTE: Final = "__semel_policy__"
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class Endpoint(NamedTuple):
    """A handler of an application, and where it is reached."""

    methods: tuple[str, ...]
    """Empty: whatever its handler takes."""
    path: str
    """As patterns are written, `/charges/{id:int}`, below where the application is mounted."""
    handler: object = None
    """What `@idempotency.route` may have marked; None: an application whose routes are unknown."""
    identified: bool = False
    """Whether something on this route tells its callers apart, such as a security scheme."""
    credentials: frozenset[str] = frozenset()
    """The request headers (lower case) that its security schemes read."""
    segments: Segments = NONE
    """The expressions of parameters whose kind is the application's own, by their names."""


class Application(Protocol):
    """An application that an adapter serves."""

    @property
    def identified(self) -> bool:
        """Whether the callers of all its routes are known: `caller=`, or a framework's users."""

    def endpoints(self) -> Iterable[Endpoint]:
        """Return its endpoints, none where they are unknown."""

    def within(self) -> Iterable[Application]:
        """Return the applications whose endpoints are among its own, as they are mounted in it."""


class Applications:
    """The applications of one service, and the marks on their handlers."""

    def __init__(self) -> None:
        self.met = True
        """Whether every mark and application has been looked at."""
        self._lock = threading.Lock()
        self._served: list[weakref.ref[Application]] = []
        self._marked: list[tuple[Callable[[], Any], str]] = []
        self._wrapped: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()

    def serve(self, application: Application) -> None:
        """Take note of an application; it is held weakly."""
        self._served.append(weakref.ref(application))
        self.met = False

    def mark(self, handler: Callable[..., Any], policy: Policy) -> None:
        """Give a handler rules of its own."""
        setattr(handler, POLICY_ATTRIBUTE, policy)
        inner = inspect.unwrap(handler)
        if inner is not handler:
            if inner in self._wrapped:  # Django's method_decorator decorates anew for each request
                return
            self._wrapped.add(inner)
        name = f"{handler.__module__}.{getattr(handler, '__qualname__', handler)}"
        self._marked.append((_weakly(handler), name))
        self.met = False

    def meet(self, routes: Routes, identified: bool) -> None:
        """Give every marked handler's route its rules, and check what cannot be kept.

        `identified`: the service itself says who its callers are. Raises `PolicyError` for a mark
        that met no route, and for a key from the content of requests whose callers nothing tells
        apart; warns of patterns that met no route, and of routes whose callers look all the same.
        """
        with self._lock:
            if self.met:
                return
            applications = list(self._applications())
            inner = {id(each) for one in applications for each in one.within()}
            served = [(one, list(one.endpoints())) for one in applications if id(one) not in inner]
            for _, endpoints in served:
                for endpoint in endpoints:
                    _take_over(routes, endpoint)
            if served:
                self._refuse_lost([each for _, endpoints in served for each in endpoints])
                _warn_of_unmet(routes, [endpoints for _, endpoints in served])
            if not identified:
                _check_callers(routes, served)
            self.met = True

    def _applications(self) -> Iterator[Application]:
        for reference in self._served:
            application = reference()
            if application is not None:
                yield application

    def lost(self, handlers: Iterable[object]) -> list[Any]:
        """Return the marked handlers that are none of these, nor inside of them."""
        reached = {id(each) for handler in handlers for each in layers(handler)}
        marked = (reference() for reference, _ in self._marked)
        return [each for each in marked if each is not None and id(each) not in reached]

    def _refuse_lost(self, endpoints: list[Endpoint]) -> None:
        lost = self.lost(endpoint.handler for endpoint in endpoints)
        if lost:
            names = [name for reference, name in self._marked if reference() in lost]
            raise PolicyError(
                f"@idempotency.route: {', '.join(names)} is the handler of no route that an adapter"
                " has found: its rules would be lost. Call the init_app of the framework's"
                " adapter, and put the mark below the decorator that makes the route"
            )


def policy_on(handler: object) -> Policy | None:
    """Return the rules that a handler is marked with, below the decorators around it."""
    for layer in layers(handler):
        policy = getattr(layer, POLICY_ATTRIBUTE, None)
        if isinstance(policy, Policy):
            return policy
    return None


def layers(handler: object) -> Iterator[object]:
    """Yield the handler, and what decorators, partials, methods and classes hold inside it."""
    found, seen = [handler], set()
    for layer in found:  # it grows meanwhile
        if layer is None or id(layer) in seen:
            continue
        seen.add(id(layer))
        yield layer
        if isinstance(layer, type):
            found += layer.__mro__[1:-1]
        found += (
            getattr(layer, "__wrapped__", None),
            getattr(layer, "__func__", None),
            layer.func if isinstance(layer, functools.partial) else None,
        )


def _weakly(handler: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(handler)
    except TypeError:
        return lambda: handler


def _take_over(routes: Routes, endpoint: Endpoint) -> None:
    policy = policy_on(endpoint.handler)
    if policy is None:
        return
    methods = [method for method in endpoint.methods if method not in SAFE]
    if endpoint.methods and not methods:
        raise PolicyError(
            f"@idempotency.route on {'/'.join(endpoint.methods)} {endpoint.path}: it changes"
            " nothing, so there is nothing to protect; take the mark away"
        )
    for method in methods or policy.methods:
        if method not in policy.methods:
            policy = dataclasses.replace(policy, methods=(*policy.methods, method))
        routes.mark(f"{method} {endpoint.path}", policy, endpoint.segments)


def _warn_of_unmet(routes: Routes, served: list[list[Endpoint]]) -> None:
    if not all(served):  # of one of them the routes are unknown
        return
    paths = [
        (method, read_path(endpoint.path, endpoint.segments))
        for endpoints in served
        for endpoint in endpoints
        for method in endpoint.methods or ("",)
    ]
    for sentence in routes.unmet(paths):
        log.warning("routes=: %s: the rule will protect nothing", sentence)


def _check_callers(routes: Routes, served: list[tuple[Application, list[Endpoint]]]) -> None:
    alike: list[str] = []
    for application, endpoints in served:
        if application.identified:
            continue
        if not endpoints:  # unknown: look at the rules instead
            for pattern, policy in (("every route", routes.default), *routes.described.items()):
                if policy is not None and policy.key is not None and not policy.shared:
                    raise _strangers(pattern)
        for endpoint in endpoints:
            if endpoint.identified or endpoint.handler is None:
                continue
            path = read_path(endpoint.path, endpoint.segments)
            for method, policy in _rules(routes, endpoint, path):
                if policy.shared:
                    continue
                if policy.key is not None:
                    raise _strangers(f"{method} {endpoint.path}")
                alike.append(f"{method} {endpoint.path}")
    if alike:
        log.warning(
            "nothing that can be seen here tells the callers of %s apart: whoever sends another's"
            " key and request, and no credential header, gets the other's response. Give caller= or"
            " Idempotency(scope=…), or say Policy(shared=True) where that is meant",
            ", ".join(dict.fromkeys(alike)),
        )


def _rules(routes: Routes, endpoint: Endpoint, path: Path) -> Iterator[tuple[str, Policy]]:
    for method in endpoint.methods or routes.default.methods:
        policy = routes.find(method, path.sample)
        if policy is not None:
            yield method, policy


def _strangers(route: str) -> PolicyError:
    return PolicyError(
        f"{route}: its key comes from the request's content, and nothing tells its callers apart:"
        " one would get the response of another. Name the caller (caller= of the adapter, or"
        " Idempotency(scope=…, session_cookie=… or credentials=[…])), or say Policy(shared=True)"
        " where all are one caller"
    )
