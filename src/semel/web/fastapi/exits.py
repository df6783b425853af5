"""Dependencies that commit after their `yield`: FastAPI runs that when the response is out."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import fastapi

from semel.core.routes import Routes
from semel.web.asgi.endpoints import application_within, flat, mounted, routes_of

__all__ = ["JOINED", "late_commits"]

JOINED: Final = "__semel_joined__"
"""Marks a dependency whose exit comes before the record, whatever its scope."""
_SINCE: Final = (0, 118)
"""FastAPI runs exits after the response from here on; 0.106 to 0.117 do before it."""
_BLOCKS: Final = frozenset({"begin", "transaction", "atomic"})
"""Methods whose `with` block ends in a commit."""
_POOLS: Final = ("psycopg_pool", "psycopg", "sqlite3")
"""Libraries whose connections commit at the end of their `with` block."""
_LIBRARIES: Final = ("sqlalchemy", "sqlmodel", "fastapi", "starlette", "contextlib")
"""What is not the application's own, and is known."""
_DEEPEST: Final = 5
_TOLD: Final = (
    "{methods} {path}: {name} commits after its yield. FastAPI runs that when the response is out,"
    " after its record: where the process dies in between, retries get a replay of a response whose"
    " effect is lost. Write {short} = joined(idempotency, {short}), or Depends({short},"
    ' scope="function")'
)


def late_commits(app: object, routes: Routes) -> list[str]:
    """Return a sentence for each route that Semel covers and whose dependency commits too late.

    `routes` are the rules of the service. The source of each dependency that yields is read: a
    `commit()` after its `yield`, and a `with` block around it that ends in one, such as
    `session.begin()`, in it or in the functions of the application's that it calls there. Where the
    source cannot be had, nothing is said; nor of dependencies that are joined, or end with their
    handler (`scope="function"`).
    """
    if _version() < _SINCE:
        return []
    return [
        _TOLD.format(methods="/".join(covered), path=path, name=_name(call), short=_short(call))
        for path, route in _routes(app, "", 0)
        if (covered := _covered(route, path, routes))
        for call in _late(route.dependant)
    ]


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in fastapi.__version__.split(".")[:2])


