"""Codecs for the results of steps and functions: JSON by their type, never pickle.

A stored result may be read by another version of the program, or have been written by somebody who
got into the database: it must never be able to run code.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Awaitable, Coroutine, Iterator
from types import UnionType
from typing import (
    Any,
    Final,
    Never,
    NoReturn,
    Protocol,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

__all__ = ["Codec", "JSONCodec", "StepResultNotKept", "TypedCodec", "typed"]

log = logging.getLogger("semel")


class Codec(Protocol):
    """Turns a result into bytes and back.

    Whatever it raises means that the result is not kept; what was done is done all the same.
    """

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
        """Return JSON. Raises `TypeError` for a value of another type, or one that comes back so.

        An iterator is refused: to write it down would use it up.
        """
        if isinstance(value, Iterator):
            raise TypeError(f"{type(value).__name__}: an iterator has no stored form; give a list")
        try:
            data = self._adapter.dump_json(value, warnings="error")
            back = self._adapter.validate_json(data)
        except ValueError as error:  # pydantic's errors are
            raise TypeError(f"{value!r} is not of the declared type: {error}") from error
        if type(back) is not type(value) and back != value:
            raise TypeError(f"{value!r} would come back as {back!r}: name its own type")
        return data

    def decode(self, data: bytes) -> Any:
        """Return the value, of the declared type. Raises `ValueError` where it is none."""
        return self._adapter.validate_json(data)


_PLAIN: Final = (Any, object, None, type(None), bool, int, float, str, list, dict, Never, NoReturn)


def _plain(declared: Any) -> bool:
    """Whether JSON has all values of a type: `list[str]`, `dict[str, Any]`, `int | None`."""
    kind, inner = get_origin(declared), get_args(declared)
    if kind is dict:
        return inner[0] is str and _plain(inner[1])
    if kind in (list, Union, UnionType):
        return all(map(_plain, inner))
    return kind is None and declared in _PLAIN


def typed(declared: Any) -> Codec:
    """Return the codec for a declared type: plain JSON for JSON's own types, else pydantic's.

    Raises `TypeError` where another type is declared and pydantic is not installed, or has no form
    for it.
    """
    if _plain(declared):
        return JSONCodec()
    if importlib.util.find_spec("pydantic") is None:
        raise TypeError(f"results of type {declared!r} need pydantic, or a codec of your own")
    from pydantic.errors import PydanticUserError

    try:
        return TypedCodec(declared)
    except PydanticUserError as error:
        raise TypeError(
            f"results of type {declared!r} have no stored form: return plain data or a model, or"
            f" give codec=, an object with encode and decode ({error.message})"
        ) from error


def of_function(function: Any) -> Codec:
    """Return the codec for what a function's annotation says it returns."""
    try:
        declared = get_type_hints(function).get("return", Any)
    except (NameError, TypeError):  # names of the type checker only, or no function
        declared = Any
    if get_origin(declared) in (Awaitable, Coroutine):  # of a function marked as a coroutine's
        declared = get_args(declared)[-1]
    return typed(declared)


def encoded(codec: Codec, value: Any, whose: str) -> bytes | None:
    """Return a result's stored form, or None where it has none: that is logged, never raised.

    What has been done cannot be undone by its result, so nothing may be done again because of it.
    """
    try:
        data = codec.encode(value)
        if isinstance(data, bytes):
            return data
        reason = f"its codec gave {type(data).__name__}, not bytes"
    except Exception as error:  # noqa: BLE001  # also from the value's own __str__
        reason = _text_of(error)
    log.warning(
        "%s: the result is not kept, a repeat will not get it: %s", whose, reason[:_LONGEST_REASON]
    )
    return None


_LONGEST_REASON: Final = 300
"""Characters of a log line: a result may be large, and its error quote all of it."""


def _text_of(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  # its own __str__
        return type(error).__name__


class StepResultNotKept(RuntimeError):
    """The step is done and is not called again, but its result had no stored form.

    Raised by a rerun that asks for it; look the result up where the far side shows it.
    """


class StepResult:
    """The result of one step, on its way into the store and back."""

    def __init__(self, codec: Codec, name: str) -> None:
        self._codec = codec
        self._name = name
        self._unkept: Any = None
        self._mine = False

    def encode(self, value: Any) -> bytes:
        """Return what is recorded: its form, or the mark that it has none."""
        data = encoded(self._codec, value, f"step {self._name!r}")
        if data is not None:
            return data
        self._unkept, self._mine = value, True
        return _NOT_KEPT

    def decode(self, data: bytes) -> Any:
        """Return the value that is recorded; where it has no form, to its own attempt only.

        Raises `StepResultNotKept`.
        """
        reason: Exception | None = None
        if data != _NOT_KEPT:
            try:
                return self._codec.decode(data)
            except Exception as error:  # noqa: BLE001  # a codec's own
                reason = error
        elif self._mine:
            return self._unkept
        raise StepResultNotKept(
            f"step {self._name!r} is done, but its result had no stored form or cannot be read any"
            " more: return plain data from it, or give step(codec=…)"
        ) from reason


_NOT_KEPT: Final = b"\0semel: not kept"
"""Stands for a result without a stored form; no JSON begins so."""
