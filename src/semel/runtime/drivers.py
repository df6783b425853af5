"""Drivers: the two loops that carry out the engine's commands, on an event loop and on threads.

An adapter asks a driver to `begin`, runs the handler in its own way where that returns None, and
hands the answer to `finish`. What may be sent is what these return; nothing is decided here.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final

from semel.core import problems
from semel.core.commands import (
    Answer,
    Claim,
    Claimed,
    Complete,
    Found,
    Open,
    Park,
    Release,
    RunHandler,
    Sleep,
    StoreError,
    StoreUnknown,
    Takeover,
    Undo,
    Wait,
)
from semel.core.engine import Deliver, Life, Outcome, Refuse
from semel.core.policy import Policy
from semel.core.record import UnreadableRecord
from semel.failpoints import failpoint
from semel.runtime.leases import Leases
from semel.runtime.lending import standing_in
from semel.runtime.outcomes import Outcomes
from semel.runtime.transactions import HeldTransaction
from semel.runtime.waiters import Waiters
from semel.stores.base import Store, Transaction

log = logging.getLogger("semel")

_HANDLER = frozenset({RunHandler})
_CHANGES = frozenset({Claim, Open, Takeover, Park, RunHandler})
_POINTS: dict[type, tuple[str, str]] = {
    Claim: ("before_claim", "after_claim"),
    Open: ("before_claim", "after_claim"),
    Takeover: ("before_takeover", "after_takeover"),
    Undo: ("before_undo", "after_undo"),
    Complete: ("before_complete", "after_complete"),
    Release: ("before_release", "after_release"),
    Park: ("before_park", "after_park"),
}


ERROR: Final = 400
"""Raised responses below are none of an error: some frameworks raise a redirect after success."""


CALL_FAILED: Final = "operation %s: a call of op.on_commit() failed; the operation is committed"


class Runtime:
    """The state that operations of one process share: store, leases held, repeats waiting.

    `outcomes` is told of every outcome; `max_waiting_threads` as `Idempotency` takes it.
    """

    def __init__(
        self,
        store: Store,
        outcomes: Outcomes | None = None,
        max_waiting_threads: int | None = None,
    ) -> None:
        self.store = store
        self.outcomes = outcomes if outcomes is not None else Outcomes()
        self.leases = Leases(store)
        self.waiters = Waiters(max_waiting_threads)


class _Driver(HeldTransaction):
    """The state of one operation, and the steps that both drivers share."""

    __slots__ = (
        "_lease",
        "_life",
        "_pending",
        "claim",
        "exits",
        "keep",
        "key",
        "looked_up",
        "names",
        "on_commit",
        "outcome",
        "parked",
        "policy",
        "raised",
        "released",
        "runtime",
        "stepped",
    )

    def __init__(self, runtime: Runtime, life: Life, key: bytes, policy: Policy) -> None:
        super().__init__(runtime.store, current.get())
        self.runtime = runtime
        self.key = key
        self.policy = policy
        """The rules of the operation."""
        self.claim: RunHandler | None = None
        """The claim under which the handler runs."""
        self.looked_up = False
        """Whether the key's record has been read already, and does not say the outcome."""
        self.parked: str | None = None
        """Why the handler has given up on knowing what it did."""
        self.released = False
        """Whether the handler knows that it did nothing."""
        self.raised = False
        """Whether the framework makes a response of what the handler has raised."""
        self.stepped = False
        """Whether the handler has taken a step."""
        self.names: set[str] = set()
        """The steps that were taken, or are being taken."""
        self.exits: list[Callable[[], Awaitable[None]]] = []
        """What the handler's dependencies do at their exit: to be done before the record."""
        self.on_commit: list[Callable[[], Any]] = []
        """To be called once the record and what was written with it are known to be committed."""
        self.keep = policy.seconds.keep_steps
        """Seconds that recorded steps outlive an operation that ended without a record."""
        self.outcome: Outcome | None = None
        """What `finish` returned: the operation is over."""
        self._life = life
        self._lease = policy.seconds.lease
        self._pending: Any = None

    @property
    def lost(self) -> bool:
        """Whether the claim is known to be another's by now."""
        return self.claim is not None and (self.key, self.claim.token) in self.runtime.leases.lost

    def _next(self, value: Any) -> Any:
        """The engine's next command; at its end None, with the outcome set."""
        try:
            return self._life.send(value)
        except StopIteration as end:
            return self._know(end.value)

    def _failed(self, error: Exception) -> Any:
        """Tell the engine that a command failed, and get its next one."""
        if not isinstance(error, (StoreError, UnreadableRecord)):
            log.error("the store failed in a way it should not", exc_info=error)
            error = StoreUnknown(str(error))
        elif not isinstance(error, UnreadableRecord):
            log.warning("operation %s: %s", self.key[:6].hex(), error)
        try:
            return self._life.throw(error)
        except StopIteration as end:
            return self._know(end.value)

    def _know(self, outcome: Outcome) -> None:
        """Note how the operation ended, and tell those who want to know."""
        attempt = self.claim.attempt if self.claim is not None else 0
        self.outcome = self.runtime.outcomes.passed(outcome, self.key, attempt)

    def _cut_off(self) -> Outcome:
        """Return the outcome, where `finish` was called before and has perhaps been cancelled."""
        if self.outcome is None:
            self._know(Refuse(problems.OUTCOME_UNRECORDED))
        assert self.outcome is not None
        return self.outcome

    def _with_notes(self, answer: Answer) -> Answer:
        """Begin to finish: add to what came of the handler what it has said while it ran."""
        with self.lock:  # from here on nobody gets the transaction who does not have it
            self.finishing = True
        if self.taken and not answer.atomic:
            answer = answer._replace(atomic=True)
        if self.parked is None and not (self.released or self.stepped or self.raised):
            return answer
        return answer._replace(
            raised=answer.raised or (self.raised and answer.response.status >= ERROR),
            parked=self.parked if self.parked is not None else answer.parked,
            released=self.released or answer.released,
            stepped=self.stepped or answer.stepped,
        )

    def _to_call(self, answer: Answer, outcome: Outcome) -> list[Callable[[], Any]]:
        """What is to be called now: nothing, unless what the handler did stands."""
        calls, self.on_commit = self.on_commit, []
        return calls if outcome == Deliver(kept=True) and not answer.raised else []

    def _started(self, claim: RunHandler) -> None:
        self.claim = claim
        if self.transaction is None:
            self.runtime.leases.hold(self.key, claim.token, self._lease)
        self.runtime.waiters.running(self.key)

    def _opened(self, told: Any) -> Any:
        """Take the transaction that is the claim, and tell the engine of it."""
        if told is None or isinstance(told, Found):
            return told
        self.transaction = told
        return Claimed(told.token, 1, opened=True)

    def _drop_transaction(self, kind: type) -> bool:
        """Undo the transaction before a command that ends the claim. True: that was the claim."""
        transaction = self.transaction
        if transaction is None or kind is Claim:  # a claim beside it, to park under
            return False
        transaction.rollback()
        return kind is Release and transaction.token is not None

    def _ended(self) -> None:
        if self.transaction is not None:
            self.transaction.rollback()
        if self.claim is not None:
            self.runtime.leases.drop(self.key, self.claim.token)
            self.runtime.waiters.ended(self.key)


