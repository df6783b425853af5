"""The SQL files of this folder, written for one database and one driver."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from semel.core.record import COLUMNS
from semel.stores import statements as files
from semel.stores.base import StoreSetupError
from semel.stores.portable.dialects import Dialect

_NAMES: Final = (
    *("lookup", "claim", "vacate", "complete", "settle", "unpark", "release", "park", "holder"),
    *("in_flight", "free", "renew", "abandoned", "over", "purge", "due", "expire"),
    *("steps", "step_record", "step_read", "step_forget", "steps_unsure", "steps_delete"),
    *("steps_over", "steps_purge"),
)
_TEXTS: Final = {name: files.load("portable", name) for name in _NAMES}

_PLACES: Final[dict[str, Callable[[int], str]]] = {
    "qmark": lambda number: "?",
    "format": lambda number: "%s",
    "pyformat": lambda number: "%s",
    "numeric_dollar": lambda number: f"${number}",
}
"""How the nth parameter is written in each `paramstyle` of PEP 249, and in asyncpg's."""
_PARAMETER: Final = re.compile(r"(?<!:):([a-z_]+)")
_LIST: Final = re.compile(r"in \(:([a-z_]+)\)")


class PortableStatement:
    """A statement with parameters by name (`:key`), written in the style of a driver.

    A parameter that stands alone in the parentheses of `in (…)` is a list.
    """

    __slots__ = ("_lists", "_names", "_pieces", "_place", "_sql")

    def __init__(self, text: str, dialect: Dialect, paramstyle: str) -> None:
        place = _PLACES.get(paramstyle)
        if place is None:
            raise StoreSetupError(
                f"the driver's parameters are in the style {paramstyle!r}: {', '.join(_PLACES)} are"
                " known"
            )
        self._place = place
        names_and_pieces = _PARAMETER.split(text.replace('"', dialect.quote))
        self._pieces, self._names = names_and_pieces[::2], names_and_pieces[1::2]
        self._lists = frozenset(_LIST.findall(text))
        self._sql = self._written(dict.fromkeys(self._names, (None,)))[0]

    def bind(self, values: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]]:
        """Return the statement and its parameters in their order."""
        if not self._lists:
            return self._sql, tuple([values[name] for name in self._names])
        lists = self._lists
        return self._written({n: values[n] if n in lists else (values[n],) for n in self._names})

    def _written(self, values: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]]:
        bound: list[Any] = []
        written = self._pieces[0]
        for name, piece in zip(self._names, self._pieces[1:], strict=True):
            first = len(bound) + 1
            bound += values[name]
            written += ", ".join(map(self._place, range(first, len(bound) + 1))) + piece
        return written, tuple(bound)


def written_for(
    dialect: Dialect, paramstyle: str, *, given_now: bool
) -> dict[str, PortableStatement]:
    """Return every statement by its name. `given_now`: the time is a parameter, `now`.

    Raises `StoreSetupError` for a driver whose parameters are written in an unknown way.
    """
    words = {
        "record_columns": ", ".join(f'"{name}"' for name in COLUMNS),
        "now": dialect.given_now if given_now else dialect.now,
        "lock": dialect.lock,
        "skip_locked": dialect.skip_locked,
        "insert": dialect.insert,
        "or_nothing": dialect.or_nothing,
        "or_update": dialect.or_update,
        "returning_result": "returning result" if dialect.returns else "",
    }
    return {
        name: PortableStatement(text.format(**words).strip(), dialect, paramstyle)
        for name, text in _TEXTS.items()
    }
