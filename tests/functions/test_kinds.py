"""Functions of every kind: protected, or refused at decoration; and the name that each goes by."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import runpy
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import validate_call

from semel import Idempotency, idempotent


@pytest.fixture
def idempotency() -> Iterator[Idempotency]:
    made = Idempotency("memory://", sweep_every=None)
    yield made
    made.stop()


# --- methods --------------------------------------------------------------------------------------


def test_a_method_has_to_say_whose_call_it_is(idempotency: Idempotency) -> None:
    for first in ("self", "cls"):
        namespace: dict[str, Any] = {}
        exec(f"def charge({first}, order): ...", namespace)
        with pytest.raises(TypeError, match=rf"scope=lambda {first}, .*ignore=\('{first}',\)"):
            idempotent(idempotency, key="order", name="m")(namespace["charge"])
    with pytest.raises(TypeError, match="is a method"):

        class Wallet:
            @idempotent(idempotency, key=lambda order: order)
            def charge(self, order: str) -> None: ...


def test_methods_of_two_objects(idempotency: Idempotency) -> None:
    class Wallet:
        def __init__(self, owner: str) -> None:
            self.owner = owner

        @idempotent(idempotency, key="order", scope=lambda self: self.owner)
        def by_scope(self, order: str) -> str:
            return f"{self.owner} paid"

        @idempotent(idempotency, key=lambda self, order: f"{self.owner}/{order}")
        def by_key(self, order: str) -> str:
            return f"{self.owner} paid"

        @idempotent(idempotency, key="order", ignore=("self",))
        async def for_all(self, order: str) -> str:
            return f"{self.owner} paid"

        @classmethod
        @idempotent(idempotency, key="order", scope=lambda cls: cls.__name__)
        def of_class(cls, order: str) -> str:
            return cls.__name__

        @idempotent(idempotency, key="order", ignore=("cls",))
        @classmethod
        def of_class_too(cls, order: str) -> str:
            return cls.__name__

        @staticmethod
        @idempotent(idempotency, key="order")
        def static(order: str) -> str:
            return order

        @idempotent(idempotency, key="order")
        @staticmethod
        def static_too(order: str) -> str:
            return order

    class Purse(Wallet):
        pass

    alice, bob = Wallet("alice"), Wallet("bob")
    assert [w.by_scope("o1") for w in (alice, bob, alice)] == [
        "alice paid",
        "bob paid",
        "alice paid",
    ]
    assert [w.by_key("o1") for w in (alice, bob)] == ["alice paid", "bob paid"]
    assert asyncio.run(alice.for_all("o1")) == asyncio.run(bob.for_all("o1")) == "alice paid"
    assert [w.of_class("o1") for w in (Wallet, Purse, Wallet)] == ["Wallet", "Purse", "Wallet"]
    assert [w.of_class_too("o1") for w in (Wallet, Purse)] == ["Wallet", "Wallet"]
    assert Wallet.static("o1") == alice.static_too("o1") == "o1"


# --- what is no plain function --------------------------------------------------------------------


class Charger:
    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix

    def __call__(self, order: str) -> str:
        return self.prefix + order

    def method(self, order: str) -> str:
        return self.prefix + order


class AsyncCharger:
    async def __call__(self, order: str) -> str:
        return order


NAMELESS: dict[str, Any] = {
    "lambda": lambda order: order,
    "partial": functools.partial(lambda prefix, order: prefix + order, ""),
    "bound method": Charger().method,
    "object": Charger(),
    "cached": functools.lru_cache(lambda order: order),
}


@pytest.mark.parametrize("function", NAMELESS.values(), ids=NAMELESS)
def test_what_has_no_name_needs_one(idempotency: Idempotency, function: Any) -> None:
    with pytest.raises(TypeError, match='give name="…"'):
        idempotent(idempotency, key="order")(function)
    charge = idempotent(idempotency, key="order", name="charge")(function)
    assert charge("a") == charge(order="a") == "a"


async def test_async_functions_of_all_kinds(idempotency: Idempotency) -> None:
    async def plain(prefix: str, order: str) -> str:
        return prefix + order

    def marked(order: str) -> Awaitable[str]:
        return plain("", order)

    kinds: list[Any] = [functools.partial(plain, ""), AsyncCharger(), AsyncCharger().__call__]
    if sys.version_info >= (3, 12):
        kinds.append(inspect.markcoroutinefunction(marked))
    for number, function in enumerate(kinds):
        charge = idempotent(idempotency, key="order", name=f"charge {number}")(function)
        assert inspect.iscoroutinefunction(charge)
        assert await charge("a") == await charge("a") == "a"


def generator(order: str) -> Iterator[int]:
    yield 1


async def async_generator(order: str) -> AsyncIterator[int]:
    yield 1


async def async_function(order: str) -> int:
    return 1


@functools.wraps(async_function)
def around(*args: Any) -> Any:
    return async_function(*args)


def returns_awaitable(order: str) -> Awaitable[int]:
    return async_function(order)


class Iterating:
    def __call__(self, order: str) -> Iterator[int]:
        yield 1


class Task:
    """What Celery and its like make of a function."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run
        functools.update_wrapper(self, run)

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)

    def delay(self, *args: Any) -> None: ...


