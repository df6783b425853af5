"""Codecs for the results of steps and functions: JSON by their type, never pickle.

A stored result may be read by another version of the program, or have been written by somebody who
got into the database: it must never be able to run code.
"""

from __future__ import annotations

import importlib.util
import json
from typing import Any, Protocol, get_type_hints

__all__ = ["Codec", "JSONCodec", "TypedCodec", "typed"]


class Codec(Protocol):
    """Turns a result into bytes and back."""

    def encode(self, value: Any) -> bytes:
        """Return the bytes. Raises `TypeError` for a value that it has no form for."""

    def decode(self, data: bytes) -> Any:
        """Return the value that `encode` was given."""


class JSONCodec:
    """None, bool, int, float, str, and lists and dicts of them; what comes back is equal."""

    def encode(self, value: Any) -> bytes:
        """Return compact JSON. Raises `TypeError` where the value would not come back as it is."""
        data = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
        if json.loads(data) != value:
            raise TypeError(
                f"{value!r} would not come back from JSON as it is: give lists for tuples, strings"
                " for keys, or name the type (a return annotation, codec=typed(…))"
            )
        return data

    def decode(self, data: bytes) -> Any:
        """Return the value."""
        return json.loads(data)


class TypedCodec:
    """Values of a declared type, by pydantic: models, dataclasses, dates, decimals, UUIDs."""

    def __init__(self, declared: Any) -> None:
        from pydantic import TypeAdapter

        self._adapter: TypeAdapter[Any] = TypeAdapter(declared)

    def encode(self, value: Any) -> bytes:
        """Return JSON. Raises `TypeError` for a value of another type."""
        try:
            data = self._adapter.dump_json(value, warnings="error")
            self._adapter.validate_json(data)
        except ValueError as error:  # pydantic's errors are
            raise TypeError(f"{value!r} is not of the declared type: {error}") from error
        return data

    def decode(self, data: bytes) -> Any:
        """Return the value, of the declared type. Raises `ValueError` where it is none."""
        return self._adapter.validate_json(data)


_PLAIN = (Any, None, type(None), bool, int, float, str, list, dict)


def typed(declared: Any) -> Codec:
    """Return the codec for a declared type: plain JSON for JSON's own types, else pydantic's.

    Raises `TypeError` where another type is declared and pydantic is not installed.
    """
    if declared in _PLAIN:
        return JSONCodec()
    if importlib.util.find_spec("pydantic") is None:
        raise TypeError(f"results of type {declared!r} need pydantic, or a codec of your own")
    return TypedCodec(declared)


def of_function(function: Any) -> Codec:
    """Return the codec for what a function's annotation says it returns."""
    try:
        declared = get_type_hints(function).get("return", Any)
    except (NameError, TypeError):  # names of the type checker only, or no function
        declared = Any
    return typed(declared)
