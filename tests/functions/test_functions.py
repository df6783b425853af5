"""`@idempotent` on functions of every kind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from semel import (
    Idempotency,
    Policy,
    current_async_operation,
    current_operation,
    idempotent,
)
from semel.core.commands import Lookup
from semel.core.problems import CATALOGUE, Problem
from semel.core.record import State
from semel.functions import (
    CallFailed,
    CallParked,
    CallRefused,
    InFlight,
    KeyExpired,
    KeyReused,
    ResultNotKept,
    StoreDown,
)
from semel.functions.refusals import refusal
from tests.http.test_outcomes import named


@pytest.fixture(params=["memory", "sqlite"])
def idempotency(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Idempotency]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/f.db"
    made = Idempotency(url, policy=Policy(wait=timedelta(seconds=2)), sweep_every=None)
    made.start()
    yield made
    made.stop()


@dataclasses.dataclass
class Receipt:
    order: str
    amount: Decimal
    day: date


class Charge(BaseModel):
    amount: Decimal


def test_a_repeat_returns_the_first_result(idempotency: Idempotency) -> None:
    runs: list[str] = []

    @idempotent(idempotency, key="order")
    def charge(order: str, amount: Decimal = Decimal("1.50")) -> Receipt:
        runs.append(order)
        return Receipt(order, amount, date(2026, 1, len(runs)))

    first = charge("a")
    assert charge("a") == first == Receipt("a", Decimal("1.50"), date(2026, 1, 1))
    assert charge(order="a", amount=Decimal("1.50")) == first
    assert charge("b") != first
    assert runs == ["a", "b"]
    with pytest.raises(KeyReused):
        charge("a", Decimal("2"))
    assert idempotency.store.execute(Lookup(charge.key_hash("a"))) is not None  # type: ignore[attr-defined]


async def test_async_functions(idempotency: Idempotency) -> None:
    runs: list[int] = []

    @idempotent(idempotency, key=("tenant", "order"), ignore=("logger",))
    async def charge(tenant: int, order: str, body: Charge, logger: object = None) -> Charge:
        assert current_async_operation().attempt == 1
        runs.append(tenant)
        await asyncio.sleep(0.01)
        return body

    body = Charge(amount=Decimal("3"))
    told = await asyncio.gather(*(charge(n % 2, "a", body, object()) for n in range(10)))
    assert told == [body] * 10
    assert sorted(runs) == [0, 1]


def test_methods(idempotency: Idempotency) -> None:
    class Shop:
        runs = 0

        @idempotent(idempotency, key=lambda order: order.lower(), ignore=("self",))
        def charge(self, order: str) -> int:
            type(self).runs += 1
            return self.runs

    assert [Shop().charge("x") for _ in range(3)] == [1, 1, 1]
    with pytest.raises(KeyReused):
        Shop().charge("X")


def test_each_outcome_is_seen_once(idempotency: Idempotency) -> None:
    seen: list[Any] = []
    idempotency.outcomes.observers += (seen.append,)

    @idempotent(idempotency, key="order")
    def charge(order: str, amount: int) -> int:
        if amount < 0:
            raise ValueError(amount)
        return amount

    def outcome(order: str, amount: int) -> list[tuple[str, int]]:
        seen.clear()
        with contextlib.suppress(ValueError, KeyReused):
            charge(order, amount)
        return [(named(passed), passed.attempt) for passed in seen]

    assert outcome("a", 5) == [("kept", 1)]
    assert outcome("a", 5) == [("replayed", 0)]
    assert outcome("a", 6) == [("key-reused", 0)]
    assert outcome("b", -1) == [("released", 1)]


def test_scopes_keep_tenants_apart(idempotency: Idempotency) -> None:
    @idempotent(idempotency, key="order", scope=lambda tenant, order: tenant)
    def charge(tenant: str, order: str) -> str:
        return tenant

    assert (charge("a", "1"), charge("b", "1"), charge("a", "1")) == ("a", "b", "a")


def test_what_raises_runs_again(idempotency: Idempotency) -> None:
    runs: list[int] = []

    @idempotent(idempotency, key="order")
    def charge(order: str) -> int:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError("declined")
        return len(runs)

    with pytest.raises(ValueError, match="declined"):
        charge("a")
    assert (charge("a"), charge("a")) == (2, 2)


def test_at_most_once_does_not_run_again(idempotency: Idempotency) -> None:
    runs: list[int] = []

    @idempotent(idempotency, key="order", guarantee="at-most-once")
    def charge(order: str) -> None:
        runs.append(1)
        raise ValueError("somewhere in the middle")

    with pytest.raises(ValueError, match="middle"):
        charge("a")
    with pytest.raises(CallFailed):
        charge("a")
    assert runs == [1]


def test_none_is_a_result(idempotency: Idempotency) -> None:
    runs: list[int] = []

    @idempotent(idempotency, key="order")
    def charge(order: str) -> None:
        runs.append(1)

    charge("a")
    charge("a")
    assert runs == [1]


def test_calls_at_the_same_time_have_one_run(idempotency: Idempotency) -> None:
    runs: list[int] = []
    told: list[Any] = []

    @idempotent(idempotency, key="order")
    def charge(order: str) -> int:
        runs.append(1)
        time.sleep(0.1)
        return len(runs)

    @idempotent(idempotency, key="order", wait=timedelta(), name=f"{__name__}.other")
    def hasty(order: str) -> int:
        started.set()
        go_on.wait(10)
        return 1

    threads = [threading.Thread(target=lambda: told.append(charge("a"))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (runs, told) == ([1], [1] * 5)

    started, go_on = threading.Event(), threading.Event()
    first = threading.Thread(target=hasty, args=("a",))
    first.start()
    started.wait(10)
    with pytest.raises(InFlight) as refused:
        hasty("a")
    assert refused.value.retry_after == 1
    go_on.set()
    first.join()
    assert hasty("a") == 1


def test_steps_and_parking(idempotency: Idempotency) -> None:
    calls: list[str] = []

    @idempotent(idempotency, key="order")
    def charge(order: str) -> str:
        op = current_operation()
        told: str = op.step("far", lambda key: calls.append(key) or key)
        if len(calls) == 1 and order == "parks":
            op.park("who knows")
        return told

    with pytest.raises(CallParked):
        charge("parks")
    with pytest.raises(CallParked):
        charge("parks")
    name = charge.key_hash("parks")  # type: ignore[attr-defined]
    assert idempotency.store.execute(Lookup(name)).record.state is State.PARKED  # type: ignore[union-attr]
    assert len(calls) == 1


def test_atomic_with_the_database(tmp_path: Path) -> None:
    idempotency = Idempotency(f"sqlite:///{tmp_path}/shop.db", sweep_every=None)
    idempotency.start()

    @idempotent(idempotency, key="order", guarantee="atomic")
    def charge(order: str, fails: bool) -> int:
        db = current_operation().connection()
        db.execute("create table if not exists orders (name)")
        db.execute("insert into orders values (?)", (order,))
        if fails:
            raise ValueError
        return int(db.execute("select count(*) from orders").fetchone()[0])

    with pytest.raises(ValueError):
        charge("a", fails=True)
    assert charge("a", fails=False) == 1
    assert charge("a", fails=False) == 1
    idempotency.stop()


def test_results_too_large_and_keys_too_old(idempotency: Idempotency) -> None:
    @idempotent(idempotency, key="order", max_response_body=10)
    def large(order: str) -> str:
        return "x" * 20

    assert large("a") == "x" * 20
    with pytest.raises(ResultNotKept):
        large("a")

    @idempotent(idempotency, key="order", expires=timedelta(milliseconds=1))
    def short(order: str) -> int:
        return 1

    short("a")
    time.sleep(0.01)
    with pytest.raises(KeyExpired):
        short("a")


def test_a_store_that_is_down(tmp_path: Path) -> None:
    idempotency = Idempotency(f"sqlite:///{tmp_path}/no/such/folder.db", sweep_every=None)

    @idempotent(idempotency, key="order")
    def charge(order: str) -> int:
        raise AssertionError("it ran")

    with pytest.raises(StoreDown):
        charge("a")


async def test_a_cancelled_caller_does_not_stop_the_call(idempotency: Idempotency) -> None:
    done: list[int] = []

    @idempotent(idempotency, key="order")
    async def charge(order: str) -> int:
        await asyncio.sleep(0.05)
        done.append(1)
        return 7

    caller = asyncio.ensure_future(charge("a"))
    await asyncio.sleep(0.02)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert await charge("a") == 7
    assert done == [1]


def test_mistakes_are_told_where_they_are_made(idempotency: Idempotency) -> None:
    with pytest.raises(TypeError, match="has no argument 'oder'; it has order, extra"):

        @idempotent(idempotency, key="oder")
        def misspelt(order: str, extra: Any) -> None: ...

    @idempotent(idempotency, key="order")
    def charge(order: Any, extra: Any = None) -> Any:
        return extra

    with pytest.raises(TypeError, match=r"'extra' has no form.*ignore=\('extra',\)"):
        charge("a", object())
    with pytest.raises(TypeError, match="'order' is the key"):
        charge("")
    with pytest.raises(TypeError, match="'order' is the key"):
        charge(None)
    assert charge("a", (1, 2)) == (1, 2)
    with pytest.raises(ResultNotKept):
        charge("a", (1, 2))


KINDS = {
    "in-flight": InFlight,
    "key-reused": KeyReused,
    "key-expired": KeyExpired,
    "response-not-kept": ResultNotKept,
    "outcome-unknown": CallParked,
    "handler-failed": CallFailed,
    "store-unavailable": StoreDown,
    "outcome-unrecorded": StoreDown,
}


@pytest.mark.parametrize("problem", CATALOGUE, ids=lambda problem: problem.slug)
def test_each_problem_has_one_exception(problem: Problem) -> None:
    kinds = [kind for kind in set(KINDS.values()) if problem in kind.problems]
    assert kinds == ([KINDS[problem.slug]] if problem.slug in KINDS else [])
    assert type(refusal(problem)) is KINDS.get(problem.slug, CallRefused)