REFUSED: dict[str, tuple[Any, str]] = {
    "generator": (generator, "is a generator"),
    "async generator": (async_generator, "is a generator"),
    "partial of a generator": (functools.partial(generator), "is a generator"),
    "context manager": (contextlib.contextmanager(generator), "is a generator"),
    "async context manager": (contextlib.asynccontextmanager(async_generator), "is a generator"),
    "object that iterates": (Iterating(), "is a generator"),
    "plain around async": (around, "a plain function around an async one"),
    "partial of plain around async": (functools.partial(around), "around an async one"),
    "declared awaitable": (returns_awaitable, "returns an awaitable"),
    "class": (Charger, "no function"),
    "property": (property(lambda self: 1), "no function"),
    "partial method": (functools.partialmethod(Charger.method), "no function"),
    "task": (Task(lambda order: order), "below that decorator"),
    "None": (None, "no function"),
}


@pytest.mark.parametrize(("function", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_protected_is_refused(
    idempotency: Idempotency, function: Any, told: str
) -> None:
    with pytest.raises(TypeError, match=told):
        idempotent(idempotency, key="order", name="charge")(function)


def test_decorated_twice(idempotency: Idempotency) -> None:
    def charge(order: str) -> None: ...

    once = idempotent(idempotency, key="order")(charge)
    with pytest.raises(TypeError, match="idempotent already"):
        idempotent(idempotency, key="order")(once)


# --- beside other decorators ----------------------------------------------------------------------


def test_celery_tasks(idempotency: Idempotency) -> None:
    celery = pytest.importorskip("celery")
    app = celery.Celery("shop", broker="memory://", backend="cache+memory://")
    app.conf.task_always_eager = True
    runs: list[str] = []

    @app.task
    @idempotent(idempotency, key="order")
    def charge(order: str, amount: int = 5) -> int:
        runs.append(order)
        return len(runs)

    @app.task(bind=True)
    @idempotent(idempotency, key="order", ignore=("self",))
    def bound(self: Any, order: str) -> str:
        runs.append(self.name)
        return order

    assert [charge.delay("a").get(), charge("a"), charge.delay("a", amount=5).get()] == [1, 1, 1]
    assert [bound.delay("b").get() for _ in range(2)] == ["b", "b"]
    assert len(runs) == 2
    with pytest.raises(TypeError, match="below that decorator"):
        idempotent(idempotency, key="order")(app.task(generator))


def test_click_commands(idempotency: Idempotency) -> None:
    click = pytest.importorskip("click")
    runs: list[str] = []

    @click.command()
    @click.argument("order")
    @idempotent(idempotency, key="order")
    def charge(order: str) -> None:
        runs.append(order)

    for _ in range(2):
        charge(["a"], standalone_mode=False)
    assert runs == ["a"]
    with pytest.raises(TypeError, match="below that decorator"):
        idempotent(idempotency, key="order")(charge)


async def test_validate_call_in_either_order(idempotency: Idempotency) -> None:
    runs: list[int] = []

    @validate_call
    @idempotent(idempotency, key="order")
    def outside(order: int) -> int:
        runs.append(order)
        return len(runs)

    @idempotent(idempotency, key="order")
    @validate_call
    def inside(order: int) -> int:
        runs.append(order)
        return len(runs)

    @idempotent(idempotency, key="order")
    @validate_call
    async def on_loop(order: int) -> int:
        runs.append(order)
        return len(runs)

    assert [outside(1), outside("1")] == [1, 1]  # type: ignore[arg-type]
    assert [inside(1), inside(1)] == [2, 2]
    assert [await on_loop(1), await on_loop(1)] == [3, 3]


# --- names ----------------------------------------------------------------------------------------


def test_two_functions_of_one_name_are_refused(idempotency: Idempotency) -> None:
    def for_bank(bank: str) -> Any:
        @idempotent(idempotency, key="order")
        def charge(order: str) -> str:
            return bank

        return charge

    one = for_bank("one")
    again = for_bank("one")
    assert one("a") == again("a") == "one"
    with pytest.raises(TypeError, match=r"two functions are called .*for_bank.<locals>.charge"):
        for_bank("two")


def test_a_default_tells_functions_apart_too(idempotency: Idempotency) -> None:
    made = []
    with pytest.raises(TypeError, match="two functions are called"):
        for bank in ("one", "two"):

            @idempotent(idempotency, key="order")
            def charge(order: str, bank: str = bank) -> str:
                return bank

            made.append(charge)


def test_a_redefinition_is_refused_and_a_name_allows_it(idempotency: Idempotency) -> None:
    @idempotent(idempotency, key="order")
    def charge(order: str) -> str:
        return "first"

    first = charge
    with pytest.raises(TypeError, match='name="…"'):

        @idempotent(idempotency, key="order")
        def charge(order: str) -> str:
            return "second"

    @idempotent(idempotency, key="order", name="second")
    def charge(order: str) -> str:
        return "second"

    assert (first("a"), charge("a")) == ("first", "second")


def test_a_function_that_is_gone_gives_its_name_back(idempotency: Idempotency) -> None:
    def made(value: Any) -> None:
        @idempotent(idempotency, key="order")
        def charge(order: str) -> Any:
            return value

        charge("a")

    made([1])
    made([2])


TASKS = """
from semel import Idempotency, idempotent

keys = Idempotency("sqlite:///{folder}/keys.db", sweep_every=None)

@idempotent(keys, key="order")
def charge(order: str) -> str:
    with open("{folder}/ledger", "a") as ledger:
        ledger.write(__name__ + " ")
    return order

class Bank:
    @staticmethod
    @idempotent(keys, key="order")
    def refund(order: str) -> str:
        with open("{folder}/refunds", "a") as ledger:
            ledger.write(__name__ + " ")
        return order

if __name__ in ("__main__", "<run_path>"):
    charge("o1")
    Bank.refund("o1")
    keys.stop()
"""

RUNS: dict[str, list[list[str]]] = {
    "script": [["tasks.py"], ["-c", "import tasks; tasks.charge('o1'); tasks.Bank.refund('o1')"]],
    "-m": [["-m", "tasks"], ["tasks.py"], ["-c", "import tasks; tasks.charge('o1')"]],
    "-m in a package": [
        ["-m", "pkg.tasks"],
        ["pkg/tasks.py"],
        ["-c", "import pkg.tasks; pkg.tasks.charge('o1')"],
    ],
    "runpy": [
        ["-c", "import runpy; runpy.run_path('pkg/tasks.py')"],
        ["-c", "import runpy; runpy.run_path('pkg/tasks.py', run_name='__main__')"],
        ["-c", "import runpy; runpy.run_module('pkg.tasks', run_name='__main__')"],
        ["-c", "import pkg.tasks; pkg.tasks.charge('o1')"],
    ],
    "profiled": [
        ["-m", "cProfile", "-o", "p", "tasks.py"],
        ["-c", "import tasks; tasks.charge('o1')"],
    ],
    "spawned": [["spawning.py"], ["-c", "import spawning; spawning.charge('o1')"]],
}

SPAWNING = """
if __name__ == "__main__":
    import multiprocessing
    process = multiprocessing.get_context("spawn").Process(target=charge, args=("o1",))
    process.start()
    process.join()
    assert process.exitcode == 0
    charge("o1")
"""


@pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS)
def test_one_function_has_one_name_however_its_module_runs(
    tmp_path: Path, runs: list[list[str]]
) -> None:
    source = TASKS.format(folder=tmp_path)
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").touch()
    (tmp_path / "pkg" / "tasks.py").write_text(source)
    (tmp_path / "tasks.py").write_text(source)
    body = source[: source.index("if __name__ in")] + SPAWNING
    (tmp_path / "spawning.py").write_text(body)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([p for p in sys.path if p])}
    for arguments in runs:
        subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, check=True, timeout=60, env=environment
        )
    assert len((tmp_path / "ledger").read_text().split()) == 1
    refunds = tmp_path / "refunds"
    assert not refunds.exists() or len(refunds.read_text().split()) == 1


def test_main_and_its_module_in_one_process(tmp_path: Path, idempotency: Idempotency) -> None:
    (tmp_path / "twice.py").write_text(
        "from semel import idempotent\n"
        "@idempotent(keys, key='order')\n"
        "def charge(order: str) -> str:\n"
        "    return __name__\n"
    )
    ran = [
        runpy.run_path(str(tmp_path / "twice.py"), {"keys": idempotency}, name)["charge"]("o1")
        for name in ("__main__", "twice")
    ]
    assert ran == ["__main__", "__main__"]
