"""`@idempotent`: the same guarantees for a function, a task, a message's handler, an agent's tool.

The engine, the stores and the drivers are those of HTTP; a call takes the place of a request, its
arguments that of the body, its result that of the answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import decimal
import enum
import functools
import hashlib
import inspect
import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, ParamSpec, TypeVar

from semel import codecs
from semel.codecs import Codec
from semel.core import failures
from semel.core.commands import Answer
from semel.core.engine import Bypass, Deliver, Outcome, Refuse, Replay
from semel.core.fingerprint import CUSTOM
from semel.core.keys import hash_key
from semel.core.policy import Policy
from semel.core.problems import (
    HANDLER_FAILED,
    IN_FLIGHT,
    KEY_EXPIRED,
    KEY_REUSED,
    OUTCOME_UNKNOWN,
    OUTCOME_UNRECORDED,
    RESPONSE_NOT_KEPT,
    STORE_UNAVAILABLE,
    Problem,
)
from semel.core.record import Response
from semel.idempotency import Idempotency
from semel.operation import current
from semel.runtime.drivers import AsyncDriver, ThreadDriver
from semel.runtime.operations import Driver, Known

__all__ = [
    "CallFailed",
    "CallParked",
    "CallRefused",
    "InFlight",
    "KeyExpired",
    "KeyReused",
    "ResultNotKept",
    "StoreDown",
    "idempotent",
]

P = ParamSpec("P")
R = TypeVar("R")
Key = str | Sequence[str] | Callable[..., str]


class CallRefused(Exception):
    """The call was not run, or what came of it cannot be told; `problem` says which and why."""

    problems: ClassVar[tuple[Problem, ...]] = ()
    """The problems that this class stands for; those of no class raise `CallRefused` itself."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem

    @property
    def retry_after(self) -> int | None:
        """Seconds after which to call again with the same arguments; None: that does not help."""
        return self.problem.retry_after


class InFlight(CallRefused):
    """Another call under this key is running. Call again later: negative-acknowledge a message."""

    problems = (IN_FLIGHT,)


class KeyReused(CallRefused):
    """The key was used with other arguments. A bug of the caller: dead-letter a message."""

    problems = (KEY_REUSED,)


class KeyExpired(CallRefused):
    """The result is no longer kept. It was done: acknowledge a message."""

    problems = (KEY_EXPIRED,)


class ResultNotKept(CallRefused):
    """It was done, but its result was too large to keep. Acknowledge a message."""

    problems = (RESPONSE_NOT_KEPT,)


class CallParked(CallRefused):
    """Nobody knows what became of the first call. It waits to be settled: dead-letter a message."""

    problems = (OUTCOME_UNKNOWN,)


class CallFailed(CallRefused):
    """The first call failed, and at most once is the rule. Dead-letter a message."""

    problems = (HANDLER_FAILED,)


class StoreDown(CallRefused):
    """The store cannot be asked, or what ran could not be recorded. Call again later."""

    problems = (STORE_UNAVAILABLE, OUTCOME_UNRECORDED)


def _refusal(problem: Problem) -> CallRefused:
    """Return the exception that stands for a problem."""
    for kind in CallRefused.__subclasses__():
        if any(problem.slug == one.slug for one in kind.problems):
            return kind(problem)
    return CallRefused(problem)


