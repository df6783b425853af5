"""The completer under ASGI: runs abandoned operations through the application."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any, cast

from semel.core.commands import Abandoned, Park, Remembered, StoreError
from semel.idempotency import Idempotency
from semel.runtime.drivers import AsyncDriver
from semel.web.asgi.exchange import ASGIExchange, Detached
from semel.web.asgi.messages import ASGIApp, ASGIScope, Message
from semel.web.http import completer

log = logging.getLogger("semel")


class Completing:
    """Looks for abandoned operations of one application, now and then or when asked."""

    def __init__(self, app: ASGIApp, idempotency: Idempotency, detached: Detached) -> None:
        self._app = app
        self._idempotency = idempotency
        self._detached = detached
        self._task: asyncio.Task[None] | None = None
        self._surroundings: dict[str, Any] = {}

    def go_on(self, scope: ASGIScope) -> None:
        """Look for abandoned operations from now on, on this event loop."""
        every = self._idempotency.complete_every
        if self._task is not None or every is None:
            return
        self._surroundings = {name: scope[name] for name in ("app", "state") if name in scope}
        self._task = asyncio.get_running_loop().create_task(self._each(every.total_seconds()))

    def go_on_if_needed(self, scope: ASGIScope) -> None:
        """The same, where a policy remembers requests."""
        if completer.remembers(self._idempotency):
            self.go_on(scope)

    def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()

    async def _each(self, every: float) -> None:
        while True:
            # jitter; not security-sensitive
            await asyncio.sleep(every * random.uniform(0.75, 1.25))
            try:
                await self.complete_abandoned()
            except StoreError as error:
                log.warning("could not look for abandoned operations: %s", error)
            except Exception:
                log.exception("could not complete abandoned operations")

    async def complete_abandoned(self, idle: float = 1.0) -> int:
        """Finish operations that a crash has abandoned; return how many were run."""
        store = self._idempotency.store
        ran = 0
        abandoned = await store.aexecute(Abandoned(completer.MOST, idle))
        for each in cast("tuple[Remembered, ...]", abandoned):
            found = await store.aexecute(completer.wanted(each))
            todo = completer.work(self._idempotency, each, found)
            if isinstance(todo, Park):
                await store.aexecute(todo)
            elif todo is not None:
                ran += await self._complete(todo)
        return ran

    async def _complete(self, todo: completer.Work) -> bool:
        idempotency = self._idempotency
        driver = idempotency.operations.resume(AsyncDriver, todo.request, todo.policy, todo.found)
        asked = todo.remembered
        scope: ASGIScope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "client": None,
            "server": None,
            **self._surroundings,
            "method": asked.method,
            "path": asked.path,
            "raw_path": asked.raw_path,
            "root_path": asked.root_path,
            "query_string": asked.query,
            "headers": list(asked.headers),
            "semel.completing": asked.scope,
        }
        base = idempotency.problem_base
        exchange = ASGIExchange(self._app, base, driver, scope, _nobody, _unheard, todo.body)
        own = self._detached.start(exchange)
        task = own.task
        try:
            await own.done
        finally:
            if not task.done():
                self._detached.add(own, exchange)
        if task.done() and task.exception() is not None:
            log.error("operation %s failed", todo.key[:6].hex(), exc_info=task.exception())
        return driver.claim is not None


async def _nobody() -> Message:
    return {"type": "http.disconnect"}


async def _unheard(message: Message) -> None:
    """The client has gone long ago."""
