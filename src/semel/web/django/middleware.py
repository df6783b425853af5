"""The Django middleware: the engine of ASGI's and WSGI's, where the user and the view are known.

It reads key and body when the request comes by, and claims in `process_view`, after those of the
middleware before it: CSRF protection, LoginRequiredMiddleware. The answer is recorded when the
response comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from asgiref.sync import (
    SyncToAsync,
    ThreadSensitiveContext,
    iscoroutinefunction,
    markcoroutinefunction,
    sync_to_async,
)
from django.db import connections
from django.http import HttpRequest

from semel.core import problems
from semel.core.commands import StoreError
from semel.core.engine import Bypass, Refuse
from semel.operation import current, unkeyed
from semel.runtime.drivers import AsyncDriver, ServerThreadDriver
from semel.runtime.operations import Driver
from semel.stores.django.transaction import DjangoTransaction
from semel.web.asgi.tasks import OwnTasks
from semel.web.django import answers, rules
from semel.web.django.body import declared
from semel.web.django.callers import authorize
from semel.web.django.checks import look_at
from semel.web.django.conf import configured
from semel.web.django.errors import note_errors
from semel.web.django.exchange import DjangoExchange, exchange_of
from semel.web.django.streams import AsyncPassingStream, PassingStream, aconsume, consume
from semel.web.http.body import HASHED_AT_ONCE

__all__ = ["IdempotencyMiddleware"]

log = logging.getLogger("semel")


class IdempotencyMiddleware:
    """`"semel.web.django.middleware.IdempotencyMiddleware"`, after AuthenticationMiddleware.

    For WSGI and ASGI, sync and async views. Rules come from `SEMEL` in the settings and
    `idempotency_policy` at the view. Raises `ImproperlyConfigured` where they make no sense.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response
        self._service = configured()
        self._idempotency = self._service.idempotency
        note_errors()
        self._own_tasks = OwnTasks()
        self._detached: set[asyncio.Task[Any]] = set()
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)
            self.process_view = self._process_async_view  # type: ignore[method-assign]

    def __call__(self, request: HttpRequest) -> Any:
        """Serve one request."""
        if not self._service.looked_at:
            look_at(self._service)
        there = exchange_of(request)
        if there is not None and not there.served:  # in MIDDLEWARE twice
            return self.get_response(request)
        if iscoroutinefunction(self):
            return self._serve(request)
        policy = rules.find(self._idempotency, request)
        if policy is None:
            return self.get_response(request)
        exchange = DjangoExchange(self._idempotency, policy, request)
        before = unkeyed.set(exchange.missed)
        try:
            exchange.receive()
            response = self.get_response(request)
            return exchange.handing_out(self._answered(exchange, response))
        except BaseException:
            if not exchange.over:
                exchange.driver.finish(exchange.failed())
            raise
        finally:
            unkeyed.reset(before)
            current.set(None)
            exchange.close()

    def process_exception(self, request: HttpRequest, error: Exception) -> Any:
        """Answer what `op` has raised in the view."""
        exchange = exchange_of(request)
        return exchange.raised(error) if exchange is not None else None

    # --- on threads ------------------------------------------------------------------------

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> Any:
        """Claim. Returns the answer where the view is not to run."""
        exchange = exchange_of(request)
        if exchange is None or not exchange.enters():
            return None
        driver = self._admit(ServerThreadDriver, exchange, view, args, kwargs)
        if not isinstance(driver, ServerThreadDriver):
            return driver
        outcome = driver.begin()
        if outcome is not None:
            return self._told(outcome)
        exchange.driver = driver
        if exchange.wraps:
            try:
                driver.transaction = self._idempotency.store.begin()
            except StoreError as error:
                log.warning("operation %s: %s", driver.key[:6].hex(), error)
                driver.finish(exchange.not_begun())
                return self._told(Refuse(problems.STORE_UNAVAILABLE))
            driver.taken = True
        current.set(driver)
        return None

    def _answered(self, exchange: DjangoExchange, response: Any) -> Any:
        if exchange.over:
            return exchange.unprotected(response)
        if response.streaming and exchange.passes:
            PassingStream(exchange, response).take_over()
            return response
        body, chunks = consume(exchange, response)
        outcome = exchange.driver.finish(exchange.answer(response, body))
        return exchange.sent(outcome, response, chunks)

    # --- on an event loop ------------------------------------------------------------------

    async def _serve(self, request: HttpRequest) -> Any:
        policy = rules.find(self._idempotency, request)
        if policy is None:
            return await self.get_response(request)
        exchange = DjangoExchange(self._idempotency, policy, request)
        if declared(request) > HASHED_AT_ONCE or not self._idempotency.started:
            await sync_to_async(exchange.receive, thread_sensitive=True)()
        else:
            exchange.receive()
        before = unkeyed.set(exchange.missed)
        try:
            if not exchange.may_have_operation:
                return exchange.unprotected(await self.get_response(request))
            return await self._detachable(exchange)
        finally:
            unkeyed.reset(before)

    async def _detachable(self, exchange: DjangoExchange) -> Any:
        # In a task of its own, which nobody cancels with the request: it runs on to its end.
        own = self._own_tasks.start(lambda done: self._operate(exchange))
        task = own.task
        try:
            await own.done
        except asyncio.CancelledError:
            if not task.done():
                own.give_up()
                self._detached.add(task)
                task.add_done_callback(self._forget)
                if exchange.cancels and exchange.driver is not None:
                    task.cancel()
            raise
        own.restore()
        return task.result()

    async def _operate(self, exchange: DjangoExchange) -> Any:
        async with _own_thread():
            try:
                response = await self.get_response(exchange.request)
                return exchange.handing_out(await self._aanswered(exchange, response))
            except BaseException as error:
                if not exchange.over:
                    ended = isinstance(error, asyncio.CancelledError)
                    came = exchange.cut_off() if ended else exchange.failed()
                    await exchange.driver.finish(came)
                raise
            finally:
                current.set(None)
                exchange.close()
                if exchange.driver is not None:
                    transaction = exchange.driver.transaction
                    if isinstance(transaction, DjangoTransaction):
                        await transaction.ended()

    async def _process_async_view(
        self, request: HttpRequest, view: Any, args: Any, kwargs: Any
    ) -> Any:
        exchange = exchange_of(request)
        if exchange is None or not exchange.enters():
            return None
        admit = sync_to_async(self._admit, thread_sensitive=True)
        driver = await admit(AsyncDriver, exchange, view, args, kwargs)
        if not isinstance(driver, AsyncDriver):
            return driver
        outcome = await driver.begin()
        if outcome is not None:
            return self._told(outcome)
        exchange.driver = driver
        if exchange.wraps:
            try:
                driver.transaction = await self._idempotency.store.abegin()
            except StoreError as error:
                log.warning("operation %s: %s", driver.key[:6].hex(), error)
                await driver.finish(exchange.not_begun())
                return self._told(Refuse(problems.STORE_UNAVAILABLE))
            driver.taken = True
        current.set(driver)
        return None

    async def _aanswered(self, exchange: DjangoExchange, response: Any) -> Any:
        if exchange.over:
            return exchange.unprotected(response)
        if response.streaming and exchange.passes:
            response.streaming_content = AsyncPassingStream(exchange, response)
            return response
        body, chunks = await aconsume(exchange, response)
        outcome = await exchange.driver.finish(exchange.answer(response, body))
        return exchange.sent(outcome, response, chunks)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._detached.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an operation whose client had gone failed", exc_info=error)

    # --- both ------------------------------------------------------------------------------

    def _admit(
        self, kind: type[Driver], exchange: DjangoExchange, view: Any, args: Any, kwargs: Any
    ) -> Driver | Any:
        """The driver of the operation; or the response; or None: the view runs unprotected."""
        who = authorize(self._service, exchange.policy, exchange.request, view, args, kwargs)
        if who.refusal is not None:
            return who.refusal
        if exchange.refusal is not None:
            return self._told(self._idempotency.operations.refuse(exchange.refusal))
        admitted = exchange.admit(kind, who.caller)
        return admitted if admitted is None or isinstance(admitted, kind) else self._told(admitted)

    def _told(self, outcome: Any) -> Any:
        """The response to a request whose view is not to run; None: it runs unprotected."""
        if isinstance(outcome, Bypass):
            return None
        return answers.told(outcome, self._idempotency.problem_base)


@contextlib.asynccontextmanager
async def _own_thread() -> AsyncIterator[None]:
    """Have the ORM of this operation run on a thread of its own, as Django gives each request one.

    The request's own ends with its client; the operation, and its transaction, do not. Where there
    is none (a test's) the one that is there is used.
    """
    if SyncToAsync.thread_sensitive_context.get(None) is None:
        yield
        return
    own = ThreadSensitiveContext()
    SyncToAsync.thread_sensitive_context.set(own)
    try:
        yield
    finally:
        await sync_to_async(connections.close_all, thread_sensitive=True)()
        executor = SyncToAsync.context_to_thread_executor.pop(own, None)
        if executor is not None:
            executor.shutdown(wait=False)
