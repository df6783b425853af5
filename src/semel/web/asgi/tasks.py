"""Operations in tasks of their own, which nobody cancels with their requests.

What such a task has set is seen outside all the same, by the middleware around: its context
variables, and the sessions that SQLAlchemy keeps by task (`async_scoped_session`).
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import sys
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, Generic, TypeVar

log = logging.getLogger("semel")

T = TypeVar("T")
Operate = Callable[["asyncio.Future[None]"], Coroutine[Any, Any, T]]
"""Carries an operation out; is given what its request awaits, and may release it early."""


class OwnTask(Generic[T]):
    """An operation in a task of its own, and the request that waits for it."""

    def __init__(self, operate: Operate[T], registries: tuple[Any, ...]) -> None:
        loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = loop.create_future()
        """Rather than the task this is awaited: a cancelled wait leaves the task alone, and it
        wakes its waiter a turn of the loop earlier than a shielded task would."""
        self.waits = True
        """Whether the request still waits for the operation."""
        self._operate = operate
        self._context: Context = copy_context()
        self._sessions = _Sessions(registries) if registries else None
        if sys.version_info >= (3, 12):
            task = asyncio.Task(self._run(), loop=loop, eager_start=True, context=self._context)
        else:
            task = loop.create_task(self._run(), context=self._context)
        self.task: asyncio.Task[T] = task
        task.add_done_callback(self._settle)

    async def _run(self) -> T:
        sessions = self._sessions
        try:
            if sessions is not None:
                sessions.enter()
            return await self._operate(self.done)
        finally:
            if sessions is not None:
                await sessions.leave(waits=self.waits)
            self._settle()

    def _settle(self, _: object = None) -> None:
        """Wake the request, also that of a task that was cancelled before its first step."""
        if not self.done.done():
            self.done.set_result(None)

    def give_up(self) -> None:
        """Stop waiting: what the task has, it closes by itself."""
        self.waits = False
        if self._sessions is not None:
            self._sessions.give_up()

    def restore(self) -> None:
        """Set the context variables that the task has changed; once it has ended."""
        for variable in self._context:
            value = self._context[variable]
            if variable.get(_UNSET) is not value:
                variable.set(value)


_UNSET: Any = object()


class OwnTasks:
    """Starts operations in tasks of their own."""

    def __init__(self) -> None:
        self._started = 0
        self._registries: tuple[Any, ...] = ()

    def start(self, operate: Operate[T]) -> OwnTask[T]:
        """Run an operation in a task of its own."""
        self._started += 1
        if self._started in _LOOKS:
            self._registries = _registries()
        return OwnTask(operate, self._registries)


# --- sessions that are kept by task ---------------------------------------------------------------

_LOOKS = frozenset(10**power for power in range(7))
"""The operations before which registries are looked for: they are made once, as an application is,
and a look goes through all objects there are."""


def _registries() -> tuple[Any, ...]:
    """Return SQLAlchemy's registries of scoped sessions, where it is in use."""
    kind = getattr(sys.modules.get("sqlalchemy.util"), "ScopedRegistry", None)
    if kind is None:
        return ()
    return tuple(found for found in gc.get_referrers(kind) if type(found) is kind)


class _Sessions:
    """The sessions of a request's task, for the time that its operation runs in another."""

    def __init__(self, registries: tuple[Any, ...]) -> None:
        self._outside = [(registry, _scope(registry)) for registry in registries]
        self._inside: list[tuple[Any, Any, Any, Any]] = []

    def enter(self) -> None:
        """In the operation's task: give it the sessions of the request's."""
        for registry, outside in self._outside:
            inside = _scope(registry)
            if _NONE in (outside, inside) or inside == outside:  # by a context variable
                continue
            sessions = registry.registry
            shared = sessions.get(outside)
            if shared is not None:
                sessions[inside] = shared
            self._inside.append((sessions, outside, inside, shared))

    def give_up(self) -> None:
        """In the request's task, which ends: leave the operation the sessions that it has."""
        for sessions, outside, _, shared in self._inside:
            if shared is not None and sessions.get(outside) is shared:
                del sessions[outside]

    async def leave(self, *, waits: bool) -> None:
        """In the operation's task, which ends: give the sessions to the request's, or close them.

        `waits`: there is one still, whose middleware will remove them.
        """
        for sessions, outside, inside, shared in self._inside:
            session = sessions.pop(inside, None)
            if not waits:
                await _close(session)
            elif session is not None:
                sessions[outside] = session
            elif shared is not None and sessions.get(outside) is shared:
                del sessions[outside]  # it was removed within


_NONE: Any = object()


def _scope(registry: Any) -> Any:
    try:
        scope = registry.scopefunc()
        hash(scope)
    except Exception:  # noqa: BLE001  # it has no scope here
        return _NONE
    return scope


async def _close(session: Any) -> None:
    try:
        closed = session.close() if session is not None else None
        if inspect.isawaitable(closed):
            await closed
    except Exception:
        log.exception("a session of an operation whose client had gone could not be closed")
