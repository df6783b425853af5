"""Conversion of TOML's values to the fields of data classes, with errors that name the field."""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZES: Final = {"": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


class SettingsError(ValueError):
    """A setting makes no sense; the message names the field and the fix."""


def read(path: Path) -> dict[str, object]:
    """Read a TOML file. Raises `SettingsError`."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error


def table(value: object, where: str) -> Mapping[str, object]:
    """Return a table's fields. Raises `SettingsError` where it is none."""
    if not isinstance(value, Mapping):
        raise SettingsError(f"{where}: it is a table, not {value!r}")
    return value


def known(fields: Iterable[str], names: Iterable[str], where: str) -> None:
    """Refuse fields that do not exist. Raises `SettingsError` with the one that was meant."""
    names = list(names)
    for field in fields:
        if field not in names:
            near = difflib.get_close_matches(field, names, 1)
            fix = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            raise SettingsError(f"{_named(where, field)}: there is no such field; {fix}")


def build(kind: type[T], fields: object, where: str, **parts: object) -> T:
    """Make a data class of a table and of what is made already. Raises `SettingsError`."""
    given = table(fields, where)
    types = _types(kind)
    known(given, types, where)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        absent = field.name not in given and field.name not in parts
        if absent and field.default is field.default_factory is dataclasses.MISSING:
            raise SettingsError(f"{_named(where, field.name)}: it is missing")
    return kind(**_converted(given, types, where), **parts)


def replace(base: T, fields: Mapping[str, object], where: str) -> T:
    """Return `base` with a table's fields. Raises `SettingsError`, and what its class raises."""
    types = _types(type(base))
    known(fields, types, where)
    return dataclasses.replace(base, **_converted(fields, types, where))  # type: ignore[type-var]


def _types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _converted(fields: Mapping[str, object], types: dict[str, Any], where: str) -> dict[str, Any]:
    return {name: _value(value, types[name], _named(where, name)) for name, value in fields.items()}


def _named(where: str, name: str) -> str:
    return f"{where} {name}" if where else name


def _value(value: object, kind: Any, name: str) -> object:
    """Return a value as its field takes it; what has several forms is left to its class."""
    options = [option for option in (typing.get_args(kind) or (kind,)) if option is not type(None)]
    if timedelta in options:
        return _duration(value, name)
    origins = {typing.get_origin(option) for option in (kind, *options)}
    if tuple in origins or frozenset in origins:
        if not isinstance(value, list):
            raise SettingsError(f"{name}: give a list, not {value!r}")
        return tuple(value) if tuple in origins else frozenset(value)
    if options == [int]:
        return _size(value, name)
    if options in ([bool], [str]) and type(value) is not options[0]:
        fix = "true or false" if options == [bool] else "text in quotes"
        raise SettingsError(f"{name}: give {fix}, not {value!r}")
    return value


def _duration(value: object, name: str) -> timedelta:
    match = (
        re.fullmatch(r"(\d+(?:\.\d+)?) ?(ms|s|m|h|d)", value) if isinstance(value, str) else None
    )
    if match is not None:
        return timedelta(seconds=float(match.group(1)) * _UNITS[match.group(2)])
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return timedelta(seconds=value)
    raise SettingsError(f'{name}: give seconds, or text such as "30s", "5m", "24h", not {value!r}')


def _size(value: object, name: str) -> int:
    match = re.fullmatch(r"(\d+) ?(|KiB|MiB|GiB)", value) if isinstance(value, str) else None
    if match is not None:
        return int(match.group(1)) * _SIZES[match.group(2)]
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise SettingsError(f'{name}: give a whole number, or a size such as "64MiB", not {value!r}')
