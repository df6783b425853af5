"""Time limits that cost nothing where the awaitable finishes without suspending."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any, TypeVar

Result = TypeVar("Result")


async def timeout_if_suspended(seconds: float, awaitable: Awaitable[Result]) -> Result:
    """Await, for at most `seconds`.

    Raises `TimeoutError`. Servers hand over a small body with its request, so nearly every call
    ends at its first step, and a timer for it would cost more than the step.
    """
    # The first question is the cheaper one, and the usual one.
    if type(awaitable) is not types.CoroutineType and not isinstance(awaitable, Coroutine):
        async with asyncio.timeout(seconds):
            return await awaitable
    try:
        waited_for = awaitable.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    async with asyncio.timeout(seconds):
        return await _rest(awaitable, waited_for)


@types.coroutine
def _rest(begun: Coroutine[Any, Any, Result], waited_for: Any) -> Generator[Any, Any, Result]:
    """Go on with a coroutine that has been started and waits."""
    while True:
        try:
            try:
                value = yield waited_for
            except BaseException as error:  # noqa: BLE001  # it may have a word to say, as in await
                waited_for = begun.throw(error)
            else:
                waited_for = begun.send(value)
        except StopIteration as end:
            result: Result = end.value
            return result
