"""What a handler holds while it runs."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from semel.core import keys
from semel.core.commands import Answer
from semel.core.engine import Deliver
from semel.core.record import Response
from semel.drivers import AsyncDriver, ThreadDriver


class OperationOver(RuntimeError):
    """The operation has ended or lost its claim: what is asked for can no longer be had."""


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

    def when_ended(self, call: Callable[[], None]) -> None:
        """Have `call` called once the operation is over, whatever came of it; for adapters."""
        self._driver.runtime.waiters.when_ended(self._driver.key, call)

    def _open(self) -> None:
        if self._driver.outcome is not None:
            raise OperationOver("the operation is over: its answer has been recorded")


class Operation(_Operation):
    """The operation of an async handler."""

    _driver: AsyncDriver

    async def connection(self) -> Any:
        """Return a connection to the database that holds the key.

        What is written on it commits together with the key's record, or not at all. The type is
        the store's own kind of connection (for SQLite `semel.stores.sqlite.AsyncConnection`).
        SQLite has one writer: do slow work before asking for it.

        Raises `OperationOver` after the end, `StoreSetupError` where the store cannot do this,
        `StoreUnavailable` where the database cannot be had in time.
        """
        self._open()
        if self._driver.transaction is None:
            self._driver.transaction = await self._driver.runtime.store.abegin()
        return self._driver.transaction.async_connection

    async def commit(self) -> None:
        """Commit now, before the answer is known, and let the answer pass through as it is made.

        The operation is over then: a repeat gets 409 `response-not-kept`. For long streams.
        Raises `OperationOver` where it cannot be committed; nothing was done then.
        """
        self._open()
        answer = Answer(Response(200, (), None), atomic=self._driver.transaction is not None)
        outcome = await self._driver.finish(answer)
        if not isinstance(outcome, Deliver):
            raise OperationOver("the operation could not be committed; nothing was done")


class SyncOperation(_Operation):
    """The operation of a plain handler, on a thread."""

    def connection(self) -> Any:
        """As `Operation.connection`, without awaiting."""
        self._open()
        if self._driver.transaction is None:
            self._driver.transaction = self._driver.runtime.store.begin()
        return self._driver.transaction.connection

    def commit(self) -> None:
        """As `Operation.commit`, without awaiting. Not for `def` handlers under ASGI."""
        self._open()
        if isinstance(self._driver, AsyncDriver):
            raise OperationOver("commit() needs an async handler under ASGI; write it as async def")
        answer = Answer(Response(200, (), None), atomic=self._driver.transaction is not None)
        outcome = self._driver.finish(answer)
        if not isinstance(outcome, Deliver):
            raise OperationOver("the operation could not be committed; nothing was done")


current: ContextVar[AsyncDriver | ThreadDriver | None] = ContextVar("semel_operation", default=None)
"""Set by the adapters while a handler runs."""


class NoOperation(RuntimeError):
    """There is no operation here: the request carries no key, or its route is not covered."""


def current_operation() -> Operation:
    """Return the operation that the present async code runs in.

    Raises `NoOperation` where there is none.
    """
    driver = current.get()
    if not isinstance(driver, AsyncDriver):
        raise NoOperation(
            _NONE if driver is None else "a plain handler uses current_sync_operation()"
        )
    return Operation(driver)


def current_sync_operation() -> SyncOperation:
    """Return the operation that the present plain code runs in (WSGI, or a `def` under ASGI).

    Raises `NoOperation` where there is none.
    """
    driver = current.get()
    if driver is None:
        raise NoOperation(_NONE)
    return SyncOperation(driver)


_NONE = (
    "no operation: the request carries no Idempotency-Key, its route is not covered, or the"
    " middleware is missing; Policy(required=True) refuses requests without a key"
)
