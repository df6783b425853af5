"""What users may rely on: every public name and its signature stands in `public.txt`."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.django import project
from tests.docs.test_docs import PAGES
from tests.house import public_names
from tests.house.public_names import FILE, MODULES, ROOT

SHOWN = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

assert project  # Django is set up, or its models cannot be imported


def test_the_public_names_are_those_of_the_list() -> None:
    listed, found = FILE.read_text("utf-8"), public_names.text()
    changes = difflib.unified_diff(
        listed.splitlines(), found.splitlines(), "public.txt", "the code", lineterm="", n=1
    )
    assert listed == found, "\n".join(
        [*changes, "", "if that is meant: python tests/house/public_names.py"]
    )


@pytest.mark.parametrize("name", MODULES)
def test_a_public_module_says_what_is_public(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__all__ == sorted(module.__all__, key=_as_ruff_sorts)
    for public in module.__all__:
        assert hasattr(module, public), public


def _as_ruff_sorts(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def imported(code: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "semel":
            for alias in node.names:
                yield node.module or "", alias.name


def examples() -> Iterator[Path]:
    for path in sorted((ROOT / "examples").rglob("*.py")):
        if "migrations" not in path.parts:
            yield path


def test_the_documentation_imports_public_names_only() -> None:
    """And so do the examples: `from semel.x import y` is public, or nobody is told to write it."""
    private = [
        f"{page.relative_to(ROOT)}: from {module} import {name}"
        for page, code in [
            *((page, code) for page in PAGES for code in SHOWN.findall(page.read_text("utf-8"))),
            *((path, path.read_text("utf-8")) for path in examples()),
        ]
        for module, name in imported(code)
        if not public(module, name)
    ]
    assert not private, "\n".join(private)


def public(module: str, name: str) -> bool:
    if f"{module}.{name}" in MODULES:
        return True
    return module in MODULES and name in importlib.import_module(module).__all__


def test_docstrings_of_public_names_name_what_can_be_imported() -> None:
    """`ThisKindOfName` in a docstring that users read is something that they can reach."""
    known = {name for module in MODULES for name in importlib.import_module(module).__all__}
    lost = [
        f"{module}.{where}: {word}"
        for module in MODULES
        for where, text in docstrings(module)
        for word in re.findall(r"`([A-Z][a-z]+[A-Z]\w+|[A-Z][a-z]{2,})(?:\(.*?\))?`", text)
        if word not in known | ELSEWHERE
    ]
    assert not lost, "\n".join(sorted(set(lost)))


ELSEWHERE = {
    *("None", "True", "False", "NaN"),
    *("ImportError", "ValueError", "TypeError", "RuntimeError", "OSError", "LookupError"),
    *("FileNotFoundError", "Session", "AsyncSession", "Engine", "AsyncEngine"),
    *("DispatcherMiddleware", "Authorization", "Cookie", "Security", "Depends"),
    "ConfigurationError",
}
"""Names of Python, SQLAlchemy, Werkzeug and HTTP."""


def docstrings(module: str) -> Iterator[tuple[str, str]]:
    imported_module = importlib.import_module(module)
    yield "", imported_module.__doc__ or ""
    for name in imported_module.__all__:
        thing = getattr(imported_module, name)
        if not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue
        yield name, inspect.getdoc(thing) or ""
        for attribute, value in vars(thing).items() if inspect.isclass(thing) else ():
            if not attribute.startswith("_") and inspect.isroutine(value):
                yield f"{name}.{attribute}", inspect.getdoc(value) or ""