def idempotent(
    idempotency: Idempotency,
    *,
    key: Key,
    name: str | None = None,
    scope: Callable[..., str] | None = None,
    ignore: Sequence[str] = (),
    codec: Codec | None = None,
    **rules: Any,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a function's calls under one key run once; a repeat returns the first result.

        @idempotent(idempotency, key="order_id")
        def charge(order_id: str, amount: int) -> Receipt: ...

    - `key`: the argument, or arguments, that name the call, or a function of all of them.
    - `name`: whose keys they are: the function's module and name. Name it to rename the function.
    - `scope`: a function of the arguments, for keys that are unique to a tenant only.
    - `ignore`: arguments that are no part of what is asked for, such as a connection or a logger.
      The others, equal under the same key, make it the same call.
    - `codec`: how the result is stored; without it by the annotated type (`semel.codecs`).
    - `rules`: fields of `Policy`, the service's where not said otherwise.

    Plain functions run on the calling thread, with `current_operation()`; async ones with
    `current_async_operation()`, and to their end also where the caller is cancelled. What the
    function raises goes on, and a repeat runs again (unless `guarantee="at-most-once"`). Calls
    raise `CallRefused`, one kind for each problem.

    Raises `TypeError` for a key or an ignored name that is no argument, and `PolicyError`.
    """
    policy = dataclasses.replace(idempotency.routes.default, **rules)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        calls = _Calls(idempotency, policy, function, key, name, scope, ignore, codec)
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def on_loop(*args: P.args, **kwargs: P.kwargs) -> Any:
                return await calls.on_loop(args, kwargs)

            on_loop.key_hash = calls.key_hash  # type: ignore[attr-defined]
            return on_loop  # type: ignore[return-value]

        @functools.wraps(function)
        def on_thread(*args: P.args, **kwargs: P.kwargs) -> R:
            result: R = calls.on_thread(args, kwargs)
            return result

        on_thread.key_hash = calls.key_hash  # type: ignore[attr-defined]
        return on_thread

    return decorate


class _Calls:
    """The calls of one function."""

    def __init__(
        self,
        idempotency: Idempotency,
        policy: Policy,
        function: Callable[..., Any],
        key: Key,
        name: str | None,
        scope: Callable[..., str] | None,
        ignore: Sequence[str],
        codec: Codec | None,
    ) -> None:
        self._idempotency = idempotency
        self._policy = policy
        self._function = function
        self._key = (key,) if isinstance(key, str) else key
        self._name = name or f"{function.__module__}.{function.__qualname__}"
        self._scope = scope
        self._signature = inspect.signature(function)
        parameters = list(self._signature.parameters)
        self._ignored = {*ignore, *(p for p in parameters[:1] if p in ("self", "cls"))}
        self._codec = codec or codecs.of_function(function)
        self._running: set[asyncio.Task[Any]] = set()
        named = [] if callable(self._key) else list(self._key)
        for asked in (*named, *ignore):
            if asked not in parameters:
                raise TypeError(
                    f"{self._name} has no argument {asked!r}; it has {', '.join(parameters)}"
                )

    # --- what a call is -----------------------------------------------------------------------

    def key_hash(self, *args: Any, **kwargs: Any) -> bytes:
        """Return the 16 bytes under which the call with these arguments is recorded."""
        return self._hash(self._arguments(args, kwargs))

    def _arguments(self, args: Any, kwargs: Any) -> dict[str, Any]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return {n: value for n, value in bound.arguments.items() if n not in self._ignored}

    def _hash(self, arguments: dict[str, Any]) -> bytes:
        if callable(self._key):
            key = self._key(**arguments)
        else:
            values = [_text(self._name, name, arguments[name]) for name in self._key]
            key = values[0] if len(values) == 1 else json.dumps(values)
        if not isinstance(key, str) or not key:
            raise TypeError(f"{self._name}: key= has to give a non-empty string, not {key!r}")
        scope = f"function:{self._name}"
        if self._scope is not None:
            scope += f":{self._scope(**arguments)}"
        return hash_key(scope, key)

    def _asked(self, args: Any, kwargs: Any) -> tuple[bytes, Callable[[int], bytes]]:
        """Return a call's key and fingerprint."""
        arguments = self._arguments(args, kwargs)
        parts = []
        for name, value in sorted(arguments.items()):
            try:
                parts.append((name, json.dumps(value, sort_keys=True, default=_form)))
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"{self._name}: argument {name!r} has no form to compare calls by ({error});"
                    f" leave it out with ignore=({name!r},)"
                ) from error
        digest = bytes([CUSTOM]) + hashlib.sha256(json.dumps(parts).encode()).digest()

        def fingerprint(algorithm: int) -> bytes:
            if algorithm not in (CUSTOM, self._policy.algorithm):
                raise ValueError(f"fingerprint algorithm {algorithm} is not that of a call")
            return digest

        return self._hash(arguments), fingerprint

    def _enter(self, args: Any, kwargs: Any, kind: type[Driver]) -> Driver | Known:
        idempotency = self._idempotency
        if not idempotency.ready():
            return Known(idempotency.operations.refuse(STORE_UNAVAILABLE))
        key, fingerprint = self._asked(args, kwargs)
        return idempotency.operations.enter(kind, key, self._policy, fingerprint)

    def _answer(self, result: Any, driver: AsyncDriver | ThreadDriver) -> Answer:
        data: bytes | None = self._codec.encode(result)
        assert data is not None
        if len(data) > self._policy.max_response_body:
            data = None
        headers = ((b"content-type", b"application/json"),)
        return Answer(Response(200, headers, data), driver.taken)

    def _told(self, outcome: Outcome) -> Any:
        """The first call's result, or why there is none."""
        if isinstance(outcome, Replay):
            if outcome.response.status != 200:
                raise CallFailed(HANDLER_FAILED)
            return self._codec.decode(outcome.response.body or b"")
        assert isinstance(outcome, Refuse)
        raise _refusal(outcome.problem)

    def _failed(self, outcome: Outcome, error: BaseException) -> None:
        """Raise what the caller is told of a function that raised, where that is not its error."""
        instead = failures.told_caller(outcome, error)
        if instead is not None:
            raise _refusal(instead.problem) from error

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
            answer = self._answer(result, driver)
        except BaseException as error:
            self._failed(driver.finish(failures.failed(atomic=driver.taken)), error)
            raise
        finally:
            current.reset(before)
        outcome = driver.finish(answer)
        return result if type(outcome) is Deliver else self._told(outcome)

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


def _text(function: str, name: str, value: object) -> str:
    if isinstance(value, (str, int, uuid.UUID)) and not isinstance(value, bool) and value != "":
        return str(value)
    raise TypeError(
        f"{function}: argument {name!r} is the key and has to be a non-empty string, a whole number"
        f" or a UUID, not {value!r}"
    )


def _form(value: Any) -> Any:
    """Return what JSON has no form for as something that it has, equal where the values are."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, uuid.UUID)):
        return str(value)
    if isinstance(value, (bytes, bytearray)):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(member, sort_keys=True, default=_form) for member in value)
    raise TypeError(f"{type(value).__name__} is not plain data")
