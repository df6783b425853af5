"""Operations: the handle that a handler has on its key, its transaction and its steps."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NoReturn

from semel.codecs import Codec, JSONCodec, StepResult
from semel.core import keys, steps
from semel.core.commands import Answer
from semel.core.engine import Deliver, Outcome, Refuse
from semel.core.record import Response
from semel.core.steps import OnUnknown, OutcomeUnknown
from semel.runtime import stepping
from semel.runtime.drivers import AsyncDriver, ThreadDriver, current
from semel.runtime.transactions import NestedOperation, OperationOver
from semel.stores.base import StoreSetupError, Transaction

__all__ = [
    "AsyncOperation",
    "NestedOperation",
    "NoOperation",
    "Operation",
    "OperationOver",
    "current",
    "current_async_operation",
    "current_operation",
    "note_raised",
]

log = logging.getLogger("semel")

_JSON = JSONCodec()
_TAKEN = (
    "step {0!r} has been taken in this operation, or is being taken: each step has a name of its"
    " own. In a loop put the item's id into it, such as f'{0}-{{item.id}}', the same in every"
    " attempt"
)


class _Operation:
    def __init__(self, driver: AsyncDriver | ThreadDriver) -> None:
        self._driver = driver

    @property
    def key_hash(self) -> bytes:
        """The 16 bytes that name this operation; never the key itself."""
        return self._driver.key

    @property
    def attempt(self) -> int:
        """1 for the first run under this key, one more for each run after a crash."""
        claim = self._driver.claim
        return claim.attempt if claim is not None else 0

    @property
    def token(self) -> int:
        """The fencing token: grows with each claim of the key. Hand it to systems that fence."""
        claim = self._driver.claim
        return claim.token if claim is not None else 0

    @property
    def lost(self) -> bool:
        """Whether another attempt has taken the key over: what is written now will be refused."""
        return self._driver.lost

    def derive(self, name: str) -> str:
        """Return the key to send to another system for the call named `name`.

        Always the same for this operation and name, whichever attempt asks.
        """
        return keys.derive(self._driver.key, name)

    def park(self, reason: str) -> NoReturn:
        """Give up on knowing: roll back, and keep the key until the outcome has been settled.

        A repeat gets 409 `outcome-unknown`; a person or a job of yours settles it
        (`Idempotency.settle`). Always raises `OutcomeUnknown`, which is not to be caught.
        """
        self._open()
        self._driver.parked = reason
        raise OutcomeUnknown(reason)

    def release(self) -> None:
        """Say that nothing happened: the response goes out, the key is free, a retry runs anew.

        Whatever the response's status, and under at most once too. For a handler that knows, such
        as one whose call to another system was refused before a byte of it was sent.
        """
        self._open()
        self._driver.released = True

    @contextlib.contextmanager
    def _step(self, name: str, on_unknown: OnUnknown | Callable[..., Any]) -> Iterator[steps.Step]:
        """Have one step of this name under way; one that failed may be taken again."""
        self._open()
        if isinstance(on_unknown, str) and on_unknown not in ("rerun", "park"):
            raise ValueError(f"on_unknown: give 'rerun', 'park' or a probe, not {on_unknown!r}")
        driver = self._driver
        with driver.lock:
            if name in driver.names:
                raise ValueError(_TAKEN.format(name))
            driver.names.add(name)
            driver.stepped = True
        try:
            yield steps.Step(driver.key, self.token, name, on_unknown, driver.keep)
        except BaseException as error:
            driver.names.discard(name)
            if isinstance(error, OutcomeUnknown):
                driver.parked = str(error)
            raise

    def when_ended(self, call: Callable[[], None]) -> None:
        """Have `call` called once the operation is over, whatever came of it; for adapters."""
        self._driver.runtime.waiters.when_ended(self._driver.key, call)

    def _open(self) -> None:
        self._driver.require_running()


class AsyncOperation(_Operation):
    """The operation of an async handler."""

    _driver: AsyncDriver

    async def connection(self) -> Any:
        """Return a connection to the database that holds the key.

        What is written on it commits together with the key's record, or not at all. The type is
        the store's own kind of connection (for SQLite `semel.stores.sqlite.AsyncSQLiteConnection`).
        SQLite has one writer: do slow work before asking for it.

        All tasks and threads of the handler get the same one.

        Raises `OperationOver` after the end, `NestedOperation` where an operation around this one
        holds a transaction of the same store, `StoreSetupError` where the store cannot do this,
        `StoreUnavailable` where the database cannot be had in time.
        """
        return (await self._driver.abegun()).async_connection

    async def session(self) -> Any:
        """Return an SQLAlchemy `AsyncSession` in that transaction; its `commit()` is a savepoint.

        Raises as `connection` does, `StoreSetupError` for a store that has no sessions.
        """
        await self._driver.abegun()
        return _session(self._driver, "async_session")

    async def driver(self) -> Any:
        """Return the driver's own connection below SQLAlchemy's (asyncpg's, psycopg's, …).

        Its transaction has begun: what is written on it commits with the record. Do not end the
        transaction there. The connection is not given back to its pool afterwards, for nobody sees
        what was set on it. Raises as `connection` does, `StoreSetupError` for another store.
        """
        return await _of_sqlalchemy(await self._driver.abegun(), "adriver")()

    async def step(
        self,
        name: str,
        call: Callable[[str], Any],
        *,
        on_unknown: OnUnknown | Callable[[str], Any] = "rerun",
        codec: Codec = _JSON,
    ) -> Any:
        """Call somebody else's system, and record what came of it: a rerun does not call again.

            card = await op.step("charge", lambda key: provider.charge(100, idempotency_key=key))

        `name` is the step's own in this operation, and stays the same through deployments. `call`
        is given the derived key, the same in every attempt, to hand to the far side; what it
        returns (or its awaitable gives) is recorded by `codec` (default: JSON) before this returns.
        What has no stored form is recorded as done: a rerun raises `StepResultNotKept`.

        `on_unknown` says what to do where an attempt was cut off between the call and its record:
        `"rerun"` (default) calls again under the same derived key, for far sides that honour it;
        `"park"` parks the operation; a function is a probe: it is given the derived key and returns
        the step's result where the far side has done it, or raises `NotDone`; where it fails, the
        operation is parked.

        Raises what `call` raised (`NotDone` says that the far side has certainly not done it),
        `StepFenced` where another attempt has taken over, `StoreError` where nothing can be
        recorded, `ValueError` for a name of over 512 bytes and for one that was taken already in
        this attempt (a step that failed may be taken again). Source of the rule: Temporal's and
        DBOS's steps, at least once and recorded once; derived keys make that once.
        """
        result = StepResult(codec, name)
        with self._step(name, on_unknown) as step:
            store = self._driver.runtime.store
            return result.decode(await stepping.atake(store, step, call, result.encode))

    def on_commit(self, call: Callable[[], Any]) -> None:
        """Have `call` called once the record, and what was written with it, are committed.

            op.on_commit(lambda: send_mail(order))

        In the order of their registration, before the response is sent, and also where the handler
        commits by itself (`commit()`); what a call returns is awaited where it can be. Not where
        the operation is rolled back, released or parked, where the handler raised, or where another
        attempt has taken the key over. What a call raises is logged and changes nothing: the
        operation is over.

        A process that dies between the commit and the call loses the call: it is called once or
        not at all. What has to happen is a step (`step`), or is written in the transaction.
        Raises `OperationOver` after the end.
        """
        self._open()
        self._driver.on_commit.append(call)

    async def commit(self) -> None:
        """Commit now, before the answer is known, and let the answer pass through as it is made.

        The operation is over then, and the calls of `on_commit` are made. A repeat gets 409
        `response-not-kept`. For long streams.
        Raises `OperationOver` where it cannot be committed, with what is known of it.
        """
        self._open()
        answer = Answer(Response(200, (), None), atomic=self._driver.taken)
        outcome = await self._driver.finish(answer)
        if not isinstance(outcome, Deliver):
            raise _not_committed(outcome)


class Operation(_Operation):
    """The operation of a plain handler, on a thread."""

    def connection(self) -> Any:
        """As `AsyncOperation.connection`, without awaiting."""
        return self._driver.begun().connection

    def session(self) -> Any:
        """As `AsyncOperation.session`, without awaiting: an SQLAlchemy `Session`."""
        self._driver.begun()
        return _session(self._driver, "session")

    def driver(self) -> Any:
        """As `AsyncOperation.driver`, without awaiting."""
        return _of_sqlalchemy(self._driver.begun(), "driver")()

    def step(
        self,
        name: str,
        call: Callable[[str], Any],
        *,
        on_unknown: OnUnknown | Callable[[str], Any] = "rerun",
        codec: Codec = _JSON,
    ) -> Any:
        """As `AsyncOperation.step`, without awaiting."""
        result = StepResult(codec, name)
        with self._step(name, on_unknown) as step:
            store = self._driver.runtime.store
            return result.decode(stepping.take(store, step, call, result.encode))

    def on_commit(self, call: Callable[[], Any]) -> None:
        """As `AsyncOperation.on_commit`, for a plain function.

        Under ASGI it is called on a thread. Raises `TypeError` for an async function.
        """
        self._open()
        if inspect.iscoroutinefunction(call):
            raise TypeError("on_commit: give a plain function; async ones are for AsyncOperation")
        if isinstance(self._driver, AsyncDriver):  # it may block, and the driver is on the loop
            call = functools.partial(asyncio.to_thread, call)
        self._driver.on_commit.append(call)

    def commit(self) -> None:
        """As `AsyncOperation.commit`, without awaiting. Not for `def` handlers under ASGI."""
        self._open()
        if isinstance(self._driver, AsyncDriver):
            raise OperationOver("commit() needs an async handler under ASGI; write it as async def")
        answer = Answer(Response(200, (), None), atomic=self._driver.taken)
        outcome = self._driver.finish(answer)
        if not isinstance(outcome, Deliver):
            raise _not_committed(outcome)


def _not_committed(outcome: Outcome) -> OperationOver:
    known = f": {outcome.problem.title}" if isinstance(outcome, Refuse) else ""
    return OperationOver(f"the operation could not be committed{known}")


def _session(driver: AsyncDriver | ThreadDriver, kind: str) -> Any:
    with driver.lock:  # made by whoever asks first
        session = getattr(driver.transaction, kind, None)
    if session is None:
        raise StoreSetupError(
            "op.session() is for SQLAlchemyStore; this store's transaction is op.connection()"
        )
    return session


def _of_sqlalchemy(transaction: Transaction, name: str) -> Any:
    found = getattr(transaction, name, None)
    if found is None:
        raise StoreSetupError(
            "op.driver() is for SQLAlchemyStore; this store's op.connection() is the driver's own"
        )
    return found


def note_raised(error: BaseException) -> None:
    """Say that the framework makes a response of an exception that has left the handler.

    For adapters: the hooks that turn an exception into a response (404, 402, a problem) call it.
    What the handler wrote in the operation's transaction is then undone, and a response that is
    kept is recorded without it. Where the response is none of an error (a status below 400, such
    as a raised redirect) nothing changes. It may be called more than once; outside an operation,
    and after its end, it does nothing.
    """
    driver = current.get()
    if driver is not None and not driver.finishing:
        log.debug("operation %s: a response is made of %r", driver.key[:6].hex(), error)
        driver.raised = True


unkeyed: ContextVar[list[NoOperation] | None] = ContextVar("semel_unkeyed", default=None)
"""Set by the adapters while a request without a key runs: what its handler is told by us, which a
framework may have made a response of before the adapter sees it."""


class NoOperation(RuntimeError):
    """There is no operation here: the request carries no key, or its route is not covered."""


def current_async_operation() -> AsyncOperation:
    """Return the operation that the present async code runs in.

    Raises `NoOperation` where there is none.
    """
    driver = current.get()
    if not isinstance(driver, AsyncDriver):
        raise _no_operation(_NONE if driver is None else "a plain handler uses current_operation()")
    return AsyncOperation(driver)


def current_operation() -> Operation:
    """Return the operation that the present plain code runs in (WSGI, or a `def` under ASGI).

    Raises `NoOperation` where there is none.
    """
    driver = current.get()
    if driver is None:
        raise _no_operation(_NONE)
    return Operation(driver)


def _no_operation(reason: str) -> NoOperation:
    error, told = NoOperation(reason), unkeyed.get()
    if told is not None:
        told.append(error)
    return error


_NONE = (
    "no operation: the request carries no Idempotency-Key, its route is not covered, or the"
    " middleware is missing; Policy(required=True) refuses requests without a key"
)
