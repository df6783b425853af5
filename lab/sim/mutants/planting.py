"""Tools for planting bugs: each replaces an attribute of the engine, the store or a model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterator
from typing import Any
from unittest import mock

from lab.sim.provider import NoResponse
from lab.sim.servers import Service
from semel.core import commands as c
from semel.core import engine, steps
from semel.core.policy import Guarantee, Policy
from semel.stores.memory import MemoryTable

Planting = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A planted bug."""

    name: str
    bug: str
    plant: Planting
    guarantee: Guarantee = "atomic"


def patched(target: object, name: str, change: Callable[[Any], Any]) -> Planting:
    """Replace an attribute by what `change` makes of it."""
    return lambda: mock.patch.object(target, name, change(getattr(target, name)))


def together(*plantings: Planting) -> Planting:
    """Plant all of them."""

    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for planting in plantings:
                stack.enter_context(planting())
            yield

    return plant


def in_the_table(change: Callable[[MemoryTable, Any, float, Any], Any]) -> Planting:
    """Change what the store does with a command: `change(table, command, now, original)`."""

    def wrap(original: Any) -> Any:
        def apply(self: MemoryTable, command: Any, now: float) -> Any:
            return change(self, command, now, lambda cmd=command: original(self, cmd, now))

        return apply

    return patched(MemoryTable, "apply", wrap)


def whatever_token(*kinds: type) -> Planting:
    """Carry these commands out for anybody: the token asked for is the one that is stored."""

    def change(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
        record = table.records.get(getattr(command, "key", b""))
        if type(command) in kinds and record is not None:
            return original(command._replace(token=record.token))
        return original()

    return in_the_table(change)


def in_the_engine(change: Callable[[Any, Policy, Any], engine.Life]) -> Planting:
    """Wrap the engine: `change(request, policy, life)` is a generator like it."""

    def life(request: Any, policy: Policy, found: Any = None, opens: bool = False) -> engine.Life:
        return change(request, policy, engine.run(request, policy, found, opens=opens))

    return lambda: mock.patch.object(Service, "life", staticmethod(life))


def in_the_steps(change: Callable[[steps.Step, Any], Generator[Any, Any, bytes]]) -> Planting:
    """Wrap the life of each step: `change(step, life)` is a generator like it."""

    def life(step: steps.Step) -> Generator[Any, Any, bytes]:
        return change(step, steps.run(step))

    return lambda: mock.patch.object(Service, "step_life", staticmethod(life))


Failed = Callable[[Any, c.StoreError], engine.Outcome | None]
Asked = Callable[[Any], Any]
Heard = Callable[[Any, Any], Any]


def driven(
    life: Any,
    *,
    asked: Asked = lambda command: command,
    failed: Failed = lambda command, error: None,
    heard: Heard = lambda command, value: value,
    skipped: Callable[[Any], Any] = lambda command: None,
) -> Any:
    """Drive a life from outside, and meddle.

    `asked` changes its commands and `heard` what it is told; `failed` may end it where a command
    failed; where `skipped` gives something, the command is not carried out and that is the reply.
    """
    send: Any = life.send
    value: Any = None
    while True:
        try:
            command = send(value)
        except StopIteration as end:
            return end.value
        send = life.send
        value = skipped(command)
        if value is not None:
            continue
        try:
            value = heard(command, (yield asked(command)))
        except c.StoreError as error:
            outcome = failed(command, error)
            if outcome is not None:
                return outcome
            send, value = life.throw, error
        except (steps.NotDone, NoResponse) as error:
            send, value = life.throw, error
