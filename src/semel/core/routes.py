"""Routes: the patterns of paths, and the policy of a request by them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from semel.core.policy import Policy, PolicyError

PARAMETER: Final = re.compile(r"\{([A-Za-z_]\w*)(?::([A-Za-z_]\w*))?\}")
_ANGLED: Final = re.compile(r"<(?:([A-Za-z_]\w*)(?:\([^)]*\))?:)?([A-Za-z_]\w*)>")
"""A parameter as Flask and Django write it."""
_KINDS: Final = {
    "str": ("[^/]+", "x"),
    "path": (".*", "x"),
    "int": ("[0-9]+", "0"),
    "float": (r"[0-9]+(?:\.[0-9]+)?", "0"),
    "uuid": (
        "[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}",
        "0" * 32,
    ),
}
"""Of each kind of parameter: its expression, and a value that it matches."""

Segments = Mapping[str, str]
"""The expressions of parameters whose kind is the application's own, by their names."""
NONE: Final[Segments] = MappingProxyType({})


class Path(NamedTuple):
    """A pattern's path, taken apart."""

    expression: re.Pattern[str] | None
    """None: it has no parameter, and matches itself."""
    sample: str
    """A path that it matches."""


def read_path(path: str, segments: Segments = NONE) -> Path:
    """Take a path such as `/charges/{id:int}` apart. Raises `PolicyError` where it is none."""
    if angled := _ANGLED.search(path):
        kind = f":{angled.group(1)}" if angled.group(1) in _KINDS else ""
        raise PolicyError(
            f"route {path!r}: write {{{angled.group(2)}{kind}}} in place of {angled.group()}"
        )
    literal = PARAMETER.sub("", path)
    if "{" in literal or "}" in literal:
        raise PolicyError(f"route {path!r}: write a parameter as {{name}} or {{name:path}}")
    if literal == path:
        return Path(None, path)
    expression: list[str] = []
    sample: list[str] = []
    position = 0
    for match in PARAMETER.finditer(path):
        name, kind = match.group(1), match.group(2) or "str"
        if name not in segments and kind not in _KINDS:
            raise PolicyError(
                f"route {path!r}: {kind!r} is no kind of parameter; give one of {', '.join(_KINDS)}"
            )
        between = path[position : match.start()]
        wanted, value = _KINDS.get(kind, ("", "x"))
        expression += (re.escape(between), segments.get(name, wanted))
        sample += (between, value)
        position = match.end()
    rest = path[position:]
    whole = re.compile("".join((*expression, re.escape(rest))))
    return Path(whole, "".join((*sample, rest)))


class Routes:
    """Finds the policy of a request: the first pattern that matches, else the service's own.

    A pattern is a path, `/charges/{id}` or `/files/{name:path}`, with a method before it where it
    is for that method only: `"DELETE /charges/{id}"`. The policy None leaves a route alone.
    """

    def __init__(self, default: Policy, overrides: Mapping[str, Policy | None]) -> None:
        self.default = default
        self._exact: dict[tuple[str, str], Policy | None] = {}
        self._patterns: list[tuple[str, re.Pattern[str], Policy | None]] = []
        self._marked: dict[str, tuple[str, re.Pattern[str], Policy]] = {}
        self._ordered: tuple[tuple[str, re.Pattern[str], Policy | None], ...] = ()
        self._own: set[str] = set()
        self.described: dict[str, Policy | None] = {}
        for pattern, policy in overrides.items():
            self.add(pattern, policy)

    def add(self, pattern: str, policy: Policy | None) -> None:
        """Add a route. Raises `PolicyError` for a pattern that is none."""
        method, path, read = _read(pattern, policy)
        self.described[pattern] = policy
        if read.expression is None:
            self._exact[method, path] = policy
        else:
            self._patterns.append((method, read.expression, policy))
            self._order()

    def mark(self, pattern: str, policy: Policy, segments: Segments) -> None:
        """Add the route of a handler that has rules of its own, which go before all patterns."""
        method, path, read = _read(pattern, policy, segments)
        self.described[pattern] = policy
        self._own.add(pattern)
        if read.expression is None:
            self._exact[method, path] = policy
        else:
            self._marked[pattern] = (method, read.expression, policy)
            self._order()

    def _order(self) -> None:
        """Put the marks before the patterns, once for all requests."""
        self._ordered = (*self._marked.values(), *self._patterns)

    def find(self, method: str, path: str) -> Policy | None:
        """Return the policy under which this request runs, or None where it passes untouched."""
        policy = self.default
        if self.described:
            policy = self._override(method, path)  # type: ignore[assignment]
        if policy is None or method not in policy.methods:
            return None
        return policy

    def _override(self, method: str, path: str) -> Policy | None:
        for candidate in ((method, path), ("", path)):
            if candidate in self._exact:
                return self._exact[candidate]
        for wanted, expression, policy in self._ordered:
            if wanted in ("", method) and expression.fullmatch(path):
                return policy
        return self.default

    def policies(self) -> list[Policy]:
        """Return every policy in force, the service's own first."""
        return [self.default, *(p for p in self.described.values() if p is not None)]

    def unmet(self, served: Iterable[tuple[str, Path]]) -> list[str]:
        """Return, in a sentence each, the patterns that match none of the paths that are served.

        `served`: each method and path of the application; the method "" stands for all.
        """
        paths = list(served)
        names = [f"{method} {path.sample}".strip() for method, path in paths]
        lost = []
        for pattern in self.described.keys() - self._own:
            method, written = _split(pattern)
            read = read_path(written)
            if any(
                _matches(read, path.sample) or _matches(path, read.sample)
                for wanted, path in paths
                if wanted == method or "" in (wanted, method)
            ):
                continue
            near = difflib.get_close_matches(f"{method} {read.sample}".strip(), names, 1, 0.4)
            lost.append(f"{pattern!r} is no route" + (f", {near[0]!r} is" if near else ""))
        return sorted(lost)


def _matches(path: Path, sample: str) -> bool:
    if path.expression is None:
        return path.sample == sample
    return path.expression.fullmatch(sample) is not None


def _split(pattern: str) -> tuple[str, str]:
    method, _, path = ("", "", pattern) if pattern.startswith("/") else pattern.partition(" ")
    return method, path


def _read(pattern: str, policy: Policy | None, segments: Segments = NONE) -> tuple[str, str, Path]:
    method, path = _split(pattern)
    if not path.startswith("/") or (method and not method.isupper()):
        raise PolicyError(
            f"route {pattern!r}: give a path, with a method before it if it is for that method"
            ' only, such as "POST /charges/{id}"'
        )
    if policy is not None and method and method not in policy.methods:
        raise PolicyError(f"route {pattern!r}: its policy's methods leave {method} out")
    return method, path, read_path(path, segments)