class AsyncDriver(_Driver):
    """Carries one operation out on the running event loop."""

    __slots__ = ()

    def begun(self) -> Transaction:
        """As `abegun`, for plain code on a thread beside the loop, which others may need."""
        if self.transaction is not None:
            return super().begun()
        with standing_in():
            return super().begun()

    async def look(self) -> Outcome | None:
        """Wait where the first request is in flight. None: a claim has to be made, with `begin`.

        May be cancelled at any point: nothing has changed.
        """
        return await self._drive(self._next(None), _CHANGES)

    async def begin(self) -> Outcome | None:
        """Claim. None: the handler is to run now, then `finish` to be called, come what may."""
        command = self._pending if self._pending is not None else self._next(None)
        self._refuse_nested(claim=type(command) is not Open)
        outcome = await self._drive(command, _HANDLER)
        if outcome is None:
            self._started(self._pending)
        return outcome

    async def leave(self) -> None:
        """Do what the handler's dependencies do at their exit. Raises what they raise."""
        while self.exits:
            await self.exits.pop()()

    async def finish(self, answer: Answer) -> Outcome:
        """Record what came of the handler; return what may be sent."""
        if self.finishing:
            return self._cut_off()
        answer = self._with_notes(answer)
        try:
            outcome = await self._drive(self._next(answer), frozenset())
        finally:
            self._ended()
        assert outcome is not None
        if self.on_commit:
            for call in self._to_call(answer, outcome):
                try:
                    awaitable = call()
                    if inspect.isawaitable(awaitable):
                        await awaitable
                except Exception:
                    log.exception(CALL_FAILED, self.key[:6].hex())
        return outcome

    async def _drive(self, command: Any, until: frozenset[type]) -> Outcome | None:
        while command is not None:
            kind = type(command)
            if kind in until:
                self._pending = command
                return None
            try:
                value = await self._perform(kind, command)
            except Exception as error:  # noqa: BLE001
                command = self._failed(error)
            else:
                command = self._next(value)
        return self.outcome

    async def _perform(self, kind: type, command: Any) -> Any:
        points = _POINTS.get(kind)
        if points is None:
            if kind is Wait:
                return await self.runtime.waiters.await_end(command)
            if kind is Sleep:
                return await asyncio.sleep(command.seconds)
            return await self.runtime.store.aexecute(command)
        before, after = points
        failpoint(before)
        transaction = self.transaction
        if transaction is not None and kind is Complete:
            value: Any = await transaction.acomplete(command)
        elif kind is Undo:
            await self._end_transaction()
            value = None
        elif self._drop_transaction(kind):
            value = True
        elif kind is Open:
            value = self._opened(await self.runtime.store.aopen(command))
        else:
            value = await self.runtime.store.aexecute(command)
        failpoint(after)
        return value

    async def _end_transaction(self) -> None:
        transaction, self.transaction = self.transaction, None
        if transaction is not None:
            await transaction.arollback()


