"""Drivers of a step's life: they carry its commands and calls out, on an event loop or a thread."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

from semel.core import steps
from semel.core.commands import Sleep
from semel.failpoints import failpoint
from semel.stores.base import Store

Call = Callable[[str], Any]
"""Is given the derived key; returns what the far side has said, or an awaitable of that."""
Encode = Callable[[Any], bytes]


async def atake(store: Store, step: steps.Step, call: Call, encode: Encode) -> bytes:
    """Take a step on the running event loop; `call` may return an awaitable."""
    life = steps.run(step)
    send: Any = life.send
    value: Any = None
    while True:
        try:
            command = send(value)
        except StopIteration as end:
            result: bytes = end.value
            return result
        send = life.send
        try:
            match command:
                case Sleep(seconds):
                    await asyncio.sleep(seconds)
                    value = None
                case steps.Call(derived) | steps.Probe(derived):
                    asked: Any = call if isinstance(command, steps.Call) else step.on_unknown
                    failpoint("before_step")
                    value = asked(derived)
                    if inspect.isawaitable(value):
                        value = await value
                    failpoint("after_step")
                    value = encode(value)
                case _:
                    value = await store.aexecute(command)
        except Exception as error:  # noqa: BLE001  # the step's own life decides
            send, value = life.throw, error


def take(store: Store, step: steps.Step, call: Call, encode: Encode) -> bytes:
    """Take a step on the calling thread."""
    life = steps.run(step)
    send: Any = life.send
    value: Any = None
    while True:
        try:
            command = send(value)
        except StopIteration as end:
            result: bytes = end.value
            return result
        send = life.send
        try:
            match command:
                case Sleep(seconds):
                    time.sleep(seconds)
                    value = None
                case steps.Call(derived) | steps.Probe(derived):
                    asked: Any = call if isinstance(command, steps.Call) else step.on_unknown
                    failpoint("before_step")
                    value = asked(derived)
                    failpoint("after_step")
                    value = encode(value)
                case _:
                    value = store.execute(command)
        except Exception as error:  # noqa: BLE001  # the step's own life decides
            send, value = life.throw, error
