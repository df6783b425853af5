"""The imports between the modules of a package, read from their source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Module(NamedTuple):
    """A module's file, what it says, and the modules of the same package that it imports."""

    path: Path
    tree: ast.Module
    imports: frozenset[str]


def modules(package: str = "semel", source: Path = ROOT / "src") -> dict[str, Module]:
    """Return the modules of a package by name. Imports for type checkers only do not count."""
    trees: dict[str, tuple[Path, ast.Module]] = {}
    for path in sorted((source / package).rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = path, ast.parse(path.read_text("utf-8"))
    return {
        name: Module(path, tree, frozenset(_imported(tree, set(trees)) - {name}))
        for name, (path, tree) in trees.items()
    }


def _imported(tree: ast.Module, known: set[str]) -> set[str]:
    found = set()
    for node in _run(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
    return found & known


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what is run: not `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _run(child)


def circles(graph: dict[str, frozenset[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, around any number of corners."""
    order: list[str] = []
    seen: set[str] = set()
    back: dict[str, set[str]] = {name: set() for name in graph}
    for name, imported in graph.items():
        for other in imported:
            back[other].add(name)

    def visit(start: str, arrows: dict[str, set[str]] | dict[str, frozenset[str]]) -> list[str]:
        reached: list[str] = []
        stack = [(start, iter(arrows[start]))]
        seen.add(start)
        while stack:
            name, rest = stack[-1]
            for other in rest:
                if other not in seen:
                    seen.add(other)
                    stack.append((other, iter(arrows[other])))
                    break
            else:
                reached.append(name)
                stack.pop()
        return reached

    for name in graph:
        if name not in seen:
            order += visit(name, graph)
    seen.clear()
    groups = [visit(name, back) for name in reversed(order) if name not in seen]
    return [sorted(group) for group in groups if len(group) > 1]
