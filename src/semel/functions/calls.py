"""The calls of one function, carried out as operations."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from semel import codecs
from semel.codecs import Codec
from semel.core import failures
from semel.core.commands import Answer
from semel.core.engine import Bypass, Deliver, Outcome, Refuse, Replay
from semel.core.policy import Policy
from semel.core.problems import HANDLER_FAILED, RESPONSE_NOT_KEPT, STORE_UNAVAILABLE
from semel.core.record import Response
from semel.functions.arguments import Arguments
from semel.functions.refusals import CallFailed, ResultNotKept, refusal
from semel.idempotency import Idempotency
from semel.operation import current
from semel.runtime.drivers import AsyncDriver, ThreadDriver
from semel.runtime.operations import Driver, Known

__all__ = ["Calls"]


class Calls:
    """The calls of one function."""

    def __init__(
        self,
        idempotency: Idempotency,
        policy: Policy,
        function: Callable[..., Any],
        arguments: Arguments,
        codec: Codec,
    ) -> None:
        self._idempotency = idempotency
        self._policy = policy
        self._function = function
        self._arguments = arguments
        self._codec = codec
        self._running: set[asyncio.Task[Any]] = set()

    def key_hash(self, *args: Any, **kwargs: Any) -> bytes:
        """Return the 16 bytes under which the call with these arguments is recorded."""
        return self._arguments.key_hash(self._arguments.bind(args, kwargs))

    def _enter(self, args: Any, kwargs: Any, kind: type[Driver]) -> Driver | Known:
        idempotency = self._idempotency
        if not idempotency.ready():
            return Known(idempotency.operations.refuse(STORE_UNAVAILABLE))
        bound = self._arguments.bind(args, kwargs)
        asked = self._arguments.fingerprint(bound)

        def fingerprint(algorithm: int) -> bytes:
            if algorithm not in (asked[0], self._policy.algorithm):
                raise ValueError(f"fingerprint algorithm {algorithm} is not that of a call")
            return asked

        key = self._arguments.key_hash(bound)
        return idempotency.operations.enter(kind, key, self._policy, fingerprint)

    def _answer(self, result: Any, driver: AsyncDriver | ThreadDriver) -> Answer:
        """Return what is recorded of a call that has returned: it is done, whatever it returned."""
        data = codecs.encoded(self._codec, result, self._arguments.name)
        if data is not None and len(data) > self._policy.max_response_body:
            data = None
        headers = ((b"content-type", b"application/json"),)
        return Answer(Response(200, headers, data), driver.taken)

    def _told(self, outcome: Outcome) -> Any:
        """The first call's result, or why there is none."""
        if isinstance(outcome, Replay):
            if outcome.response.status != 200:
                raise CallFailed(refusal(HANDLER_FAILED).problem)
            try:
                return self._codec.decode(outcome.response.body or b"")
            except Exception as error:
                raise ResultNotKept(refusal(RESPONSE_NOT_KEPT).problem) from error
        assert isinstance(outcome, Refuse)
        raise refusal(outcome.problem)

    def _failed(self, outcome: Outcome, error: BaseException) -> None:
        """Raise what the caller is told of a function that raised, where that is not its error."""
        instead = failures.told_caller(outcome, error)
        if instead is not None:
            raise refusal(instead.problem) from error

    # --- the two ways to run it ---------------------------------------------------------------

    def on_thread(self, args: Any, kwargs: Any) -> Any:
        """Carry a call out on the calling thread."""
        driver = self._enter(args, kwargs, ThreadDriver)
        if isinstance(driver, Known):
            return self._told(driver.outcome)
        outcome = driver.begin()
        if type(outcome) is Bypass:
            return self._function(*args, **kwargs)
        if outcome is not None:
            return self._told(outcome)
        before = current.set(driver)
        try:
            result = self._function(*args, **kwargs)
            self._require_ended(result, driver)
            answer = self._answer(result, driver)
        except BaseException as error:
            self._failed(driver.finish(failures.failed(atomic=driver.taken)), error)
            raise
        finally:
            current.reset(before)
        outcome = driver.finish(answer)
        return result if type(outcome) is Deliver else self._told(outcome)

    def _require_ended(self, result: Any, driver: ThreadDriver) -> None:
        """Park a call whose function has left work to do to whoever awaits its result."""
        if not inspect.isawaitable(result):
            return
        if inspect.iscoroutine(result):
            result.close()  # it has not begun
        driver.parked = "the function returned an awaitable, and what that does is not known"
        raise TypeError(
            f"{self._arguments.name} is a plain function that returned an awaitable: write it as"
            " async def, or put @idempotent on the async function that it calls; the call is parked"
        )

    async def on_loop(self, args: Any, kwargs: Any) -> Any:
        """Carry a call out on the event loop, to its end whatever becomes of the caller."""
        task = asyncio.ensure_future(self._operate(args, kwargs))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _operate(self, args: Any, kwargs: Any) -> Any:
        driver = self._enter(args, kwargs, AsyncDriver)
        if isinstance(driver, Known):
            return self._told(driver.outcome)
        outcome = await driver.begin()
        if type(outcome) is Bypass:
            return await self._function(*args, **kwargs)
        if outcome is not None:
            return self._told(outcome)
        before = current.set(driver)
        try:
            result = await self._function(*args, **kwargs)
            answer = self._answer(result, driver)
        except BaseException as error:
            failed = failures.failed(atomic=driver.taken)
            self._failed(await driver.finish(failed), error)
            raise
        finally:
            current.reset(before)
        outcome = await driver.finish(answer)
        return result if type(outcome) is Deliver else self._told(outcome)
