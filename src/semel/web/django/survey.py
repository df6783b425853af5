"""The views of a project, as its URLs name them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from django.urls import Resolver404, URLPattern, URLResolver, get_resolver
from semel.applications import layers
from semel.core.routes import PARAMETER, read_path
from semel.web.django.ninja import ninja_operations
from semel.web.django.rest import rest_class

_FILLS: Final = ("x", "0", "1", "2024", "a-b", "00000000-0000-0000-0000-000000000000", "x.y")
"""What may stand in the place of a path's parameter."""
_CONVERTED: Final = re.compile(r"<(?:(\w+):)?\w+>")
_SAMPLES: Final = {"int": "0", "uuid": "00000000-0000-0000-0000-000000000000"}
_VERBS: Final = ("get", "post", "put", "patch", "delete", "head", "options", "trace")


class ServedView(NamedTuple):
    """A view, and where it is reached."""

    path: str
    """As Django writes it: `/payments/<int:pk>/`."""
    func: Any

    @property
    def sample(self) -> str:
        """A path that its pattern may match."""
        return _CONVERTED.sub(lambda found: _SAMPLES.get(found.group(1), "x"), self.path)


def served_views() -> list[ServedView]:
    """Return the views of `ROOT_URLCONF`."""
    return list(_within("/", get_resolver().url_patterns))


def _within(prefix: str, patterns: Any) -> Iterator[ServedView]:
    for each in patterns:
        path = prefix + str(each.pattern).lstrip("^").rstrip("$")
        if isinstance(each, URLResolver):
            yield from _within(path, each.url_patterns)
        elif isinstance(each, URLPattern):
            yield ServedView(path, each.callback)


def parts(func: Any) -> Iterator[Any]:
    """Yield everything behind a view that may be marked."""
    for layer in (*layers(func), framework_view(func)):
        yield layer
        for operation in ninja_operations(layer):
            yield from layers(operation.view_func)
        cls = getattr(layer, "cls", None) or getattr(layer, "view_class", None)
        if cls is None:
            continue
        yield from layers(cls)
        actions = getattr(layer, "actions", None) or {}
        for name in {*_VERBS, "dispatch", *actions.values()}:
            yield from layers(getattr(cls, name, None))


@functools.lru_cache(maxsize=1024)
def framework_view(view: Any) -> Any:
    """Return the view of Ninja's or of REST framework's below a view's decorators, else the view.

    Those too that copy nothing of it: whom it lets in is to be asked all the same.
    """
    found = list(layers(view))
    for layer in itertools.chain(found, hidden(found)):
        if ninja_operations(layer) or rest_class(layer) is not None:
            return layer
    return view


def hidden(found: list[Any]) -> Iterator[Any]:
    """Yield the functions that decorators hold inside these without saying so."""
    waiting, seen = list(found), {id(each) for each in found}
    for each in waiting:  # it grows meanwhile
        for cell in getattr(each, "__closure__", None) or ():
            with contextlib.suppress(ValueError):  # an empty cell
                for layer in layers(cell.cell_contents):
                    if callable(layer) and id(layer) not in seen:
                        seen.add(id(layer))
                        waiting.append(layer)
                        yield layer


def serves(func: Any, method: str) -> bool:
    """Say whether a view may take a method: what is no class and none of Ninja's takes any."""
    for layer in (*layers(func), framework_view(func)):
        if operations := ninja_operations(layer):
            return any(method in each.methods for each in operations)
        cls = getattr(layer, "cls", None) or getattr(layer, "view_class", None)
        if cls is not None:
            actions = getattr(layer, "actions", None)
            verb = method.lower()
            return verb in actions if actions else hasattr(cls, verb)
    return True


def is_served(pattern: str, views: list[ServedView]) -> bool:
    """Say whether a pattern of `SEMEL["routes"]` matches a URL of the project."""
    method, _, path = pattern.rpartition(" ")
    expression, resolver = read_path(path).expression, get_resolver()
    for view in views:
        if expression is not None and expression.fullmatch(view.sample):
            if not method or serves(view.func, method):
                return True
    count = min(len(PARAMETER.findall(path)), 3)
    for fills in itertools.product(_FILLS, repeat=count):
        values = itertools.chain(fills, itertools.repeat(fills[-1] if fills else ""))
        sample = PARAMETER.sub(lambda _: next(values), path)  # noqa: B023
        if expression is not None and expression.fullmatch(sample) is None:
            continue
        try:
            func = resolver.resolve(sample).func
        except Resolver404:
            continue
        if not method or serves(func, method):
            return True
    return False
