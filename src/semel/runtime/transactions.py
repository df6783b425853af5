"""The transaction of an operation: one, however many tasks and threads ask for it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

from semel.stores.base import Store, Transaction


class OperationOver(RuntimeError):
    """The operation has ended or lost its claim: what is asked for can no longer be had."""


class NestedOperation(RuntimeError):
    """An operation within another would wait for a connection that the outer one holds."""


OVER = "the operation is over: its response is being recorded, or was"


class HeldTransaction:
    """The part of a driver that begins the business transaction, and knows who has asked for it."""

    __slots__ = ("_asking", "_outer", "_store", "finishing", "lock", "taken", "transaction")

    def __init__(self, store: Store, outer: HeldTransaction | None) -> None:
        self.transaction: Transaction | None = None
        """The business transaction: that the handler has asked for, or that is the claim."""
        self.taken = False
        """Whether the handler has asked for it."""
        self.finishing = False
        """Whether what came of the handler is being recorded, or was."""
        self.lock = threading.Lock()
        """Held for a moment, by whoever changes these."""
        self._store = store
        self._outer = outer if outer is not None and not outer.finishing else None
        self._asking: list[Callable[[], None]] | None = None
        """While a transaction is being begun: wakes those who wait for it."""

    def require_running(self) -> None:
        """Raise `OperationOver` where the operation has ended."""
        if self.finishing:
            raise OperationOver(OVER)

    # --- beginning -------------------------------------------------------------------------

    async def abegun(self) -> Transaction:
        """Return the transaction, begun by whoever asks first.

        Raises `OperationOver` where the operation has ended, or ends meanwhile; `NestedOperation`;
        and what the store raises.
        """
        while True:
            woken: asyncio.Future[None] | None = None
            with self.lock:
                there = self._there()
                if there is None and self._asking is not None:
                    woken = asyncio.get_running_loop().create_future()
                    self._asking.append(_waker(woken))
                elif there is None:
                    self._asking = []
            if there is not None:
                return there
            if woken is None:
                break
            await woken
        begun: Transaction | None = None
        try:
            self._refuse_nested()
            begun = await self._store.abegin()
        finally:
            kept = self._take(begun)
        if not kept:
            await begun.arollback()
            raise OperationOver(OVER)
        return begun

    def begun(self) -> Transaction:
        """As `abegun`, on a thread."""
        while True:
            woken: threading.Event | None = None
            with self.lock:
                there = self._there()
                if there is None and self._asking is not None:
                    woken = threading.Event()
                    self._asking.append(woken.set)
                elif there is None:
                    self._asking = []
            if there is not None:
                return there
            if woken is None:
                break
            woken.wait()
        begun: Transaction | None = None
        try:
            self._refuse_nested()
            begun = self._store.begin()
        finally:
            kept = self._take(begun)
        if not kept:
            begun.rollback()
            raise OperationOver(OVER)
        return begun

    def _there(self) -> Transaction | None:
        self.require_running()
        if self.transaction is not None:
            self.taken = True
        return self.transaction

    def _take(self, transaction: Transaction | None) -> bool:
        """Take what has been begun, unless the operation has ended meanwhile; wake the others."""
        with self.lock:
            waiting, self._asking = self._asking or (), None
            kept = transaction is not None and not self.finishing
            if kept:
                self.transaction, self.taken = transaction, True
        for wake in waiting:
            with contextlib.suppress(RuntimeError):  # its event loop is closed
                wake()
        return kept

    # --- one within another ----------------------------------------------------------------

    def _refuse_nested(self, *, claim: bool = False) -> None:
        """Raise `NestedOperation` where an operation around this one holds what it would wait for.

        That is a connection of the same store; of a database with one writer, it is any write, the
        claim included (`claim`: that is what is asked for).
        """
        outer, store = self._outer, self._store
        while outer is not None:
            if outer.transaction is not None and not outer.finishing:
                theirs = outer._store
                one_writer = store.file is not None and store.file == theirs.file
                if one_writer or (theirs is store and not claim):
                    raise NestedOperation(_NESTED)
            outer = outer._outer


_NESTED = (
    "an operation within another, on the same store: it would wait for the transaction that the"
    " outer one holds. Begin it before op.connection() of the outer one, or from op.on_commit();"
    " give it a store of its own; or do its work in the outer one, where it happens once already"
)


def _waker(woken: asyncio.Future[None]) -> Callable[[], None]:
    loop = woken.get_loop()

    def settle() -> None:
        if not woken.done():
            woken.set_result(None)

    def wake() -> None:
        loop.call_soon_threadsafe(settle)

    return wake
