"""`@idempotent`: the same guarantees for a function, a task, a message's handler, an agent's tool.

The engine, the stores and the drivers are those of HTTP; a call takes the place of a request, its
arguments that of the body, its result that of the response.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from semel import codecs
from semel.codecs import Codec
from semel.functions.arguments import Arguments, Key
from semel.functions.calls import Calls
from semel.functions.kinds import known_as, require_supported, runs_async
from semel.functions.refusals import (
    CallFailed,
    CallParked,
    CallRefused,
    InFlight,
    KeyExpired,
    KeyReused,
    ResultNotKept,
    StoreDown,
)
from semel.idempotency import Idempotency

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

    - `key`: the argument, or arguments, that name the call; or a function of the arguments that it
      asks for by name.
    - `name`: whose keys they are: the function's module (its file's, where it runs as a script) and
      name. Name it to rename the function, and for what has no name of its own: a lambda, a
      partial, a bound method, a callable object.
    - `scope`: a function of the arguments, as `key`, for keys that are unique to a tenant only.
    - `ignore`: arguments that are no part of what is asked for, such as a connection or a logger.
      The others, equal under the same key (`semel.functions.forms`), make it the same call; one
      that is equal to its default counts as if it were left out.
    - `codec`: how the result is stored; without it by the annotated type (`semel.codecs`).
    - `rules`: fields of `Policy`, the service's where not said otherwise.

    Plain functions run on the calling thread, with `current_operation()`; async ones with
    `current_async_operation()`, and to their end also where the caller is cancelled. A method needs
    `scope` (or a `key` function) that says whose call it is, or `ignore=("self",)`.

    The first caller gets what the function returned. What has no stored form from which an equal
    value comes back is not kept, and the call is done all the same: repeats get `ResultNotKept`.
    What the function raises goes on, and a repeat runs again (unless `guarantee="at-most-once"`).
    Calls raise `CallRefused`, one kind for each problem.

    Raises `TypeError` for a key or an ignored name that is no argument, for a function that cannot
    be protected (a generator, a task object, a plain function around an async one) and for a name
    that another function has; `PolicyError`.
    """
    policy = dataclasses.replace(idempotency.routes.default, **rules)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if isinstance(function, (classmethod, staticmethod)):
            return type(function)(decorate(function.__func__))
        require_supported(function)
        known = name or known_as(function, idempotency)
        arguments = Arguments(function, known, key, scope, ignore)
        calls = Calls(
            idempotency, policy, function, arguments, codec or codecs.of_function(function)
        )
        if runs_async(function):

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
