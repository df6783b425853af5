"""Kinds of callables: which can be protected, how they run, and by what name they are known."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, Final, get_origin, get_type_hints

from semel.idempotency import Idempotency

__all__ = ["known_as", "require_supported", "runs_async"]

_OF_TASKS: Final = (
    *("apply_async", "delay", "send", "send_with_options", "kiq", "defer", "call_local", "submit"),
    *("callback", "enqueue", "remote"),
)
_INSIDE_TASKS: Final = ("__wrapped__", "fn", "func", "original_func", "callback", "_function")
"""Attributes of what Celery, Dramatiq, Taskiq, Procrastinate, Huey, Prefect, click and Ray make of
a function, and those that hold it: their workers call that function, and never what is wrapped
around their object."""

_names: weakref.WeakKeyDictionary[Idempotency, dict[str, weakref.ref[FunctionType]]]
_names = weakref.WeakKeyDictionary()


def require_supported(function: Any) -> None:
    """Raise `TypeError`, with the fix, for what cannot be protected."""
    shown = _shown(function)
    if inspect.isclass(function) or not callable(function):
        raise TypeError(f"{shown} is no function: @idempotent goes directly above a def")
    if hasattr(function, "key_hash"):
        raise TypeError(f"{shown} is idempotent already: its call would wait for itself")
    if _is_task(function):
        raise TypeError(
            f"{shown} is a task or command that another decorator has made: workers call the"
            " function inside it, so put @idempotent below that decorator, directly above the def"
        )
    if runs_async(function):
        return
    for inner in (function, *_inside(function)):
        if _is(inspect.isgeneratorfunction, inner) or _is(inspect.isasyncgenfunction, inner):
            raise TypeError(
                f"{shown} is a generator: its code runs while its caller iterates, after the call;"
                " return a list, or protect the function that does one item's work"
            )
        if runs_async(inner):
            raise TypeError(
                f"{shown} is a plain function around an async one, and nothing says whether its"
                " result is to be awaited: put @idempotent directly above the async def, below the"
                " other decorator"
            )
    if _returns_awaitable(function):
        raise TypeError(
            f"{shown} is a plain function that returns an awaitable: write it as async def, or"
            " protect the async function that it calls"
        )


def _is_task(function: Any) -> bool:
    if inspect.isroutine(function) or isinstance(function, functools.partial):
        return False
    return all(
        any(callable(getattr(function, name, None)) for name in names)
        for names in (_OF_TASKS, _INSIDE_TASKS)
    )


def runs_async(function: Any) -> bool:
    """Whether a call of it is to be awaited."""
    return _is(inspect.iscoroutinefunction, function)


def _is(kind: Callable[[Any], bool], function: Any) -> bool:
    return kind(function) or kind(getattr(function, "__call__", None))  # noqa: B004


def _inside(function: Any) -> Iterator[Any]:
    """The functions that a decorator, a partial or a method is made of, from the outside in."""
    seen = {id(function)}
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        else:
            function = getattr(function, "__wrapped__", None)
        if function is None or id(function) in seen:
            return
        seen.add(id(function))
        yield function


def _returns_awaitable(function: Any) -> bool:
    try:
        declared = get_type_hints(function).get("return")
    except Exception:  # noqa: BLE001  # annotations may be anything
        return False
    kind = get_origin(declared) or declared
    return isinstance(kind, type) and issubclass(kind, Awaitable)


def known_as(function: Any, idempotency: Idempotency) -> str:
    """Return a function's own name: its module's, wherever that runs, and its own in it.

    Raises `TypeError` where it has none, or one that another function has too.
    """
    qualname = getattr(function, "__qualname__", None)
    if not inspect.isfunction(function) or "<lambda>" in function.__qualname__:
        raise TypeError(
            f"{_shown(function)} ({type(function).__name__}) has no name of its own to keep its"
            ' keys under: give name="…", the same in every release'
        )
    innermost = [function, *_inside(function)][-1]
    module = _module(function.__module__, getattr(innermost, "__globals__", {}))
    name = f"{module}.{qualname}"
    if isinstance(innermost, FunctionType):
        known = _names.setdefault(idempotency, {})
        earlier = known[name]() if name in known else None
        if earlier is not None and not _same(earlier, innermost) and module != "__main__":
            raise TypeError(
                f"two functions are called {name}, and their calls would get each other's results:"
                ' give each a name of its own with name="…" (and where they are one function,'
                " made twice, the same)"
            )
        known[name] = weakref.ref(innermost)
    return name


def _module(name: str, names: dict[str, Any]) -> str:
    """Return the name that a module is imported by, where it runs as a script or by runpy."""
    if names.get("__name__") != name:
        return name
    spec, file = names.get("__spec__"), names.get("__file__")
    if spec is not None and spec.name != "__main__":
        return str(spec.name)
    if not file:  # a prompt or a notebook
        return name
    path = Path(file).absolute()
    parts = [path.stem]
    for folder in path.parents:
        if not (folder / "__init__.py").exists():
            break
        parts.insert(0, folder.name)
    return ".".join(parts)


def _same(one: FunctionType, other: FunctionType) -> bool:
    """Whether both are one function, compiled or made twice (`__main__` and its module)."""
    if one is other:
        return True
    return one.__code__ == other.__code__ and all(
        len(mine) == len(theirs) and all(map(_one_value, mine, theirs))
        for mine, theirs in zip(_captured(one), _captured(other), strict=True)
    )


def _captured(function: FunctionType) -> tuple[list[Any], list[Any]]:
    cells = [_content(cell) for cell in function.__closure__ or ()]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return cells, defaults


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # still empty
        return None


def _one_value(one: Any, other: Any) -> bool:
    plain = (str, int, float, bytes, type(None))
    return one is other or (isinstance(one, plain) and type(one) is type(other) and one == other)


def _shown(function: Any) -> str:
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)