class ThreadDriver(_Driver):
    """Carries one operation out on the calling thread."""

    __slots__ = ()

    def begin(self) -> Outcome | None:
        """Wait and claim. None: the handler is to run now, then `finish` to be called."""
        command = self._next(None)
        self._refuse_nested(claim=type(command) is not Open)
        outcome = self._drive(command, _HANDLER)
        if outcome is None:
            self._started(self._pending)
        return outcome

    def finish(self, answer: Answer) -> Outcome:
        """Record what came of the handler; return what may be sent."""
        if self.finishing:
            return self._cut_off()
        answer = self._with_notes(answer)
        try:
            outcome = self._drive(self._next(answer), frozenset())
        finally:
            self._ended()
        assert outcome is not None
        if self.on_commit:
            for call in self._to_call(answer, outcome):
                try:
                    call()
                except Exception:
                    log.exception(CALL_FAILED, self.key[:6].hex())
        return outcome

    def _drive(self, command: Any, until: frozenset[type]) -> Outcome | None:
        while command is not None:
            kind = type(command)
            if kind in until:
                self._pending = command
                return None
            try:
                value = self._perform(kind, command)
            except Exception as error:  # noqa: BLE001
                command = self._failed(error)
            else:
                command = self._next(value)
        return self.outcome

    def _perform(self, kind: type, command: Any) -> Any:
        points = _POINTS.get(kind)
        if points is None:
            if kind is Wait:
                return self._wait(command)
            if kind is Sleep:
                return time.sleep(command.seconds)
            return self.runtime.store.execute(command)
        before, after = points
        failpoint(before)
        transaction = self.transaction
        if transaction is not None and kind is Complete:
            value: Any = transaction.complete(command)
        elif kind is Undo:
            self._end_transaction()
            value = None
        elif self._drop_transaction(kind):
            value = True
        elif kind is Open:
            value = self._opened(self.runtime.store.open(command))
        else:
            value = self.runtime.store.execute(command)
        failpoint(after)
        return value

    def _end_transaction(self) -> None:
        transaction, self.transaction = self.transaction, None
        if transaction is not None:
            transaction.rollback()

    def _wait(self, command: Wait) -> float | None:
        return self.runtime.waiters.wait_end(command)


class ServerThreadDriver(ThreadDriver):
    """The same on a thread that a server has for requests: few of them may wait for each other."""

    __slots__ = ()

    def _wait(self, command: Wait) -> float | None:
        return self.runtime.waiters.wait_on_server_thread(command)


current: ContextVar[AsyncDriver | ThreadDriver | None] = ContextVar("semel_operation", default=None)
"""Set by the adapters while a handler runs."""
