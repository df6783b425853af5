"""What a call is compared by: equal values are equal, different ones are not."""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import pathlib
import threading
import uuid
import zoneinfo
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import pytest
from pydantic import BaseModel, HttpUrl, SecretStr

from semel import Idempotency, idempotent
from semel.functions import KeyReused
from semel.functions.forms import NoForm, form


@pytest.fixture
def idempotency() -> Iterator[Idempotency]:
    made = Idempotency("memory://", sweep_every=None)
    yield made
    made.stop()


class Colour(enum.Enum):
    RED = 1


class Size(enum.Enum):
    SMALL = 1


class Word(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Money:
    amount: Decimal
    currency: str = "EUR"
    tags: list[str] = dataclasses.field(default_factory=list)
    cached: Any = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass
class Refund:
    amount: Decimal


class Charge(BaseModel):
    amount: Decimal
    note: str | None = None
    inner: Charge | None = None


class Loose(BaseModel, extra="allow"):
    amount: int = 0


Pair = namedtuple("Pair", "one other")
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
TWO_HOURS = timezone(timedelta(hours=2))

EQUAL: dict[str, tuple[Any, Any]] = {
    "trailing zero": (Decimal("1.10"), Decimal("1.1")),
    "whole float": (1, 1.0),
    "whole Decimal": (100, Decimal("1E+2")),
    "Fraction": (Fraction(1, 2), 0.5),
    "negative zero": (-0.0, 0),
    "Decimal's zero": (Decimal("-0E+99999"), 0),
    "huge": (10**5000, Decimal(10) ** 5000),
    "nan": (float("nan"), Decimal("NaN")),
    "infinity": (float("inf"), Decimal("Infinity")),
    "two zones": (datetime(2026, 7, 1, 12, tzinfo=UTC), datetime(2026, 7, 1, 14, tzinfo=BERLIN)),
    "the first day": (
        datetime(1, 1, 1, 1, tzinfo=TWO_HOURS),
        datetime(1, 1, 1, 0, tzinfo=timezone(timedelta(hours=1))),
    ),
    "two times": (time(12, tzinfo=UTC), time(14, tzinfo=TWO_HOURS)),
    "bytes": (b"a", bytearray(b"a")),
    "memoryview": (b"a", memoryview(b"aXa"[:1])),
    "sets": ({1, 2, 3}, frozenset([3, 2, 1])),
    "sets of text": ({"a", "b", "c"}, {"c", "b", "a"}),
    "list": ([1, 2], (1, 2)),
    "named": (Pair(1, 2), [1, 2]),
    "deque": (deque([1]), [1]),
    "order of keys": ({"a": 1, "b": 2}, OrderedDict([("b", 2.0), ("a", 1)])),
    "mapping": ({"a": 1}, MappingProxyType({"a": 1})),
    "dataclass": (Money(Decimal("1.0")), Money(Decimal("1"), "EUR", [])),
    "uncompared field": (Money(Decimal(1), cached=object()), Money(Decimal(1))),
    "model": (Charge(amount=Decimal("1.50")), Charge(amount=Decimal("1.5"), note=None)),
    "nested": (
        {"a": [Charge(amount=Decimal("1.0"), inner=Charge(amount=Decimal("2.0")))]},
        {"a": (Charge(amount=Decimal(1), inner=Charge(amount=Decimal(2))),)},
    ),
    "StrEnum": (Word.RED, "red"),
    "IntEnum": (Level.LOW, 1),
    "UUID": (uuid.UUID(int=5), uuid.UUID("00000000-0000-0000-0000-000000000005")),
    "path": (pathlib.PurePosixPath("/a"), pathlib.Path("/a")),
    "address": (ipaddress.ip_address("10.0.0.1"), ipaddress.IPv4Address(167772161)),
    "duration": (timedelta(hours=1), timedelta(seconds=3600)),
    "URL": (HttpUrl("http://a/b"), HttpUrl("http://a/b")),
}

DIFFERENT: dict[str, tuple[Any, Any]] = {
    "True and 1": (True, 1),
    "False and 0": (False, 0.0),
    "text and number": ("1", 1),
    "None and nothing": (None, ""),
    "None and text": (None, "null"),
    "Decimal and text": (Decimal("1.5"), "1.5"),
    "close floats": (0.1 + 0.2, 0.3),
    "large integers": (2**53, 2**53 + 1),
    "naive and aware": (datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)),
    "date and midnight": (date(2026, 1, 1), datetime(2026, 1, 1)),
    "a date and its text": (date(2026, 1, 1), "2026-01-01"),
    "fold": (
        datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN),
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN),
    ),
    "times": (time(1), time(1, tzinfo=UTC)),
    "bytes and text": (b"a", "a"),
    "bytes and their hash": (
        b"",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ),
    "order": ([1, 2], [2, 1]),
    "list and set": ([1], {1}),
    "text and list": ("ab", ["a", "b"]),
    "keys": ({1: "a"}, {"1": "a"}),
    "list and dict": ([], {}),
    "enums": (Colour.RED, Size.SMALL),
    "enum and value": (Colour.RED, 1),
    "flags": (Rights.READ, Rights.READ | Rights.WRITE),
    "classes": (Money(Decimal(1)), Refund(Decimal(1))),
    "dataclass and dict": (Refund(Decimal(1)), {"amount": 1}),
    "secrets": (SecretStr("one"), SecretStr("two")),
    "extras": (Loose(), Loose(colour="red")),  # type: ignore[call-arg]
    "deep": (
        Charge(amount=Decimal(1), inner=Charge(amount=Decimal(2))),
        Charge(amount=Decimal(1), inner=Charge(amount=Decimal(3))),
    ),
    "UUID and text": (uuid.UUID(int=5), str(uuid.UUID(int=5))),
    "URLs": (HttpUrl("http://a/b"), HttpUrl("http://a/c")),
    "commas": (["a,b"], ["a", "b"]),
    "quotes": (['a","b'], ["a", "b"]),
    "surrogates": ("\ud800", "\\ud800"),
}