def _routes(app: object, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for route in flat(routes_of(app) or ()) if depth < _DEEPEST else ():
        path = prefix + (getattr(route, "path", None) or "")
        if getattr(route, "dependant", None) is not None:
            yield path, route
        elif (inner := application_within(mounted(route))) is not None:
            yield from _routes(inner, path, depth + 1)


def _covered(route: Any, path: str, routes: Routes) -> list[str]:
    methods = sorted(getattr(route, "methods", None) or ())
    return [method for method in methods if routes.find(method, path) is not None]


def _late(dependant: Any) -> list[Callable[..., Any]]:
    """The dependencies of a handler that commit after the response, each once."""
    found: dict[int, Callable[..., Any]] = {}
    left = list(dependant.dependencies)
    while left:
        one = left.pop()
        left += one.dependencies
        call = one.call
        joined = getattr(call, JOINED, False) or getattr(one, "scope", None) == "function"
        if not joined and _late_exit(call):
            found[id(call)] = call
    return list(found.values())


def _name(call: Any) -> str:
    named = call if hasattr(call, "__qualname__") else type(call)
    return f"{named.__module__}.{named.__qualname__}"


def _short(call: Any) -> str:
    return getattr(call, "__name__", type(call).__name__)


class _Source(NamedTuple):
    tree: ast.AST
    names: dict[str, Any]
    """What the names in it mean."""


@functools.lru_cache(512)
def _source(function: Any) -> _Source | None:
    """The definition of a function, or None where its source cannot be had."""
    try:
        function = inspect.unwrap(function)
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        closed = inspect.getclosurevars(function)
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    body = tree.body[0] if tree.body else None
    if not isinstance(body, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return None
    return _Source(body, {**closed.builtins, **closed.globals, **closed.nonlocals})


def _function_of(call: Any) -> Any:
    """The function that is run when a dependency is called."""
    while isinstance(call, functools.partial):
        call = call.func
    if inspect.isroutine(call) or inspect.isclass(call):
        return call
    return _member(type(call), "__call__")


def _member(owner: object, name: str) -> Any:
    """An attribute as it was defined: no code of the application's runs."""
    found = inspect.getattr_static(owner, name, None)
    return getattr(found, "__func__", found)


def _late_exit(call: Any, depth: int = 0) -> bool:
    """Whether a generator, or the function of a context manager, commits after its `yield`."""
    function = _function_of(call)
    if function is None or depth >= _DEEPEST:
        return False
    made = inspect.unwrap(function)
    if not (inspect.isgeneratorfunction(made) or inspect.isasyncgenfunction(made)):
        return False
    source = _source(function)
    return source is not None and _Reading(source, depth).late()


class _Reading:
    """One function's source, read for its commits."""

    def __init__(self, source: _Source, depth: int) -> None:
        self._nodes = list(_own(ast.iter_child_nodes(source.tree)))
        self._names = source.names
        self._deeper = depth + 1

    def late(self) -> bool:
        """Whether it commits after its first `yield`."""
        yields = [_place(node) for node in self._nodes if isinstance(node, _YIELDS)]
        return any(self._is_late(node, min(yields)) for node in self._nodes) if yields else False

    def commits(self) -> bool:
        """Whether it commits anywhere."""
        return any(self._call_commits(node) for node in self._nodes if isinstance(node, ast.Call))

    def _is_late(self, node: ast.AST, first: tuple[int, int]) -> bool:
        match node:
            case ast.Call():
                return _place(node) > first and self._call_commits(node)
            case ast.With() | ast.AsyncWith():
                blocks = (item.context_expr for item in node.items)
                return _yields(node) and any(self._block_commits(block) for block in blocks)
            case ast.YieldFrom():
                return self._generator_is_late(node.value)
            case ast.For() | ast.AsyncFor():
                return _yields(node) and self._generator_is_late(node.iter)
        return False

    def _call_commits(self, call: ast.Call) -> bool:
        if isinstance(call.func, ast.Attribute) and call.func.attr == "commit":
            return True
        return _commits(self._meaning(call.func), self._deeper)

    def _block_commits(self, block: ast.expr) -> bool:
        """Whether a `with` block around the `yield` ends in a commit."""
        maker = block.func if isinstance(block, ast.Call) else block
        if isinstance(block, ast.Call) and isinstance(maker, ast.Attribute):
            if maker.attr in _BLOCKS:
                return True
            owner = self._meaning(maker.value)
            library: str = owner.__name__ if inspect.ismodule(owner) else type(owner).__module__
            if library.partition(".")[0] in _POOLS:
                return True
        meant = self._meaning(maker)
        if inspect.isclass(meant):
            ends = (_member(meant, name) for name in ("__exit__", "__aexit__"))
            return any(_commits(end, self._deeper) for end in ends)
        return meant is not None and _late_exit(meant, self._deeper)

    def _generator_is_late(self, iterated: ast.expr) -> bool:
        if not isinstance(iterated, ast.Call):
            return False
        meant = self._meaning(iterated.func)
        return meant is not None and _late_exit(meant, self._deeper)

    def _meaning(self, expression: ast.expr) -> Any:
        """The object that `name` or `name.attribute` is, None where it is not known."""
        if isinstance(expression, ast.Name):
            return self._names.get(expression.id)
        if isinstance(expression, ast.Attribute):
            owner = self._meaning(expression.value)
            return None if owner is None else _member(owner, expression.attr)
        return None


_YIELDS: Final = (ast.Yield, ast.YieldFrom)


def _own(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The nodes of a body, without those of functions and classes defined in it."""
    left = list(nodes)
    while left:
        node = left.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            left += ast.iter_child_nodes(node)


def _place(node: Any) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _yields(node: ast.AST) -> bool:
    return any(isinstance(one, _YIELDS) for one in _own([node]))


def _commits(function: Any, depth: int) -> bool:
    """Whether a function of the application's own calls `commit()` somewhere."""
    if not inspect.isfunction(function) or depth >= _DEEPEST:
        return False
    if function.__module__.partition(".")[0] in _LIBRARIES:
        return False
    source = _source(function)
    return source is not None and _Reading(source, depth).commits()
