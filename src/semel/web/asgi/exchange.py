"""One operation under ASGI: runs the application, and records its response on the way out."""

from __future__ import annotations

import asyncio
import logging

from semel.core import failures
from semel.core.commands import Answer
from semel.core.engine import Bypass, Deliver, Refuse, Replay
from semel.core.record import Response
from semel.failpoints import failpoint
from semel.operation import current
from semel.runtime.drivers import AsyncDriver
from semel.runtime.servers import STREAMS_END
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
from semel.web.asgi.tasks import OwnTask, OwnTasks
from semel.web.http import headers as answer_headers
from semel.web.http.body import Body

log = logging.getLogger("semel")

# Would send a body past this middleware, unseen.
_UNSEEN_BODIES = ("http.response.pathsend", "http.response.zerocopysend")


RECORDING = 5.0
"""Seconds that a shutdown leaves to operations that it has ended, to record that."""


class StreamAborted(RuntimeError):
    """A stream could not be recorded; the connection is broken off so that the client retries."""


class ClientLeft(OSError):
    """The client has left, and its leaving may end the handler; ASGI 2.4 has `send` raise it."""


class ASGIExchange:
    """One operation: the application's view of the request, and what becomes of its response."""

    __slots__ = (
        "_app",
        "_body",
        "_cancels",
        "_chunks",
        "_complete",
        "_done",
        "_driver",
        "_ended",
        "_gone",
        "_held",
        "_leaving",
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
        self._complete = False  # the last of the body has been sent
        self._over: asyncio.Future[None] | None = None
        self._cancels = driver.policy.on_disconnect == "cancel"
        self._leaving: asyncio.Task[None] | None = None  # ends when the client leaves
        self._gone = False  # it has left
        self._ended = False  # by `end`

    @property
    def cancels(self) -> bool:
        """Whether the client's leaving is to end the handler."""
        return self._cancels

    @property
    def streams(self) -> bool:
        """Whether its response goes out as it is made."""
        return self._passing

    @property
    def settled(self) -> bool:
        """Whether its outcome is recorded, so that its end makes no difference to a retry."""
        return self._driver.outcome is not None

    def end(self, task: asyncio.Task[None]) -> None:
        """End the handler, which runs in `task`: nobody waits for it any more."""
        self._ended = True
        task.cancel()

    async def operate(self, done: asyncio.Future[None]) -> None:
        """Claim, run the application, and record its answer; its request awaits `done`."""
        driver = self._driver
        self._done = done
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
                if self._cancels:
                    self._watch()
                await self._app(self._own_scope(), self.receive, self.send)
                if driver.outcome is None:
                    raise RuntimeError("the application returned without a complete answer")
            except failures.OPERATION_ERRORS as error:
                log.warning("operation %s: %s", driver.key[:6].hex(), error)
                await self._raised(error)
            except BaseException as error:
                if not await self._was_cut_off(error):
                    await self._raised(error)
                    raise
            finally:
                current.reset(set_before)
        finally:
            self._body.close()
            if self._leaving is not None:
                self._leaving.cancel()
            if self._over is not None and not self._over.done():
                self._over.set_result(None)

    def _own_scope(self) -> ASGIScope:
        extensions = self._scope.get("extensions")
        if not extensions or not any(name in extensions for name in _UNSEEN_BODIES):
            return self._scope
        seen = {name: v for name, v in extensions.items() if name not in _UNSEEN_BODIES}
        return {**self._scope, "extensions": seen}

    async def receive(self) -> Message:
        """Give the application the body that was read, then nothing until the answer is out.

        A disconnect is kept from it while the operation is to run to its end.
        """
        message = self._unread.next()
        if message is not None:
            return message
        if self._driver.outcome is None and not self._cancels:
            if self._over is None:
                self._over = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._over])
        if self._leaving is None:
            return await self._receive()
        if not self._gone:
            await asyncio.wait([self._leaving])
        return {"type": "http.disconnect"}

    def _watch(self) -> None:
        """Notice when the client leaves; from now on nobody else reads what the server says."""
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._leave())

    async def _leave(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
        self._gone = True
        if not self._cancels and not self._done.done():
            self._done.set_result(None)  # a server that shuts down need not wait for the request

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
            await self._take_part(start, message)
            return
        if self._driver.exits:
            await self._driver.leave()
        self._end_with_client()
        body = None
        if fits:
            body = b"".join((*self._chunks, chunk)) if self._chunks else bytes(chunk)
        self._chunks.clear()
        self._recorded = True
        self._complete = not more
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
        if more:
            self._watch()
            self._tell_of_disconnects()
        await self._forward(message)
        if not more:
            failpoint("after_answer")

    async def _take_part(self, start: Message, message: Message) -> None:
        """Take a part of a stream: held until the outcome is known, or passed on."""
        if not self._passing:
            if self._driver.transaction is not None or self._policy.guarantee == "atomic":
                self._held.append(message)
                return
            self._passing = True
            self._watch()
            await self._pass_on(start)
        await self._pass_on(message)

    async def _after_the_end(self, message: Message) -> None:
        """The record is complete: trailers, the rest of a stream, or an answer after `op.commit()`.

        Where the outcome was not the application's own answer, the rest of that is dropped.
        """
        if type(self._driver.outcome) is not Deliver:
            return
        self._tell_of_disconnects()  # `op.commit()`
        forward = self._forward if self._complete else self._pass_on
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
            self._complete = self._complete or not message.get("more_body", False)
            await forward(message)

    def _tell_of_disconnects(self) -> None:
        """Let the application hear of its client's leaving, which may end it by now."""
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

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

    async def _was_cut_off(self, error: BaseException) -> bool:
        """Say whether it was ended before its end, by its client or by `end`; then record that."""
        driver = self._driver
        left = self._gone or isinstance(error, asyncio.CancelledError)
        if not self._ended and not (left and self._may_end and not self._complete):
            return False
        failpoint("cut_off")
        log.info(
            "operation %s was ended: its client had left", driver.key[:6].hex(), exc_info=error
        )
        if driver.outcome is None:
            atomic = driver.taken
            await driver.finish(
                failures.cut_off(self._problem_base, policy=self._policy, atomic=atomic)
            )
        return True

    @property
    def _may_end(self) -> bool:
        """Whether the client's leaving may end the handler."""
        return self._cancels or self._driver.outcome is not None

    async def _pass_on(self, message: Message) -> None:
        """Send a part of a stream; once its client has left, end it where that may be."""
        if not self._may_end:
            await self._forward(message)
            return
        if self._gone:
            raise ClientLeft("the client left before the stream had ended")
        try:
            await self._send(message)
        except OSError:
            self._gone = True
            raise

    def _end_with_client(self) -> None:
        """Raise, at the end of a stream whose client has left: its handler has been told of that,
        so that this need not be all of it."""
        if self._cancels and self._gone and (self._passing or self._held):
            raise ClientLeft("the client left before the stream had ended")

    async def _forward(self, message: Message) -> None:
        if self._gone:
            return
        try:
            await self._send(message)
        except OSError:  # ASGI 2.4: the client has gone; the operation still runs to its end
            return


class Detached:
    """Operations whose requests have ended before them."""

    def __init__(self) -> None:
        self._own = OwnTasks()
        self._running: dict[asyncio.Task[None], ASGIExchange] = {}

    def start(self, exchange: ASGIExchange) -> OwnTask[None]:
        """Run an operation in a task of its own, which nobody cancels with the request."""
        return self._own.start(exchange.operate)

    async def outlive(self, own: OwnTask[None], exchange: ASGIExchange) -> None:
        """Await an operation, which goes on where the request that awaits it is cancelled.

        Unless it is not to outlive its client.
        """
        task = own.task
        try:
            await own.done
        except asyncio.CancelledError:
            if not task.done():
                self.add(own, exchange)
                if exchange.cancels:
                    exchange.end(task)
            raise
        if task.done():
            own.restore()
            task.result()
        else:
            self.add(own, exchange)

    def add(self, own: OwnTask[None], exchange: ASGIExchange) -> None:
        """Hold an operation until it has ended; its request waits no more."""
        own.give_up()
        task = own.task
        self._running[task] = exchange
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an operation whose client had gone failed", exc_info=error)

    async def drain(self, seconds: float) -> None:
        """Wait for them, `seconds` at most, then end those that are left.

        Streams, which may be endless, are given a second of it, or none where nothing of them is
        kept in any case.
        """
        streams = [each for each in self._running.items() if each[1].streams]
        await self._end([each for each in streams if each[1].settled], 0.0)
        await self._end(streams, min(seconds, STREAMS_END))
        await self._end(list(self._running.items()), max(0.0, seconds - STREAMS_END))

    async def _end(
        self, running: list[tuple[asyncio.Task[None], ASGIExchange]], after: float
    ) -> None:
        tasks = {task for task, _ in running}
        if tasks and after:
            await asyncio.wait(tasks, timeout=after)
        late = [(task, exchange) for task, exchange in running if not task.done()]
        for task, exchange in late:
            exchange.end(task)
        if late:  # they record how they ended
            await asyncio.wait([task for task, _ in late], timeout=RECORDING)