@pytest.mark.parametrize(("one", "other"), EQUAL.values(), ids=EQUAL)
def test_equal_values_are_equal(one: Any, other: Any) -> None:
    assert form(one) == form(other)
    assert form({"in": [one]}) == form({"in": [other]})


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_different_values_are_different(one: Any, other: Any) -> None:
    assert form(one) != form(other)
    assert form({"in": [one]}) != form({"in": [other]})


def circle() -> list[Any]:
    turning: list[Any] = []
    turning.append(turning)
    return turning


NONE: dict[str, Callable[[], Any]] = {
    "object": object,
    "lock": threading.Lock,
    "generator": lambda: (n for n in range(3)),
    "function": lambda: circle,
    "class": lambda: Money,
    "complex": lambda: 1j,
    "circle": circle,
    "inside": lambda: Money(Decimal(1), tags=[object()]),  # type: ignore[list-item]
    "module": lambda: dataclasses,
}


@pytest.mark.parametrize("made", NONE.values(), ids=NONE)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    idempotency: Idempotency, made: Callable[[], Any]
) -> None:
    @idempotent(idempotency, key="order")
    def charge(order: str, extra: Any = None) -> None:
        raise AssertionError("it ran")

    with pytest.raises(TypeError, match=r"argument 'extra' has no form.*ignore=\('extra',\)"):
        charge("a", made())


def test_nested_models_take_linear_time() -> None:
    charge = Charge(amount=Decimal(0))
    for n in range(30):
        charge = Charge(amount=Decimal(n), inner=charge)
    assert form(charge).count("amount") == 31


def test_the_form_does_not_depend_on_the_stack() -> None:
    nested: Any = 1
    for _ in range(95):
        nested = [nested]

    def further(levels: int) -> str:
        return form(nested) if levels == 0 else further(levels - 1)

    assert further(0) == further(300)
    with pytest.raises(NoForm, match="nested"):
        form([[[[[[[[nested]]]]]]]])


# --- a redelivery after a deployment --------------------------------------------------------------


def release(idempotency: Idempotency, function: Callable[..., Any], **more: Any) -> Any:
    return idempotent(idempotency, key="order", name="mail", **more)(function)


def test_a_new_parameter_with_a_default_changes_nothing(idempotency: Idempotency) -> None:
    def first(order: str) -> str:
        return "first"

    def second(
        order: str, language: str = "en", *more: str, tags: tuple[str, ...] = (), **rest: Any
    ) -> str:
        return "second"

    assert release(idempotency, first)("a") == "first"
    mail = release(idempotency, second)
    assert mail("a") == mail("a", "en") == mail(order="a", language="en", tags=()) == "first"
    for asked in ({"language": "de"}, {"tags": ("x",)}, {"other": 1}):
        with pytest.raises(KeyReused):
            mail("a", **asked)


def test_a_parameter_that_was_its_default_may_go(idempotency: Idempotency) -> None:
    def first(order: str, language: str = "en", amount: Decimal = Decimal("1.0")) -> str:
        return "first"

    def second(order: str) -> str:
        return "second"

    mail = release(idempotency, first)
    assert mail("a", "en", Decimal("1.00")) == "first"
    mail("b", "de")
    mail = release(idempotency, second)
    assert mail("a") == "first"
    with pytest.raises(KeyReused):
        mail("b")


def test_a_field_with_a_default_may_come(idempotency: Idempotency) -> None:
    def made(fields: list[Any]) -> Any:
        return dataclasses.make_dataclass("Order", fields)

    old = made([("id", int)])
    new = made([("id", int), ("gift", bool, False)])

    def mail(order: str, body: Any) -> str:
        return "sent"

    assert release(idempotency, mail)("a", old(1)) == "sent"
    assert release(idempotency, mail)("a", new(1)) == "sent"
    with pytest.raises(KeyReused):
        release(idempotency, mail)("a", new(1, gift=True))


