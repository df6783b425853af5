"""The view's transaction: Django's `atomic()` around it, ended together with the record."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from asgiref.sync import sync_to_async
from django.db import Error, connections, transaction
from django.db.transaction import TransactionManagementError

from semel.core.commands import Complete, StoreError, StoreUnavailable, StoreUnknown
from semel.failpoints import failpoint
from semel.stores.django.connection import testing
from semel.stores.django.errors import translate
from semel.stores.effects import SessionEffect, effect_of

log = logging.getLogger("semel")


_REFUSED: Final = (
    "the transaction belongs to the operation and commits with its response: leave BEGIN, COMMIT"
    " and ROLLBACK out; transaction.atomic() inside is a savepoint"
)


def refuse_ending(
    execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    """Carry a query of the view's out, unless it would end the transaction (`execute_wrapper`)."""
    if effect_of(str(sql)) is SessionEffect.TRANSACTION:
        raise TransactionManagementError(_REFUSED)
    return execute(sql, params, many, context)


class DjangoTransaction:
    """`atomic()` on the connection that Django keeps for the thread it was begun on.

    Raises `StoreUnavailable` where the transaction cannot be begun.
    """

    token: int | None = None  # the claim is a record of its own

    def __init__(self, alias: str, write: Callable[[Any, Complete], bool]) -> None:
        self._alias = alias
        self._write = write
        self._thread = threading.get_ident()
        self._connection: Any = connections[alias]
        self._testing = testing(alias) is not None
        self._ending: asyncio.Task[None] | None = None
        connection = self._connection
        if connection.in_atomic_block and not self._testing:
            raise StoreUnavailable(
                "this thread is in a transaction already: the middleware stands inside an atomic()"
                " of another, or two requests share a thread (serve with get_asgi_application())"
            )
        self._committed = False
        self._atomic = transaction.atomic(using=self._alias, durable=True)
        try:
            self._atomic.__enter__()
        except Error as error:
            connection.close()
            raise StoreUnavailable(f"{self._alias}: {error}") from error
        self._over = False
        try:
            self._savepoint("savepoint")
        except Error as error:
            self._drop()
            raise StoreUnavailable(f"{self._alias}: {error}") from error
        transaction.on_commit(
            self._mark, using=self._alias
        )  # the first hook: it says so before any
        connection.execute_wrappers.append(refuse_ending)
        failpoint("after_begin")

    def _ends(self) -> None:
        """Let the view's statements be, and no longer those of the operation."""
        self._over = True
        with contextlib.suppress(ValueError):
            self._connection.execute_wrappers.remove(refuse_ending)

    def _savepoint(self, verb: str) -> None:
        """Mark the transaction's beginning, and ask for the mark before its end.

        PostgreSQL's refuses to commit what has failed. InnoDB undoes all of it for a deadlock,
        SQLite for a full disk, and what the view does after it has swallowed the error is a new
        transaction, unseen by Django: it must not commit a record whose effect has gone.
        """
        if self._connection.vendor != "postgresql":
            with self._connection.cursor() as cursor:
                cursor.execute(f"{verb} semel")

    def _mark(self) -> None:
        self._committed = True

    @property
    def connection(self) -> Any:
        """Django's connection, with the transaction open on it."""
        return self._connection

    @property
    def async_connection(self) -> Any:
        """The same: an async view uses the ORM, or `sync_to_async` with this."""
        return self._connection

    @property
    def broken(self) -> bool:
        """Whether Django has decided that this transaction may only be rolled back."""
        return bool(self._connection.needs_rollback)

    def complete(self, command: Complete) -> bool:
        """Write the completion and commit, both or neither. False: fenced, rolled back."""
        connection = self._connection
        if self._over or not self._innermost():
            raise StoreUnavailable(
                "the transaction cannot be committed here: it has ended, or an atomic() of the view"
                " is still open"
            )
        if connection.needs_rollback:
            self._rollback()
            raise StoreUnavailable("a statement of the view had failed, so nothing was committed")
        try:
            self._savepoint("release savepoint")  # fails where it is another
        except Error as error:
            self._drop()
            raise StoreUnavailable(
                f"the view's transaction had ended before it, so no record was committed: {error}"
            ) from error
        try:
            held = self._write(connection, command)
        except Error as error:
            self._drop()
            raise translate(error, sent=False) from error
        if not held:
            self._rollback()
            return False
        failpoint("before_commit")
        self._commit()
        failpoint("after_commit")
        return True

    def _commit(self) -> None:
        self._ends()
        try:
            self._atomic.__exit__(None, None, None)
        except Exception as error:
            if self._committed:  # it is done; a hook of the view's has raised
                log.exception("an on_commit hook failed; the operation is committed")
                return
            self._connection.close()
            if isinstance(error, Error):
                raise translate(error, sent=True) from error
            raise StoreUnknown(repr(error)) from error
        if not self._committed and not self._testing:
            raise StoreUnavailable("the view has closed the connection, and its transaction ended")

    async def acomplete(self, command: Complete) -> bool:
        """As `complete`, on the transaction's own thread."""
        return await sync_to_async(self.complete, thread_sensitive=True)(command)

    def rollback(self) -> None:
        """Undo everything. From an event loop it is only asked for; see `ended`."""
        if self._over:
            return
        if threading.get_ident() == self._thread:
            self._rollback()
        elif self._ending is None:
            roll_back = sync_to_async(self._rollback, thread_sensitive=True)
            self._ending = asyncio.get_running_loop().create_task(roll_back())

    async def arollback(self) -> None:
        """As `rollback`, and wait until it is done."""
        self.rollback()
        await self.ended()

    async def ended(self) -> None:
        """Wait until a rollback that was asked for has been carried out."""
        if self._ending is not None:
            await self._ending

    def _rollback(self) -> None:
        if self._over:
            return
        if not self._innermost():  # its end is yet to come: nothing of it may be kept
            self._connection.needs_rollback = True
            return
        self._drop()

    def _drop(self) -> None:
        self._ends()
        cause = StoreError("rolled back")
        try:
            self._atomic.__exit__(type(cause), cause, None)
        except Exception as error:  # noqa: BLE001  # the database ends it by itself
            log.debug("could not roll back: %s", error)
            self._connection.close()

    def _innermost(self) -> bool:
        blocks = self._connection.atomic_blocks
        return bool(blocks) and blocks[-1] is self._atomic
