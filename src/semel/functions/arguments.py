"""The arguments of a call: which key they name, and what they ask for."""

from __future__ import annotations

import enum
import hashlib
import inspect
import json
import reprlib
import uuid
from collections.abc import Callable, Sequence
from inspect import BoundArguments, Parameter
from typing import Any, Final

from semel.core.fingerprint import CALL
from semel.core.keys import hash_key
from semel.functions.forms import NoForm, form, form_or_none

__all__ = ["Arguments", "Key"]

Key = str | Sequence[str] | Callable[..., str]

_BY_NAME: Final = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


class Arguments:
    """Reads the arguments of one function's calls.

    Raises `TypeError` where what is asked for does not fit the function.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        key: Key,
        scope: Callable[..., str] | None,
        ignore: Sequence[str],
    ) -> None:
        self._name = name
        try:
            self._signature = inspect.signature(function)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} does not say what arguments it has: {error}") from error
        self._parameters = self._signature.parameters
        self._rest = self._variable(Parameter.VAR_KEYWORD)
        self._more = self._variable(Parameter.VAR_POSITIONAL)
        self._key_names = () if callable(key) else (key,) if isinstance(key, str) else tuple(key)
        if not callable(key) and not self._key_names:
            raise TypeError(f"{name}: key= names no argument")
        for asked in (*self._key_names, *([ignore] if isinstance(ignore, str) else ignore)):
            self._require(asked)
        self._left_out = {ignore} if isinstance(ignore, str) else set(ignore)
        chosen = {"key": key if callable(key) else None, "scope": scope}
        owner = self._owner(chosen)
        if owner is not None:
            self._left_out.add(owner)
        self._key, self._scope = (
            None if given is None else _Chosen(self, given, what) for what, given in chosen.items()
        )
        self._defaults = {
            name: form_or_none(parameter.default)
            for name, parameter in self._parameters.items()
            if parameter.default is not Parameter.empty
        }
        if self._more is not None:
            self._defaults[self._more] = form(())

    def _variable(self, kind: Any) -> str | None:
        return next((name for name, p in self._parameters.items() if p.kind is kind), None)

    def _require(self, asked: str) -> None:
        if asked not in self._parameters and self._rest is None:
            raise TypeError(
                f"{self._name} has no argument {asked!r}; it has {', '.join(self._parameters)}"
            )

    def _owner(self, chosen: dict[str, Any]) -> str | None:
        """Return the argument that is the method's object, where another says whose call it is."""
        first = next(iter(self._parameters), None)
        if first not in ("self", "cls") or first in self._left_out:
            return None
        key = chosen["key"]
        if chosen["scope"] is None and not (
            key is not None and first in (_parameters_of(key) or ())
        ):
            raise TypeError(
                f"{self._name} is a method, and its key does not say whose call it is: name that"
                f" with scope=lambda {first}, …: {first}.account_id, or, where all objects are one"
                f" to it, leave it out with ignore=({first!r},)"
            )
        return first

    # --- a call ------------------------------------------------------------------------------

    def bind(self, args: Any, kwargs: Any) -> BoundArguments:
        """Return the arguments by their names, defaults and all."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound

    def key_hash(self, bound: BoundArguments) -> bytes:
        """Return the 16 bytes under which the call is recorded."""
        values = self._by_name(bound)
        if self._key is not None:
            key = self._key(bound, values)
            if not isinstance(key, str) or not key:
                raise TypeError(
                    f"{self._name}: key= has to give a non-empty string, not {_shown(key)}"
                )
        else:
            texts = [self._key_text(name, values) for name in self._key_names]
            key = texts[0] if len(texts) == 1 else json.dumps(texts)
        owner = [self._name]
        if self._scope is not None:
            scope = _text(self._scope(bound, values))
            if scope is None:
                raise TypeError(
                    f"{self._name}: scope= has to give a non-empty string, a whole number or a"
                    " UUID; None would make all tenants one"
                )
            owner.append(scope)
        try:
            return hash_key(f"function:{json.dumps(owner)}", key)
        except UnicodeEncodeError as error:
            raise TypeError(f"{self._name}: the key is not valid text: {error}") from error

    def fingerprint(self, bound: BoundArguments) -> bytes:
        """Return the hash of what is asked for: the arguments that differ from their defaults."""
        parts = []
        for name, value in sorted(self._by_name(bound).items()):
            parameter = self._parameters.get(name)
            if name in self._left_out or (parameter and value is parameter.default):
                continue
            try:
                text = form(value)
            except (NoForm, RecursionError) as error:
                raise TypeError(
                    f"{self._name}: argument {name!r} has no form to compare calls by ({error});"
                    f" pass plain data (an id, a dict, a dataclass), or leave it out with"
                    f" ignore=({name!r},)"
                ) from error
            if text != self._defaults.get(name):
                parts.append((name, text))
        return bytes([CALL]) + hashlib.sha256(json.dumps(parts).encode()).digest()

    def _by_name(self, bound: BoundArguments) -> dict[str, Any]:
        """Return all arguments by name; those of `**kwargs` by their own."""
        values = dict(bound.arguments)
        if self._rest is not None:
            rest = values.pop(self._rest)
            if self._rest not in self._left_out:
                own = self._parameters
                values.update((f"**{n}" if n in own else n, value) for n, value in rest.items())
        return values

    def _key_text(self, name: str, values: dict[str, Any]) -> str:
        text = _text(values.get(name))
        if text is None:
            raise TypeError(
                f"{self._name}: argument {name!r} is the key and has to be a non-empty string, a"
                f" whole number or a UUID, not {_shown(values.get(name))}"
            )
        return text

    # --- for key= and scope= -----------------------------------------------------------------

    def as_called(self, bound: BoundArguments) -> BoundArguments:
        """Return the arguments as they were given, without those that are left out."""
        kept = {n: value for n, value in bound.arguments.items() if n not in self._left_out}
        return BoundArguments(self._signature, kept)

    def named(self, values: dict[str, Any], names: Sequence[str], *, rest: bool) -> dict[str, Any]:
        """Return the arguments of these names, and with `rest` all that are not left out."""
        return {
            n: value
            for n, value in values.items()
            if n in names or (rest and n not in self._left_out)
        }

    def check_asked(self, what: str, names: Sequence[str]) -> None:
        """Raise `TypeError` where a function asks for what is no argument."""
        unknown = [n for n in names if n not in self._parameters]
        if unknown and self._rest is None:
            raise TypeError(
                f"{self._name}: {what}= asks for {', '.join(map(repr, unknown))}, and its arguments"
                f" are {', '.join(self._parameters)}"
            )

    @property
    def name(self) -> str:
        """The function's name."""
        return self._name