def test_a_key_function_need_not_know_of_new_parameters(idempotency: Idempotency) -> None:
    def mail(order: str, language: str = "en") -> str:
        return "sent"

    chosen = idempotent(
        idempotency, key=lambda order: order, scope=lambda language: language, name="m"
    )(mail)
    assert chosen("a") == chosen("a", "en") == "sent"
    assert chosen("a", "de") == "sent"  # another scope


def test_by_position_or_by_name(idempotency: Idempotency) -> None:
    @idempotent(idempotency, key="order")
    def charge(order: str, /, amount: int, *items: str, tip: int = 0, **rest: Any) -> int:
        runs.append(order)
        return len(runs)

    runs: list[str] = []
    assert charge("a", 5) == charge("a", amount=5, tip=0) == 1
    assert charge("b", 5, "x", order="kept apart") == 2
    assert charge("b", 5, "x", order="kept apart") == 2
    with pytest.raises(KeyReused):
        charge("b", 5, "x", order="another")
    with pytest.raises(KeyReused):
        charge("b", 5, "x", "y", order="kept apart")


def test_a_key_among_the_keywords(idempotency: Idempotency) -> None:
    @idempotent(idempotency, key="order", ignore=("logger",))
    def charge(*args: Any, **kwargs: Any) -> int:
        runs.append(kwargs)
        return len(runs)

    runs: list[Any] = []
    assert charge(order="a", logger=object()) == charge(order="a", logger=object()) == 1
    with pytest.raises(TypeError, match="'order' is the key"):
        charge(amount=5)

    by_call = idempotent(idempotency, key=lambda *args, **kwargs: args[0], name="by call")
    assert by_call(charge.__wrapped__)("x", amount=1) == 2  # type: ignore[attr-defined]


def test_a_builtin_chooses_the_key(idempotency: Idempotency) -> None:
    @idempotent(idempotency, key=str.lower, ignore="logger")
    def charge(order: str, logger: Any = None) -> str:
        return order

    assert charge("a", object()) == "a"
    assert charge.key_hash("A") == charge.key_hash("a")  # type: ignore[attr-defined]


KEYS: dict[str, tuple[Any, str]] = {
    "raises": (lambda order: {}["x"], r"key= raised KeyError: 'x'"),
    "None": (lambda order: None, "key= has to give a non-empty string, not None"),
    "empty": (lambda order: "", "key= has to give a non-empty string"),
    "number": (lambda order: 5, "key= has to give a non-empty string, not 5"),
    "bytes": (lambda order: b"a", "key= has to give a non-empty string"),
    "surrogate": (lambda order: "\ud800", "the key is not valid text"),
}


@pytest.mark.parametrize(("key", "told"), KEYS.values(), ids=KEYS)
def test_a_key_function_that_gives_none_is_named(
    idempotency: Idempotency, key: Any, told: str
) -> None:
    @idempotent(idempotency, key=key)
    def charge(order: str) -> None:
        raise AssertionError("it ran")

    with pytest.raises(TypeError, match=rf"charge: {told}"):
        charge("a")


@pytest.mark.parametrize("scope", [lambda order: None, lambda order: "", lambda order: 1 / 0])
def test_a_scope_that_gives_none_is_refused(idempotency: Idempotency, scope: Any) -> None:
    @idempotent(idempotency, key="order", scope=scope)
    def charge(order: str) -> None:
        raise AssertionError("it ran")

    with pytest.raises(TypeError, match=r"charge: scope= (has to give|raised Zero)"):
        charge("a")


def test_names_and_scopes_do_not_run_together(idempotency: Idempotency) -> None:
    def charge(order: str) -> str:
        return order

    hashes = {
        idempotent(idempotency, key="order", name=name, scope=scope)(charge).key_hash("a")  # type: ignore[attr-defined]
        for name, scope in (
            ("a", lambda: "b:c"),
            ("a:b", lambda: "c"),
            ("a:b:c", None),
            ('a", "b:c', None),
        )
    }
    assert len(hashes) == 4


def test_what_key_and_scope_ask_for_is_checked_at_decoration(idempotency: Idempotency) -> None:
    def charge(order: str, tenant: str = "") -> None: ...

    async def asked(order: str) -> str:
        return order

    for more, told in (
        ({"key": lambda oder: oder}, r"key= asks for 'oder', and its arguments are order, tenant"),
        ({"key": "order", "scope": lambda account: account}, "scope= asks for 'account'"),
        ({"key": asked}, "key= has to be a plain function"),
        ({"key": ()}, "key= names no argument"),
        ({"key": "order", "ignore": "loger"}, "has no argument 'loger'"),
    ):
        with pytest.raises(TypeError, match=told):
            idempotent(idempotency, **more)(charge)  # type: ignore[arg-type]
