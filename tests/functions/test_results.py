"""What a call returned: kept where it has a stored form, and done where it has none."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from semel import (
    Idempotency,
    Policy,
    StepResultNotKept,
    current_async_operation,
    current_operation,
    idempotent,
)
from semel.codecs import typed
from semel.core import problems
from semel.functions import CallParked, CallRefused, KeyReused, ResultNotKept
from semel.functions.refusals import _WORDS, refusal


@pytest.fixture(params=["memory", "sqlite"])
def idempotency(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Idempotency]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/f.db"
    made = Idempotency(url, policy=Policy(wait=timedelta(seconds=2)), sweep_every=None)
    yield made
    made.stop()


class Unspeakable:
    def __repr__(self) -> str:
        raise ValueError("no text either")

    __str__ = __repr__


class Unlike:
    def __eq__(self, other: object) -> Any:
        raise RuntimeError("cannot be compared")

    __hash__ = object.__hash__


def circle() -> list[Any]:
    turning: list[Any] = []
    turning.append(turning)
    return turning


def deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


WITHOUT_A_FORM: dict[str, Callable[[], Any]] = {
    "tuple": lambda: ("paid", 1),
    "int keys": lambda: {1: "paid"},
    "set": lambda: {1},
    "nan": lambda: float("nan"),
    "object": object,
    "lock": threading.Lock,
    "generator": lambda: (n for n in range(3)),
    "lone surrogate": lambda: "\ud800",
    "circle": circle,
    "deep": deep,
    "no text": Unspeakable,
    "no comparison": Unlike,
    "inside": lambda: {"paid": [Unspeakable()]},
    "bytes": lambda: b"paid",
    "Decimal": lambda: Decimal("1.5"),
    "exception": lambda: ValueError("returned, not raised"),
    "large": lambda: "x" * 5000,
}


@pytest.mark.parametrize("made", WITHOUT_A_FORM.values(), ids=WITHOUT_A_FORM)
def test_what_has_no_form_completes_the_call(
    idempotency: Idempotency, made: Callable[[], Any]
) -> None:
    charges: list[Any] = []

    @idempotent(idempotency, key="order", max_response_body=1000)
    def charge(order: str) -> Any:
        charges.append(made())
        return charges[-1]

    assert charge("o1") is charges[0]
    for _ in range(2):
        with pytest.raises(ResultNotKept, match="done"):
            charge("o1")
    assert len(charges) == 1


@pytest.mark.parametrize("made", WITHOUT_A_FORM.values(), ids=WITHOUT_A_FORM)
async def test_what_has_no_form_completes_an_async_call(made: Callable[[], Any]) -> None:
    charges: list[Any] = []

    @idempotent(Idempotency("memory://"), key="order", max_response_body=1000)
    async def charge(order: str) -> Any:
        charges.append(made())
        return charges[-1]

    assert await charge("o1") is charges[0]
    with pytest.raises(ResultNotKept):
        await charge("o1")
    assert len(charges) == 1


def test_an_atomic_call_commits_though_its_result_is_not_kept(tmp_path: Any) -> None:
    idempotency = Idempotency(f"sqlite:///{tmp_path}/shop.db", sweep_every=None)

    @idempotent(idempotency, key="order", guarantee="atomic")
    def charge(order: str) -> Any:
        db = current_operation().connection()
        db.execute("create table if not exists orders (name)")
        db.execute("insert into orders values (?)", (order,))
        return {order}

    @idempotent(idempotency, key="order", guarantee="atomic")
    def count(order: str) -> int:
        query = "select count(*) from orders"
        return int(current_operation().connection().execute(query).fetchone()[0])

    assert charge("a") == {"a"}
    with pytest.raises(ResultNotKept):
        charge("a")
    assert count("a") == 1
    idempotency.stop()


FORMS: dict[str, tuple[Any, Any]] = {
    "NUL": (str, "a\0b"),
    "dict[str, Any]": (dict[str, Any], {"a": [1, None, "x"]}),
    "optional": (int | None, None),
    "tuple": (tuple[int, str], (1, "a")),
    "int keys": (dict[int, str], {1: "a"}),
    "set": (set[int], {1, 2}),
    "no infinity": (float, 1e308),
    "date": (datetime, datetime(2026, 1, 2, 3, 4, 5)),
}


@pytest.mark.parametrize(("declared", "value"), FORMS.values(), ids=FORMS)
def test_what_is_kept_comes_back_equal_and_of_its_type(declared: Any, value: Any) -> None:
    codec = typed(declared)
    back = codec.decode(codec.encode(value))
    assert back == value
    assert type(back) is type(value)


class Animal(BaseModel):
    name: str


class Dog(Animal):
    tricks: int


@dataclasses.dataclass
class Row:
    total: float


CHANGED: dict[str, tuple[Any, Any]] = {
    "a date in dict[str, Any]": (dict[str, Any], {"at": datetime(2026, 1, 1)}),
    "a tuple in list[Any]": (list[Any], [(1, 2)]),
    "a subclass": (Animal, Dog(name="Rex", tricks=3)),
    "nan in a dataclass": (Row, Row(float("nan"))),
    "nan in an optional": (float | None, float("nan")),
    "an iterator": (Iterable[int], iter([1, 2])),
    "another type": (list[Decimal], "text"),
}


@pytest.mark.parametrize(("declared", "value"), CHANGED.values(), ids=CHANGED)
def test_what_would_come_back_changed_is_not_kept(declared: Any, value: Any) -> None:
    with pytest.raises(TypeError):
        typed(declared).encode(value)


def test_an_iterator_reaches_the_first_caller_whole(idempotency: Idempotency) -> None:
    @idempotent(idempotency, key="order")
    def lines(order: str) -> Iterable[int]:
        return iter([1, 2])

    assert list(lines("a")) == [1, 2]
    with pytest.raises(ResultNotKept):
        lines("a")


def test_a_type_without_a_form_is_refused_at_decoration(idempotency: Idempotency) -> None:
    with pytest.raises(TypeError, match=r"no stored form: .* codec="):

        @idempotent(idempotency, key="order")
        def locked(order: str) -> Unlike:
            return Unlike()


class Changing:
    """A codec whose next release cannot read what the last one wrote."""

    def __init__(self, error: Exception | None = None, data: Any = b"1") -> None:
        self.error = error
        self.data = data

    def encode(self, value: Any) -> Any:
        return self.data

    def decode(self, data: bytes) -> Any:
        if self.error is not None:
            raise self.error
        return data


@pytest.mark.parametrize("error", [ValueError(), KeyError("x"), RuntimeError(), RecursionError()])
def test_a_result_that_cannot_be_read_again(idempotency: Idempotency, error: Exception) -> None:
    runs: list[str] = []

    @idempotent(idempotency, key="order", codec=Changing(error))
    def charge(order: str) -> str:
        runs.append(order)
        return order

    assert charge("a") == "a"
    with pytest.raises(ResultNotKept) as told:
        charge("a")
    assert told.value.__cause__ is error
    assert runs == ["a"]


@pytest.mark.parametrize("data", [None, "text", 1])
def test_a_codec_that_gives_no_bytes(idempotency: Idempotency, data: Any) -> None:
    @idempotent(idempotency, key="order", codec=Changing(data=data))
    def charge(order: str) -> str:
        return order

    assert charge("a") == "a"
    with pytest.raises(ResultNotKept):
        charge("a")


def test_a_step_without_a_form_is_done(idempotency: Idempotency) -> None:
    asked: list[Any] = []

    @idempotent(idempotency, key="order")
    def charge(order: str) -> str:
        def far(key: str) -> Any:
            asked.append({key})
            return asked[-1]

        assert current_operation().step("far", far) is asked[0]
        raise ValueError("after the step")

    with pytest.raises(ValueError, match="after the step"):
        charge("a")
    for _ in range(2):
        with pytest.raises(StepResultNotKept, match="step 'far' is done"):
            charge("a")
    assert len(asked) == 1


async def test_an_async_step_without_a_form_is_done() -> None:
    asked: list[str] = []

    @idempotent(Idempotency("memory://"), key="order")
    async def charge(order: str) -> None:
        async def far(key: str) -> Any:
            asked.append(key)
            return float("nan")

        result = await current_async_operation().step("far", far, on_unknown="park")
        assert result != result
        raise ValueError("after the step")

    with pytest.raises(ValueError, match="after the step"):
        await charge("a")
    with pytest.raises(StepResultNotKept):
        await charge("a")
    assert len(asked) == 1


def test_an_awaitable_that_nobody_knew_of_parks_the_call(idempotency: Idempotency) -> None:
    runs: list[str] = []

    async def work(order: str) -> None:
        runs.append("inside")

    @idempotent(idempotency, key="order")
    def charge(order: str):  # type: ignore[no-untyped-def]  # whoever declares it is refused
        runs.append(order)
        return work(order)

    with pytest.raises(TypeError, match=r"returned an awaitable.*async def"):
        charge("a")
    with pytest.raises(CallParked):
        charge("a")
    assert runs == ["a"]


HTTP = ("request", "response", "header", "http", "status", "Idempotency-Key", "send ", "client")


@pytest.mark.parametrize("slug", _WORDS)
def test_messages_speak_of_calls(slug: str) -> None:
    problem = next(p for p in problems.CATALOGUE if p.slug == slug)
    told = refusal(problem._replace(reference="abc"))
    text = str(told).lower().replace("max_response_body", "")  # the field of Policy
    assert not [word for word in HTTP if word.lower() in text]
    assert str(told).endswith("(reference abc)")
    assert told.problem.status == problem.status
    again = pickle.loads(pickle.dumps(told))
    assert (type(again), str(again), again.problem) == (type(told), str(told), told.problem)


def test_what_an_atomic_call_without_its_connection_is_told(tmp_path: Any) -> None:
    idempotency = Idempotency(f"sqlite:///{tmp_path}/shop.db", sweep_every=None)

    @idempotent(idempotency, key="order", guarantee="atomic")
    def charge(order: str) -> None: ...

    with pytest.raises(CallRefused, match=r"returned without op\.connection\(\)"):
        charge("a")
    idempotency.stop()


async def test_the_message_of_a_repeat_names_what_differs(idempotency: Idempotency) -> None:
    @idempotent(idempotency, key="order")
    async def charge(order: str, amount: int) -> int:
        await asyncio.sleep(0)
        return amount

    await charge("a", 5)
    with pytest.raises(KeyReused, match=r"arguments that differ.*ignore="):
        await charge("a", 6)