class _Chosen:
    """`key=` or `scope=`: called with those arguments that it asks for by name.

    One that takes what comes (`*args`, or a builtin such as `str.lower`) is called as the function
    is.
    """

    def __init__(self, arguments: Arguments, choose: Callable[..., Any], what: str) -> None:
        self._arguments = arguments
        self._choose = choose
        self._what = what
        if inspect.iscoroutinefunction(choose):
            raise TypeError(f"{arguments.name}: {what}= has to be a plain function, not async")
        known = _parameters_of(choose)
        parameters = known or {}
        self._names = [n for n, p in parameters.items() if p.kind in _BY_NAME]
        self._takes_rest = any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
        self._by_name = known is not None and all(
            p.kind in (*_BY_NAME, Parameter.VAR_KEYWORD) for p in parameters.values()
        )
        if self._by_name:
            needed = [n for n in self._names if parameters[n].default is Parameter.empty]
            arguments.check_asked(what, needed)

    def __call__(self, bound: BoundArguments, values: dict[str, Any]) -> Any:
        arguments = self._arguments
        try:
            if self._by_name:
                chosen = arguments.named(values, self._names, rest=self._takes_rest)
                return self._choose(**chosen)
            given = arguments.as_called(bound)
            return self._choose(*given.args, **given.kwargs)
        except Exception as error:
            raise TypeError(
                f"{arguments.name}: {self._what}= raised {type(error).__name__}: {_shown(error)}"
            ) from error


def _parameters_of(function: Callable[..., Any]) -> dict[str, Parameter] | None:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some builtins
        return None


def _text(value: object) -> str | None:
    """Return a key's or scope's text; None where the value is no good as one."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return str.__str__(value) or None
    if isinstance(value, (int, uuid.UUID)):
        return str(value)
    return None


def _shown(value: object) -> str:
    try:
        return reprlib.repr(value) if not isinstance(value, Exception) else str(value)
    except Exception:  # noqa: BLE001  # its own code
        return f"an object of {type(value).__name__}"
