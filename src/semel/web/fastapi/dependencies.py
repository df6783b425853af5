"""Dependencies: a handler's operation, and the preconditions of its request."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Annotated, Any

from anyio.lowlevel import RunVar
from anyio.to_thread import current_default_thread_limiter
from fastapi import Depends, Header, Request

from semel.core import keys
from semel.operation import (
    AsyncOperation,
    Operation,
    current,
    current_async_operation,
    current_operation,
)
from semel.web.conditional import Preconditions

__all__ = [
    "AsyncOp",
    "Op",
    "OptionalAsyncOp",
    "OptionalOp",
    "asking_room",
    "async_operation",
    "operation",
    "optional_async_operation",
    "optional_operation",
    "preconditions",
    "take_place",
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


async def operation(request: Request, idempotency_key: _KeyHeader = None) -> Operation:
    """Give a plain `def` handler its operation; `Op` is the parameter's type ready made.

    At most half the threads of the pool run such handlers at a time, the others wait without one:
    whoever holds `op.connection()` needs a thread once more before its answer is known (FastAPI
    serialises there), and those that wait for the connection must not have taken them all.
    """
    op = current_operation()
    await take_place(request.scope, op)
    return op


async def optional_async_operation(
    idempotency_key: _KeyHeader = None,
) -> AsyncOperation | None:
    """Give an async handler its operation, or None: no key came, or the route is not covered."""
    return None if current.get() is None else current_async_operation()


async def optional_operation(
    request: Request, idempotency_key: _KeyHeader = None
) -> Operation | None:
    """Give a plain `def` handler its operation as `operation` does, or None where there is none."""
    return None if current.get() is None else await operation(request)


Op = Annotated[Operation, Depends(operation)]
"""The operation of a plain `def` handler: `def charge(order: Order, op: Op)`."""

AsyncOp = Annotated[AsyncOperation, Depends(async_operation)]
"""The operation of an async handler: `async def charge(order: Order, op: AsyncOp)`."""

OptionalOp = Annotated[Operation | None, Depends(optional_operation)]
"""As `Op`, and None without a key, or for a GET: `def thing(op: OptionalOp)`."""

OptionalAsyncOp = Annotated[AsyncOperation | None, Depends(optional_async_operation)]
"""As `AsyncOp`, and None without a key, or for a GET: `async def thing(op: OptionalAsyncOp)`."""


async def preconditions(
    request: Request, if_match: _IfMatch = None, if_none_match: _IfNoneMatch = None
) -> Preconditions:
    """Give a handler what its request asks for: `when: Preconditions = Depends(preconditions)`.

    `when.require(…)` then refuses with 304, 412 or 428; see `semel.web.conditional`. The parameters
    are there for the OpenAPI document: the headers are read from the request.
    """
    return Preconditions.from_headers(request.method, request.headers.raw)


_PLACE = "semel.place"


async def take_place(scope: MutableMapping[str, Any], op: Operation) -> None:
    """Wait until one more plain handler may hold a thread; once for an operation."""
    if scope.get(_PLACE) is None:
        scope[_PLACE] = op
        room = _room(_ROOM)
        await room.acquire()
        op.when_ended(room.release)


_ROOM: RunVar[asyncio.Semaphore] = RunVar("semel_room")
_ASKING: RunVar[asyncio.Semaphore] = RunVar("semel_asking")


def asking_room() -> asyncio.Semaphore:
    """Return the places for plain `caller` dependencies: a quarter of the threads.

    One may wait there for a connection of the application's pool, which operations hold that need a
    thread to end.
    """
    return _room(_ASKING, 4)


def _room(kept: RunVar[asyncio.Semaphore], share: int = 2) -> asyncio.Semaphore:
    """The places of this event loop for plain code: a half, or another share, of its threads."""
    room = kept.get(None)
    if room is None:
        threads = current_default_thread_limiter().total_tokens
        room = asyncio.Semaphore(max(1, int(min(threads, 1000) // share)))
        kept.set(room)
    return room
