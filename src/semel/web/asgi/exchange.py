"""One operation under ASGI: runs the application, and records its response on the way out."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from semel.core import failures
from semel.core.commands import Answer
from semel.core.engine import Bypass, Deliver, Refuse, Replay
from semel.core.record import Response
from semel.failpoints import failpoint
from semel.operation import current
from semel.runtime.drivers import AsyncDriver
from semel.web.asgi.messages import (
    ASGIApp,
    ASGIScope,
    Message,
    Receive,
    Send,
    Unread,
    is_reused,
    send_outcome,
)
from semel.web.asgi.slashes import redirects
from semel.web.http import headers as answer_headers
from semel.web.http.body import Body

log = logging.getLogger("semel")

# Would send a body past this middleware, unseen.
_UNSEEN_BODIES = ("http.response.pathsend", "http.response.zerocopysend")


class StreamAborted(RuntimeError):
    """A stream could not be recorded; the connection is broken off so that the client retries."""


class ASGIExchange:
    """One operation: the application's view of the request, and what becomes of its response."""

    __slots__ = (
        "_app",
        "_body",
        "_chunks",
        "_driver",
        "_held",
        "_over",
        "_passing",
        "_policy",
        "_problem_base",
        "_receive",
        "_recorded",
        "_scope",
        "_send",
        "_size",
        "_start",
        "_unread",
    )

    def __init__(
        self,
        app: ASGIApp,
        problem_base: str,
        driver: AsyncDriver,
        scope: ASGIScope,
        receive: Receive,
        send: Send,
        body: Body,
    ) -> None:
        self._app = app
        self._problem_base = problem_base
        self._policy = driver.policy
        self._driver = driver
        self._scope = scope
        self._receive = receive
        self._send = send
        self._body = body
        self._unread = Unread(body, receive)
        self._start: Message | None = None
        self._held: list[Message] = []  # messages that wait for the outcome
        self._chunks: list[bytes] = []  # the body as recorded so far
        self._size = 0
        self._passing = False  # the answer goes out as it is made
        self._recorded = False  # by its answer, and not by an earlier `op.commit()`
        self._over: asyncio.Future[None] | None = None

    async def operate(self, done: asyncio.Future[None]) -> None:
        """Claim, run the application, and record its answer; then say so through `done`."""
        driver = self._driver
        try:
            outcome = driver.outcome  # `Bypass`, where a look at the record has found it
            if outcome is None:
                outcome = await driver.begin()
            if outcome is not None:
                if type(outcome) is Bypass or (
                    is_reused(outcome) and redirects(self._app, self._scope)
                ):
                    self._passing = True
                    await self._app(self._own_scope(), self.receive, self._forward)
                else:
                    await send_outcome(outcome, self._problem_base, self._forward)
                return
            set_before = current.set(driver)
            try:
                await self._app(self._own_scope(), self.receive, self.send)
                if driver.outcome is None:
                    raise RuntimeError("the application returned without a complete answer")
            except failures.OPERATION_ERRORS as error:
                log.warning("operation %s: %s", driver.key[:6].hex(), error)
                await self._raised(error)
            except BaseException as error:
                await self._raised(error)
                raise
            finally:
                current.reset(set_before)
        finally:
            self._body.close()
            for waiting in (self._over, done):
                if waiting is not None and not waiting.done():
                    waiting.set_result(None)

    def _own_scope(self) -> ASGIScope:
        extensions = self._scope.get("extensions")
        if not extensions or not any(name in extensions for name in _UNSEEN_BODIES):
            return self._scope
        seen = {name: v for name, v in extensions.items() if name not in _UNSEEN_BODIES}
        return {**self._scope, "extensions": seen}

    async def receive(self) -> Message:
        """Give the application the body that was read, then nothing until the answer is out.

        A disconnect is kept from it while the operation runs: it is to run to its end.
        """
        message = self._unread.next()
        if message is not None:
            return message
        if self._driver.outcome is None:
            if self._over is None:
                self._over = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._over])
        return await self._receive()

    async def send(self, message: Message) -> None:
        """Take the application's answer."""
        kind = message["type"]
        if self._driver.outcome is not None:
            await self._after_the_end(message)
        elif kind == "http.response.start":
            self._start = message
        elif kind == "http.response.body":
            await self._take(message)
        elif self._start is None or self._passing:
            await self._forward(message)  # early hints, debug
        else:
            self._held.append(message)

    async def _take(self, message: Message) -> None:
        chunk: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        start = self._start
        if start is None:
            raise RuntimeError("the application sent a body before it started its answer")
        self._size += len(chunk)
        fits = self._size <= self._policy.max_response_body
        if fits and more:
            self._chunks.append(bytes(chunk))
            if self._passing:
                await self._forward(message)
            elif self._driver.transaction is not None or self._policy.guarantee == "atomic":
                self._held.append(message)
            else:
                self._passing = True
                await self._forward(start)
                await self._forward(message)
            return
        body = None
        if fits:
            body = b"".join((*self._chunks, chunk)) if self._chunks else bytes(chunk)
        self._chunks.clear()
        self._recorded = True
        answer = Answer(self._started_response(body), self._driver.taken, self._passing)
        outcome = await self._driver.finish(answer)
        if type(outcome) is not Deliver:
            if self._passing:
                raise StreamAborted("the stream could not be recorded")
            self._held.clear()
            await send_outcome(outcome, self._problem_base, self._forward)
            return
        failpoint("before_answer")
        if not self._passing:
            await self._forward(start)
            for held in self._held:
                await self._forward(held)
            self._held.clear()
        self._passing = True
        await self._forward(message)
        if not more:
            failpoint("after_answer")

    async def _after_the_end(self, message: Message) -> None:
        """The record is complete: trailers, the rest of a stream, or an answer after `op.commit()`.

        Where the outcome was not the application's own answer, the rest of that is dropped.
        """
        if type(self._driver.outcome) is not Deliver:
            return
        if self._over is not None and not self._over.done():
            self._over.set_result(None)  # `op.commit()`: a disconnect may end the stream by now
        forward = self._forward if self._recorded else self._send
        if not self._passing and message["type"] != "http.response.start":
            self._passing = True
            if self._start is not None:
                await forward(self._start)
                for held in self._held:
                    await forward(held)
                self._held.clear()
        if message["type"] == "http.response.start":
            self._start = message
        else:
            await forward(message)

    async def _raised(self, error: BaseException) -> None:
        """The application raised: before its response, within it, or after (a background task)."""
        driver = self._driver
        if driver.outcome is None:
            sent = self._started_response(None) if self._passing and self._start else None
            failed = failures.failed(self._problem_base, atomic=driver.taken, sent=sent)
            outcome = failures.told(await driver.finish(failed), error)
        else:  # it is over: by `op.commit()`, or by a response that has been withheld
            outcome = driver.outcome
        if not self._passing and type(outcome) in (Refuse, Replay):
            self._passing = True
            await send_outcome(outcome, self._problem_base, self._forward)

    def _started_response(self, body: bytes | None) -> Response:
        """The application's response, with so much of its body as is kept."""
        start = self._start
        assert start is not None
        kept = answer_headers.kept(start.get("headers", ()), self._policy)
        return Response(start["status"], kept, body)

    async def _forward(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:  # ASGI 2.4: the client has gone; the operation still runs to its end
            return


def start_operation(
    operate: Callable[[asyncio.Future[None]], Coroutine[Any, Any, None]],
) -> tuple[asyncio.Future[None], asyncio.Task[None]]:
    """Run an operation in a task of its own, which nobody cancels with the request.

    Its future rather than the task is awaited: a cancelled wait leaves the task alone, and the
    future wakes its waiter a turn of the loop earlier than a shielded task would.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    if sys.version_info >= (3, 12):
        task = asyncio.Task(operate(done), loop=loop, eager_start=True)
    else:
        task = loop.create_task(operate(done))
    task.add_done_callback(functools.partial(_settle, done))
    return done, task


def _settle(done: asyncio.Future[None], task: asyncio.Task[None]) -> None:
    """Wake the request of a task that was cancelled before its first step and could not."""
    if not done.done():
        done.set_result(None)


class Detached:
    """Operations whose requests have ended before them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def outlive(self, done: asyncio.Future[None], task: asyncio.Task[None]) -> None:
        """Await an operation, which goes on where the request that awaits it is cancelled."""
        try:
            await done
        except asyncio.CancelledError:
            if not task.done():
                self.add(task)
            raise
        task.result()

    def add(self, task: asyncio.Task[None]) -> None:
        """Hold an operation until it has ended."""
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an operation whose client had gone failed", exc_info=error)

    async def wait(self, timeout: float) -> None:
        """Wait for all of them, `timeout` seconds at most."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
