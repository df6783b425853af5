"""FastAPI: the middleware, the operation as a dependency, and both in the OpenAPI document."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

try:
    from anyio.lowlevel import RunVar
    from anyio.to_thread import current_default_thread_limiter
    from fastapi import Depends, FastAPI, Header, Request, Response, routing
    from starlette.routing import Mount
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.web.fastapi needs FastAPI: pip install 'semel[fastapi]'") from error

from semel.core import keys
from semel.core.policy import Policy
from semel.core.record import Response as Answer
from semel.idempotency import POLICY_ATTRIBUTE, Idempotency
from semel.operation import (
    AsyncOperation,
    Operation,
    current_async_operation,
    current_operation,
)
from semel.web.asgi.middleware import ASGIMiddleware
from semel.web.conditional import NotMet, Preconditions
from semel.web.openapi import document

__all__ = [
    "AsyncOp",
    "Op",
    "async_operation",
    "init_app",
    "not_met",
    "operation",
    "preconditions",
    "respond",
]

_KeyHeader = Annotated[
    str | None,
    Header(
        alias=keys.HEADER,
        description="Names this operation: generate a new one for a new operation, send the"
        " same with every retry. 1 to 255 visible ASCII characters, bare or quoted.",
        examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
    ),
]

_IfMatch = Annotated[
    str | None,
    Header(
        alias="If-Match",
        description="Only if the resource has one of these ETags; `*`: only if it exists.",
    ),
]
_IfNoneMatch = Annotated[
    str | None,
    Header(
        alias="If-None-Match",
        description="Only if the resource has none of these ETags; `*`: only if it does not exist.",
    ),
]


async def async_operation(idempotency_key: _KeyHeader = None) -> AsyncOperation:
    """Give an async handler its operation; `AsyncOp` is the parameter's type ready made.

    A handler that takes it needs a key: without one the client gets 400 `key-missing`.
    """
    return current_async_operation()


async def operation(idempotency_key: _KeyHeader = None) -> Operation:
    """Give a plain `def` handler its operation; `Op` is the parameter's type ready made.

    At most half the threads of the pool run such handlers at a time, the others wait without one:
    whoever holds `op.connection()` needs a thread once more before its answer is known (FastAPI
    serialises there), and those that wait for the connection must not have taken them all.
    """
    op = current_operation()
    room = _room()
    await room.acquire()
    op.when_ended(room.release)
    return op


Op = Annotated[Operation, Depends(operation)]
"""The operation of a plain `def` handler: `def charge(order: Order, op: Op)`."""

AsyncOp = Annotated[AsyncOperation, Depends(async_operation)]
"""The operation of an async handler: `async def charge(order: Order, op: AsyncOp)`."""


async def preconditions(
    request: Request, if_match: _IfMatch = None, if_none_match: _IfNoneMatch = None
) -> Preconditions:
    """Give a handler what its request asks for: `when: Preconditions = Depends(preconditions)`.

    `when.require(…)` then refuses with 304, 412 or 428; see `semel.web.conditional`. The parameters
    are there for the OpenAPI document: the headers are read from the request.
    """
    return Preconditions.from_headers(request.method, request.headers.raw)


def respond(answer: Answer) -> Response:
    """Return an answer of `semel.web.conditional` as what a handler returns."""
    response = Response(answer.body or b"", answer.status)
    own = {name for name, _ in answer.headers}
    kept = [field for field in response.raw_headers if field[0] not in own]
    response.raw_headers = [*kept, *answer.headers]
    return response


async def not_met(request: Request, error: NotMet) -> Response:
    """Answer `NotMet` without `init_app`: `app.add_exception_handler(NotMet, not_met)`."""
    return respond(error.response())


_ROOM: RunVar[asyncio.Semaphore] = RunVar("semel_room")


def _room() -> asyncio.Semaphore:
    """The places for plain handlers of this event loop."""
    room = _ROOM.get(None)
    if room is None:
        threads = current_default_thread_limiter().total_tokens
        room = asyncio.Semaphore(max(1, int(min(threads, 1000) // 2)))
        _ROOM.set(room)
    return room


def init_app(app: FastAPI, idempotency: Idempotency) -> None:
    """Protect an application: add the middleware, take over `@idempotency.route(…)` rules, answer
    `NotMet`, and write the headers and their problem answers into the OpenAPI document.

    Call it after the routes are defined, and before authentication is added with
    `app.add_middleware` (what is added later runs earlier).
    """
    for path, route in _routes(app.routes):
        policy = getattr(getattr(route, "endpoint", None), POLICY_ATTRIBUTE, None)
        if policy is not None:
            for method in sorted(route.methods or ()):
                _register(idempotency, method, path, policy)
    app.add_middleware(ASGIMiddleware, idempotency=idempotency)

    async def refuse(request: Request, error: NotMet) -> Response:
        return respond(error.response(idempotency.problem_base))

    app.exception_handler(NotMet)(refuse)
    make_document = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document(make_document(), idempotency)
        return make_document()

    app.openapi = openapi  # type: ignore[method-assign]


def _routes(routes: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every route with its whole path, those of routers and mounted applications too."""
    # FastAPI copied included routers into a flat list before it had this function.
    for route in getattr(routing, "iter_route_contexts", iter)(routes):
        mounted = getattr(route, "original_route", route)
        if isinstance(mounted, Mount):
            yield from _routes(mounted.routes, prefix + mounted.path)
        elif route.path is not None:
            yield prefix + route.path, route


def _register(idempotency: Idempotency, method: str, path: str, policy: Policy) -> None:
    if method not in policy.methods:
        policy = dataclasses.replace(policy, methods=(*policy.methods, method))
    idempotency.routes.add(f"{method} {path}", policy)
