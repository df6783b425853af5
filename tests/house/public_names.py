"""Writes `public.txt`, the public names and their signatures: `python tests/house/public_names.py`.

A test compares the file with the code, so that a change of the face shows in the diff.
"""

from __future__ import annotations

import enum
import functools
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, ForwardRef, Protocol, get_args

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("public.txt")

MODULES = (
    "semel",
    "semel.checker",
    "semel.checker.case",
    "semel.checker.cases",
    "semel.checker.exchange",
    "semel.checker.scene",
    "semel.checker.steps",
    "semel.checker.verdict",
    "semel.client",
    "semel.codecs",
    "semel.core.commands",
    "semel.core.record",
    "semel.failpoints",
    "semel.functions",
    "semel.gateway",
    "semel.stores",
    "semel.stores.django",
    "semel.stores.memory",
    "semel.stores.postgres",
    "semel.stores.redis",
    "semel.stores.sqlalchemy",
    "semel.stores.sqlite",
    "semel.testing",
    "semel.testing.store_contract",
    "semel.uploads",
    "semel.uploads.s3",
    "semel.sessions",
    "semel.web.asgi",
    "semel.web.bottle",
    "semel.web.browser",
    "semel.web.conditional",
    "semel.web.django",
    "semel.web.fastapi",
    "semel.web.blacksheep",
    "semel.web.falcon",
    "semel.web.flask",
    "semel.web.pyramid",
    "semel.web.litestar",
    "semel.web.quart",
    "semel.web.sanic",
    "semel.web.strawberry",
    "semel.web.wsgi",
)
"""What people import from; of the core, what a store is made with."""


def text() -> str:
    """Return what is to stand in the file."""
    lines = [
        "# The public names and their signatures. Made by: python tests/house/public_names.py",
    ]
    for module in MODULES:
        lines += ["", module, *(f"  {line}" for line in _of_module(module))]
    return "\n".join(lines) + "\n"


def _of_module(name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    for public in sorted(getattr(module, "__all__", ["(no __all__)"])):
        thing = getattr(module, public, "(missing)")
        where = getattr(thing, "__module__", name)
        if (
            where.startswith("semel.")
            and where != name
            and _home(where, public) not in (None, name)
        ):
            yield f"{public}: see {_home(where, public)}"
        elif inspect.isclass(thing):
            yield from _of_class(public, thing)
        elif callable(thing) and inspect.isroutine(thing):
            yield from _folded(f"{_def(thing)} {public}", _signature(thing))
        else:
            yield f"{public}: {_said(thing)}"


def _home(where: str, public: str) -> str | None:
    """The first of the public modules, from the inside out, that has the name as its own."""
    while where != "semel":
        if where in MODULES and public in getattr(importlib.import_module(where), "__all__", ()):
            return where
        where = where.rpartition(".")[0]
    return None


def _of_class(name: str, cls: type) -> Iterator[str]:
    bases = [base.__name__ for base in cls.__bases__ if base is not object]
    of = f" is a {', '.join(bases)}" if bases else ""
    if issubclass(cls, enum.Enum):
        yield f"class {name}{of}: {', '.join(member.name for member in cls)}"
        return
    bare = issubclass(cls, Exception) and "__init__" not in vars(cls)
    made = [] if bare or Protocol in cls.__bases__ else _signature(cls)
    yield from _folded(f"class {name}", made, of)
    for attribute in sorted(inspect.classify_class_attrs(cls)):
        if attribute.name.startswith("_") or not _ours(attribute.defining_class):
            continue
        yield from (f"  {line}" for line in _of_attribute(cls, attribute))


def _of_attribute(cls: type, attribute: inspect.Attribute) -> Iterator[str]:
    thing: Any = attribute.object
    if isinstance(thing, functools.cached_property):
        thing = property(thing.func)
    if isinstance(thing, property):
        returned = inspect.signature(thing.fget).return_annotation if thing.fget else Any
        yield f"{attribute.name}: {_annotation(returned)}"
    elif attribute.kind in ("class method", "static method"):
        of_class = getattr(cls, attribute.name)
        yield from _folded(f"{attribute.kind} {attribute.name}", _signature(of_class))
    elif attribute.kind == "method" and inspect.isroutine(thing):
        yield from _folded(f"{_def(thing)} {attribute.name}", _signature(thing))


def _ours(cls: type) -> bool:
    return cls.__module__.split(".")[0] == "semel"


def _def(thing: Any) -> str:
    return "async def" if inspect.iscoroutinefunction(thing) else "def"


def _folded(start: str, signature: list[str], end: str = "") -> Iterator[str]:
    """On one line, or, where that is too long, on a line for each parameter."""
    if not signature:
        yield start + end
        return
    *parameters, returned = signature
    line = f"{start}({', '.join(parameters)}){returned}{end}"
    if len(line) <= 96:
        yield line
        return
    yield f"{start}("
    yield from (f"    {parameter}," for parameter in parameters)
    yield f"){returned}{end}"


def _signature(thing: Any) -> list[str]:
    """The parameters, and what is returned; nothing of what is made in C."""
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return []
    parts = []
    starred = False
    for parameter in signature.parameters.values():
        kind = parameter.kind
        if kind is kind.KEYWORD_ONLY and not starred:
            parts.append("*")
        starred = starred or kind in (kind.KEYWORD_ONLY, kind.VAR_POSITIONAL)
        stars = {kind.VAR_POSITIONAL: "*", kind.VAR_KEYWORD: "**"}.get(kind, "")
        text = stars + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {_annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {_default(parameter.default)}"
        parts.append(text)
        if kind is kind.POSITIONAL_ONLY and parameter.name != "self":
            parts.append("/")
    returned = signature.return_annotation
    if inspect.isclass(thing) or returned is signature.empty:
        return [*parts, ""]
    return [*parts, f" -> {_annotation(returned)}"]


def _annotation(annotation: Any) -> str:
    if isinstance(annotation, ForwardRef):
        return annotation.__forward_arg__
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _default(value: Any) -> str:
    if inspect.isroutine(value):
        return getattr(value, "__qualname__", value.__name__)
    text = repr(value).replace("datetime.", "")
    return "…" if len(text) > 60 or " at 0x" in text else text


def _said(thing: Any) -> str:
    if isinstance(thing, (int, float, str, bytes, type(None))):
        return repr(thing)
    if hasattr(thing, "__metadata__"):  # a type that is ready made
        kind = thing.__origin__  # of a union the parts
        parts = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        return f"Annotated[{' | '.join(part.__name__ for part in parts)}, …]"
    return type(thing).__name__


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    from tests.django import project  # noqa: F401  # sets Django up

    FILE.write_text(text(), "utf-8")
