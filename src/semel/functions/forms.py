"""The forms of arguments: texts that are equal where, and only where, two values ask for the same.

Numbers are compared as Python compares them (`1`, `1.0` and `Decimal("1.00")` are one), except that
`True` is not 1. Instants are equal in any zone, and never equal to a time without one. Lists and
tuples are one, since brokers turn one into the other; bytes and bytearrays, and sets in any order,
too. Dataclasses, models and enums are compared with the name of their class, without the fields
that hold their default: a release that adds one does not change what is asked.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import hashlib
import ipaddress
import json
import math
import numbers
import pathlib
import uuid
import zoneinfo
from collections import deque
from collections.abc import Iterable, Mapping, Set
from typing import Any, Final

__all__ = ["NoForm", "form", "form_or_none"]

DEEPEST: Final = 100
"""Levels of nesting. A fixed number: a limit that depended on the stack would refuse a repeat."""

_SCALE: Final = 10_000
"""Largest exponent of ten that is written out."""
_EXACT: Final = decimal.Context(prec=decimal.MAX_PREC, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)
_MISSING: Final = object()
_CONTAINERS: Final = (list, dict, set, tuple, frozenset)
_BY_TEXT: Final[tuple[tuple[tuple[type, ...], str], ...]] = (
    ((uuid.UUID,), "uuid"),
    ((pathlib.PurePath,), "path"),
    ((ipaddress.IPv4Address, ipaddress.IPv4Network, ipaddress.IPv4Interface), "ip"),
    ((ipaddress.IPv6Address, ipaddress.IPv6Network, ipaddress.IPv6Interface), "ip"),
    ((zoneinfo.ZoneInfo, datetime.timezone), "zone"),
    ((range,), "range"),
)


class NoForm(TypeError):
    """A value is nothing that two calls can be compared by."""


def form(value: Any, depth: int = 0) -> str:
    """Return the form of a value. Raises `NoForm` for what is not plain data."""
    if depth > DEEPEST:
        raise NoForm(f"it is nested more than {DEEPEST} levels deep, or contains itself")
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return _enum(value, depth)
    if isinstance(value, str):
        return json.dumps(str.__str__(value))
    if isinstance(value, (numbers.Number, decimal.Decimal)):
        return _number(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"bytes:{hashlib.sha256(bytes(value)).hexdigest()}"
    if isinstance(value, (list, tuple, deque)):
        return f"[{_joined(form(member, depth + 1) for member in value)}]"
    if isinstance(value, Mapping):
        members = ((form(k, depth + 1), form(v, depth + 1)) for k, v in value.items())
        return f"{{{_joined(f'{k}={v}' for k, v in sorted(members))}}}"
    if isinstance(value, Set):
        return f"set({_joined(sorted(form(member, depth + 1) for member in value))})"
    return _time(value) or _by_text(value) or _object(value, depth)


def _joined(forms: Iterable[str]) -> str:
    return ",".join(forms)


def _enum(value: enum.Enum, depth: int) -> str:
    if isinstance(value, (str, int, float, bytes)):  # equal to its value, says Python
        return form(value.value, depth + 1)
    return _of_class(type(value), form(value.value, depth + 1))


def _number(value: Any) -> str:
    """Return the exact value as a fraction; in hexadecimal, which takes linear time."""
    if isinstance(value, numbers.Integral):
        return f"{int(value):x}"
    if isinstance(value, decimal.Decimal):
        if not value.is_finite():
            return "nan" if value.is_nan() else _infinity(value)
        if not value:
            return "0"
        if abs(value.adjusted()) > _SCALE:  # would be as many digits
            return f"decimal:{value.normalize(_EXACT)}"
    elif not hasattr(value, "as_integer_ratio"):
        raise NoForm(f"{type(value).__name__} is not plain data")
    elif isinstance(value, numbers.Real) and not math.isfinite(value):
        return "nan" if math.isnan(value) else _infinity(value)
    numerator, denominator = value.as_integer_ratio()
    return f"{numerator:x}" if denominator == 1 else f"{numerator:x}/{denominator:x}"


def _infinity(value: Any) -> str:
    return "infinity" if value > 0 else "-infinity"


def _time(value: Any) -> str | None:
    if isinstance(value, datetime.datetime):
        if value.utcoffset() is None:
            return f"local:{value.replace(tzinfo=None).isoformat()}"
        naive = value.replace(tzinfo=None, fold=0)
        since = naive - datetime.datetime.min - (value.utcoffset() or datetime.timedelta())
        return f"instant:{_microseconds(since)}"
    if isinstance(value, datetime.date):
        return f"date:{value.isoformat()}"
    if isinstance(value, datetime.time):
        offset = value.utcoffset()
        if offset is None:
            return f"time:{value.replace(tzinfo=None).isoformat()}:{json.dumps(str(value.tzinfo))}"
        naive = datetime.datetime.combine(datetime.date(1, 1, 2), value.replace(tzinfo=None))
        return f"time:{_microseconds(naive - datetime.datetime.min - offset)}"
    if isinstance(value, datetime.timedelta):
        return f"duration:{_microseconds(value)}"
    return None


def _microseconds(value: datetime.timedelta) -> int:
    return value // datetime.timedelta(microseconds=1)


def _by_text(value: Any) -> str | None:
    for kinds, word in _BY_TEXT:
        if isinstance(value, kinds):
            return f"{word}:{json.dumps(str(value))}"
    return None


def _object(value: Any, depth: int) -> str:
    kind = type(value)
    if isinstance(value, type):
        raise NoForm("a class is not plain data")
    secret = getattr(value, "get_secret_value", None)
    if secret is not None:  # pydantic's; its text is the same for all
        return _of_class(kind, form(secret(), depth + 1))
    fields = _fields(kind)
    if fields is not None:
        return _of_class(kind, _members(value, fields, depth))
    speaks = any("__str__" in vars(base) for base in kind.__mro__[:-1])
    if speaks and hasattr(kind, "__get_pydantic_core_schema__"):
        return _of_class(kind, json.dumps(str(value)))  # a URL
    raise NoForm(f"{kind.__name__} is not plain data")


def _of_class(kind: type, inner: str) -> str:
    return f"={kind.__qualname__}({inner})"


def _fields(kind: type) -> dict[str, Any] | None:
    """Return the names and defaults of what makes up a value of this class, or None."""
    if dataclasses.is_dataclass(kind):
        return {
            f.name: _default(f.default, f.default_factory)
            for f in dataclasses.fields(kind)
            if f.compare
        }
    if hasattr(kind, "model_fields") and hasattr(kind, "model_dump"):  # pydantic
        return {n: _default(f.default, f.default_factory) for n, f in kind.model_fields.items()}
    if hasattr(kind, "__attrs_attrs__"):
        return {
            a.name: _default(a.default, getattr(a.default, "factory", None))
            for a in kind.__attrs_attrs__
            if a.eq
        }
    if hasattr(kind, "__struct_fields__") and hasattr(kind, "__struct_defaults__"):  # msgspec
        names, defaults = kind.__struct_fields__, kind.__struct_defaults__
        missing = (_MISSING,) * (len(names) - len(defaults))
        return {
            name: _default(default, getattr(default, "factory", None))
            for name, default in zip(names, missing + tuple(defaults), strict=True)
        }
    return None


def _default(default: Any, factory: Any) -> Any:
    """Return a field's default. Only empty containers are made: others may be new each time."""
    if isinstance(factory, type) and factory in _CONTAINERS:
        return factory()
    return default


def _members(value: Any, fields: dict[str, Any], depth: int) -> str:
    """Return the members that differ from their default."""
    stated = dict(getattr(value, "__pydantic_extra__", None) or {})
    stated.update((name, getattr(value, name, _MISSING)) for name in fields)
    members = []
    for name, member in sorted(stated.items()):
        default = fields.get(name, _MISSING)
        if member is not default and member is not _MISSING:
            text = form(member, depth + 1)
            if text != form_or_none(default):
                members.append(f"{json.dumps(name)}={text}")
    return _joined(members)


def form_or_none(default: Any) -> str | None:
    """Return the form of a default; None for what has none, such as the mark for "no default"."""
    try:
        return form(default)
    except NoForm:
        return None
