"""ASGI: a middleware for Starlette, FastAPI, Litestar, Quart, Django's ASGI and bare applications.

Buffers nothing that it need not, keeps streams, background tasks and trailers, and imports no
framework. Place it inside authentication, so that a replay is authorised like any request.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import random
import sys
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
    Hashable,
    Iterable,
    Iterator,
    MutableMapping,
)
from typing import Any, cast

from semel.core import problems
from semel.core.commands import Abandoned, Answer, Park, Remembered, StoreError
from semel.core.engine import Bypass, Deliver, Outcome, Refuse, Replay, Request, run, settled
from semel.core.keys import InvalidKey, hash_key
from semel.core.policy import Policy
from semel.core.problems import Problem
from semel.core.record import Response, UnreadableRecord
from semel.core.remembered import RememberedRequest
from semel.core.steps import OutcomeUnknown, StepFenced
from semel.drivers import AsyncDriver
from semel.failpoints import failpoint
from semel.idempotency import Idempotency, Whose, named_scope, scope_name
from semel.operation import NoOperation, current
from semel.web import completer, issuer, naming
from semel.web import headers as answer_headers
from semel.web.body import Body, Intake
from semel.web.patience import within
from semel.web.replays import Kept, Replays

log = logging.getLogger("semel")

Message = MutableMapping[str, Any]
ASGIScope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[ASGIScope, Receive, Send], Awaitable[None]]

_WANTED = frozenset(
    {
        b"idempotency-key",
        b"content-type",
        b"content-encoding",
        b"content-length",
        b"authorization",
        b"cookie",
    }
)
# Would send a body past this middleware, unseen.
_UNSEEN_BODIES = ("http.response.pathsend", "http.response.zerocopysend")
DRAIN_TIMEOUT = 30.0
"""Seconds that a shutdown waits for operations whose clients have gone."""


class StreamAborted(RuntimeError):
    """A stream could not be recorded; the connection is broken off so that the client retries."""


class ASGIMiddleware:
    """Gives an ASGI application idempotency keys.

    `app.add_middleware(ASGIMiddleware, idempotency=idempotency)`, or `ASGIMiddleware(app, …)`.
    """

    def __init__(self, app: ASGIApp, idempotency: Idempotency) -> None:
        self.app = app
        self._idempotency = idempotency
        self._detached: set[asyncio.Task[None]] = set()
        self._replays = Replays()
        self._completing: asyncio.Task[None] | None = None
        self._surroundings: dict[str, Any] = {}
        self.problem_base = idempotency.problem_base
        self._keys_path = idempotency.issuer.path if idempotency.issuer is not None else None

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        kind = scope["type"]
        if kind == "http":
            if scope["path"] == self._keys_path:
                await self._issue(scope, receive, send)
                return
            policy = self._idempotency.routes.find(
                scope["method"], route_path(scope) if scope.get("root_path") else scope["path"]
            )
            if policy is not None:
                await self._covered(policy, scope, receive, send)
                return
        elif kind == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _covered(
        self, policy: Policy, scope: ASGIScope, receive: Receive, send: Send
    ) -> None:
        idempotency = self._idempotency
        if not idempotency.started and not idempotency.ready():
            await self._drain(policy, receive)
            await self.refuse(problems.STORE_UNAVAILABLE, send)
            return
        fields, found = _wanted(scope)
        if policy.next_key:
            send = self._handing_out(scope, found, send)
        if not fields and not naming.may_be_in_content(policy):
            await self._without_key(policy, scope, receive, send)
            return
        whose = self._whose(scope, found)
        request_line = (
            scope["method"],
            scope.get("raw_path") or scope["path"].encode(),
            scope.get("query_string", b""),
            found.get(b"content-type", b""),
            found.get(b"content-encoding", b""),
        )
        body = Body(policy.algorithm, *request_line)
        task = None
        try:
            refusal = await _read(policy, receive, body.write, found.get(b"content-length", b""))
            if refusal is not None:
                if isinstance(refusal, Problem):
                    await self.refuse(refusal, send, scope)
                return
            asked = None  # known again byte by byte, where nothing but these bytes names it
            if fields and idempotency.store.lookup_first and (small := body.small()) is not None:
                asked = (*fields, whose, request_line, small)
                kept = self._replays.get(asked, idempotency.store.now())
                if kept is not None:
                    await _send(kept.status, kept.headers, kept.body, send)
                    return
            owner = scope_name(whose)
            named = naming.name(idempotency, policy, fields, owner, View(scope), body)
            if named is None:
                await self._without_key(policy, scope, _Unread(body, receive), send)
                return
            policy = named.policy
            key_hash = hash_key(owner, named.key)
            outcome = None
            found_record = None if named.late else idempotency.look_up(key_hash)
            if found_record is not None:
                outcome = settled(body.fingerprint, policy, *found_record)
                if outcome is not None:
                    await self.answer(outcome, send)
                    if type(outcome) is Replay and asked is not None:
                        until = found_record.record.expires_at
                        if named.left is not None:  # then the key itself is refused
                            until = min(until, found_record.now + named.left)
                        self._keep(asked, body.size, outcome, until)
                    return
            kept_request = None
            if policy.remember_request:
                kept_request = completer.remembered(policy, body, _remember(scope, whose))
                self._complete_on(scope)
            request = Request(
                key_hash, idempotency.owner(), body.fingerprint, kept_request, late=named.late
            )
            life = run(request, policy, found_record, opens=idempotency.opens(policy))
            driver = AsyncDriver(idempotency.runtime, life, key_hash, policy.seconds)
            if found_record is not None:  # in flight: wait for it, where a cancel does no harm
                outcome = await driver.look()
                if outcome is not None and type(outcome) is not Bypass:
                    await self.answer(outcome, send)
                    return
            exchange = _Exchange(self, policy, driver, scope, receive, send, body)
            done, task = _start(exchange.operate, outcome)
        except InvalidKey as error:
            await self.refuse(problems.key_invalid(str(error)), send)
            return
        except UnreadableRecord:
            await self.refuse(problems.STORE_UNAVAILABLE, send)
            return
        finally:
            if task is None:  # else it is the operation's
                body.close()
        try:
            await done
        except asyncio.CancelledError:  # this request is; its operation goes on
            if not task.done():
                self._detached.add(task)
                task.add_done_callback(self._forget)
            raise
        task.result()

    # --- issued keys -------------------------------------------------------------------------

    async def _issue(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        _, found = _wanted(scope)
        body = bytearray()
        policy = dataclasses.replace(
            self._idempotency.routes.default, max_request_body=issuer.LARGEST
        )
        refusal = await _read(policy, receive, body.extend, found.get(b"content-length", b""))
        if isinstance(refusal, Problem):
            await self.refuse(refusal, send, scope)
        elif refusal is None:
            owner = scope_name(self._whose(scope, found))
            answer = issuer.issue(self._idempotency, owner, scope["method"], bytes(body))
            told = answer.body or b""
            headers = _with_length(answer.headers, answer.status, told)
            await _send(answer.status, headers, told, send)

    def _handing_out(self, scope: ASGIScope, found: dict[bytes, bytes], send: Send) -> Send:
        """Send answers with a fresh key for the caller's next operation."""
        issuing = self._idempotency.issuer
        assert issuing is not None
        owner = scope_name(self._whose(scope, found))

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                (key,) = issuing.issue(owner).keys
                headers = [*message.get("headers", ()), (b"idempotency-key", key.encode())]
                message = {**message, "headers": headers}
            await send(message)

        return sending

    # --- what crashes have abandoned ---------------------------------------------------------

    def _complete_on(self, scope: ASGIScope) -> None:
        """Look for abandoned operations from now on, on this event loop."""
        every = self._idempotency.complete_every
        if self._completing is not None or every is None:
            return
        self._surroundings = {name: scope[name] for name in ("app", "state") if name in scope}
        self._completing = asyncio.get_running_loop().create_task(
            self._complete_each(every.total_seconds())
        )

    async def _complete_each(self, every: float) -> None:
        while True:
            await asyncio.sleep(every * random.uniform(0.75, 1.25))  # apart, not secret
            try:
                await self.complete_abandoned()
            except StoreError as error:
                log.warning("could not look for abandoned operations: %s", error)
            except Exception:
                log.exception("could not complete abandoned operations")

    async def complete_abandoned(self, idle: float = 1.0) -> int:
        """Finish operations that a crash has abandoned; return how many were run.

        Those whose policy has `remember_request`, and whose lease ended `idle` seconds ago or
        longer: their clients come first. The handler finds `scope["semel.completing"]`, the scope
        of the first request's caller. Raises `StoreError`.
        """
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
        life = run(todo.request, todo.policy, todo.found)
        driver = AsyncDriver(idempotency.runtime, life, todo.key, todo.policy.seconds)
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
        exchange = _Exchange(self, todo.policy, driver, scope, _nobody, _unheard, todo.body)
        done, task = _start(exchange.operate, None)
        try:
            await done
        finally:
            if not task.done():
                self._detached.add(task)
                task.add_done_callback(self._forget)
        if task.done() and task.exception() is not None:
            log.error("operation %s failed", todo.key[:6].hex(), exc_info=task.exception())
        return driver.claim is not None

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._detached.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an operation whose client had gone failed", exc_info=error)

    def _whose(self, scope: ASGIScope, found: dict[bytes, bytes]) -> Whose:
        idempotency = self._idempotency
        if idempotency.scope is not None:
            return named_scope(idempotency.scope(View(scope)))
        cookie = b""
        if idempotency.session_cookie is not None and b"cookie" in found:
            cookie = _cookie(found[b"cookie"], idempotency.session_cookie.encode())
        user = authenticated_user(scope) if "user" in scope else None
        return user, found.get(b"authorization", b""), cookie

    def _keep(self, asked: Hashable, size: int, outcome: Replay, expires_at: float) -> None:
        status, headers, body = outcome.response
        fields = tuple(_with_length(answer_headers.replayed(headers), status, body or b""))
        self._replays.keep(asked, size, Kept(status, fields, body or b"", expires_at))

    async def _without_key(
        self, policy: Policy, scope: ASGIScope, receive: Receive, send: Send
    ) -> None:
        if policy.required:
            await self._drain(policy, receive)
            await self.refuse(problems.KEY_MISSING, send)
            return
        sent = read = False

        async def reading() -> Message:
            nonlocal read
            message = await receive()
            read = not message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            nonlocal sent
            sent = True
            await send(message)

        try:
            await self.app(scope, reading, sending)
        except NoOperation:  # the handler asked for the operation, so it cannot do without a key
            if sent:
                raise
            if not read:
                await self._drain(policy, receive)
            await self.refuse(problems.KEY_MISSING, send)

    async def _drain(self, policy: Policy, receive: Receive) -> None:
        """Read what is left of the body, so that the client gets an answer and not a reset."""
        await _read(policy, receive, lambda chunk: None, b"")

    async def answer(self, outcome: Outcome, send: Send) -> None:
        """Send a replay or a refusal."""
        if type(outcome) is Replay:
            response = outcome.response
            body = response.body or b""
            headers = answer_headers.replayed(response.headers)
            await _send(response.status, _with_length(headers, response.status, body), body, send)
        else:
            assert isinstance(outcome, Refuse)
            await self.refuse(outcome.problem, send)

    async def refuse(self, problem: Problem, send: Send, scope: ASGIScope | None = None) -> None:
        """Send a problem. `scope` is given where the body has not been read to its end."""
        response = problem.response(self.problem_base)
        body = response.body or b""
        headers = _with_length(response.headers, response.status, body)
        if problem is problems.BODY_TIMEOUT and scope and scope["http_version"].startswith("1"):
            headers.append((b"connection", b"close"))  # RFC 9110 section 15.5.9
        await _send(response.status, headers, body, send)

    async def _lifespan(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        async def started() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await asyncio.to_thread(self._idempotency.start)
                if completer.remembers(self._idempotency):
                    self._complete_on(scope)
            return message

        async def stopped(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                if self._completing is not None:
                    self._completing.cancel()
                if self._detached:
                    await asyncio.wait(self._detached, timeout=DRAIN_TIMEOUT)
                await asyncio.to_thread(self._idempotency.stop)
            await send(message)

        await self.app(scope, started, stopped)


class _Exchange:
    """One operation: the application's view of the request, and what becomes of its answer."""

    __slots__ = (
        "_app",
        "_body",
        "_chunks",
        "_driver",
        "_held",
        "_middleware",
        "_over",
        "_passing",
        "_policy",
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
        middleware: ASGIMiddleware,
        policy: Policy,
        driver: AsyncDriver,
        scope: ASGIScope,
        receive: Receive,
        send: Send,
        body: Body,
    ) -> None:
        self._middleware = middleware
        self._app = middleware.app
        self._policy = policy
        self._driver = driver
        self._scope = scope
        self._receive = receive
        self._send = send
        self._body = body
        self._unread = _Unread(body, receive)
        self._start: Message | None = None
        self._held: list[Message] = []  # messages that wait for the outcome
        self._chunks: list[bytes] = []  # the body as recorded so far
        self._size = 0
        self._passing = False  # the answer goes out as it is made
        self._recorded = False  # by its answer, and not by an earlier `op.commit()`
        self._over: asyncio.Future[None] | None = None

    async def operate(self, outcome: Outcome | None, done: asyncio.Future[None]) -> None:
        """Claim, run the application, and record its answer; then say so through `done`."""
        driver = self._driver
        try:
            if outcome is None:
                outcome = await driver.begin()
            if outcome is not None:
                if type(outcome) is Bypass:
                    self._passing = True
                    driver.outcome = outcome
                    await self._app(self._own_scope(), self.receive, self._forward)
                else:
                    await self._middleware.answer(outcome, self._forward)
                return
            set_before = current.set(driver)
            try:
                await self._app(self._own_scope(), self.receive, self.send)
                if driver.outcome is None:
                    raise RuntimeError("the application returned without a complete answer")
            except (StoreError, OutcomeUnknown, StepFenced) as error:  # from `op`
                log.warning("operation %s: %s", driver.key[:6].hex(), error)
                await self._raised(problems.OUTCOME_UNRECORDED)
            except BaseException:
                await self._raised()
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
        outcome = await self._finish(Response(start["status"], self._kept(start), body))
        if type(outcome) is not Deliver:
            if self._passing:
                raise StreamAborted("the stream could not be recorded")
            self._held.clear()
            await self._middleware.answer(outcome, self._forward)
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

    async def _raised(self, told: Problem | None = None) -> None:
        """The application raised: before its answer, within it, or after (a background task).

        `told` is what the client gets where nothing is kept; without it the server says it.
        """
        if self._driver.outcome is not None:
            if not self._passing and isinstance(self._driver.outcome, (Refuse, Replay)):
                self._passing = True
                await self._middleware.answer(self._driver.outcome, self._forward)
            return
        failed = problems.HANDLER_FAILED.response(self._middleware.problem_base)
        if self._passing and self._start is not None:
            failed = Response(self._start["status"], self._kept(self._start), None)
        outcome = await self._finish(failed)
        if outcome == Deliver(kept=False):
            outcome = Refuse(told) if told is not None else outcome
        elif type(outcome) is Deliver:
            outcome = Refuse(problems.HANDLER_FAILED)
        if not self._passing and type(outcome) is not Deliver:
            self._passing = True
            await self._middleware.answer(outcome, self._forward)

    async def _finish(self, response: Response) -> Outcome:
        driver = self._driver
        atomic = driver.taken
        return await driver.finish(Answer(response, atomic, self._passing))

    def _kept(self, start: Message) -> tuple[tuple[bytes, bytes], ...]:
        return answer_headers.kept(start.get("headers", ()), self._policy)

    async def _forward(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:  # ASGI 2.4: the client has gone; the operation still runs to its end
            return


class _Unread:
    """A body that was read, as the application receives it; then whatever comes after it."""

    __slots__ = ("_chunks", "_given", "_receive", "_size")

    def __init__(self, body: Body, receive: Receive) -> None:
        self._chunks: Iterator[bytes] | None = body.chunks()
        self._size = body.size
        self._given = 0
        self._receive = receive

    def next(self) -> Message | None:
        """Return the next message of the body, or None after its end."""
        if self._chunks is None:
            return None
        chunk = next(self._chunks, b"")
        self._given += len(chunk)
        more = self._given < self._size
        if not more:
            self._chunks = None
        return {"type": "http.request", "body": chunk, "more_body": more}

    async def __call__(self) -> Message:
        return self.next() or await self._receive()


def _wanted(scope: ASGIScope) -> tuple[list[bytes], dict[bytes, bytes]]:
    """Return the values of the key's header, and the other headers that are looked at."""
    found: dict[bytes, bytes] = {}
    fields: list[bytes] = []
    for name, value in scope["headers"]:
        if name in _WANTED:
            if name == b"idempotency-key":
                fields.append(value)
            elif name in found:  # doubled: HTTP/2 may split cookies, RFC 9113 section 8.2.3
                found[name] += (b"; " if name == b"cookie" else b", ") + value
            else:
                found[name] = value
    return fields, found


class View:
    """What a `scope` function sees of an ASGI request."""

    __slots__ = ("method", "native", "path")

    def __init__(self, scope: ASGIScope) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.native = scope

    def header(self, name: str) -> str | None:
        wanted = name.lower().encode("latin-1")
        values = [value for field, value in self.native["headers"] if field == wanted]
        return b", ".join(values).decode("latin-1") if values else None


def _start(
    operate: Callable[[Outcome | None, asyncio.Future[None]], Coroutine[Any, Any, None]],
    outcome: Outcome | None,
) -> tuple[asyncio.Future[None], asyncio.Task[None]]:
    """Run an operation in a task of its own, which nobody cancels with the request.

    Its future rather than the task is awaited: a cancelled wait leaves the task alone, and the
    future wakes its waiter a turn of the loop earlier than a shielded task would.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    if sys.version_info >= (3, 12):
        task = asyncio.Task(operate(outcome, done), loop=loop, eager_start=True)
    else:
        task = loop.create_task(operate(outcome, done))
    task.add_done_callback(functools.partial(_settle, done))
    return done, task


def _settle(done: asyncio.Future[None], task: asyncio.Task[None]) -> None:
    """Wake the request of a task that was cancelled before its first step and could not."""
    if not done.done():
        done.set_result(None)


def _remember(scope: ASGIScope, whose: Whose) -> RememberedRequest:
    return RememberedRequest(
        scope["method"],
        scope["path"],
        scope.get("raw_path") or scope["path"].encode(),
        scope.get("root_path", ""),
        scope.get("query_string", b""),
        tuple(scope["headers"]),
        scope_name(whose),
        "",
        b"",
    )


async def _nobody() -> Message:
    return {"type": "http.disconnect"}


async def _unheard(message: Message) -> None:
    """The client has gone long ago."""


async def _read(
    policy: Policy, receive: Receive, write: Callable[[bytes], object], length: bytes
) -> Problem | bool | None:
    """Read the body to its end. A problem, True where the client has gone, or None."""
    refusal: Problem | None = None
    if length.isdigit() and int(length) > policy.max_request_body:
        refusal = problems.request_too_large(policy.max_request_body)
    intake = None
    left = policy.seconds.body_timeout
    while True:
        try:
            message = await within(left, receive())
        except TimeoutError:
            return problems.BODY_TIMEOUT
        if message["type"] == "http.disconnect":
            return True
        chunk = message.get("body", b"")
        if intake is None:
            if not message.get("more_body", False) and len(chunk) <= policy.max_request_body:
                write(chunk)
                return refusal
            intake = Intake(policy)
        too_large = intake.count(len(chunk))
        if too_large is not None:
            return too_large
        if refusal is None and chunk:
            write(chunk)
        if not message.get("more_body", False):
            return refusal
        left = intake.left()


def _with_length(
    headers: Iterable[tuple[bytes, bytes]], status: int, body: bytes
) -> list[tuple[bytes, bytes]]:
    fields = list(headers)
    has_body = status >= 200 and status not in (204, 304)
    if has_body and all(name != b"content-length" for name, _ in fields):
        fields.append((b"content-length", b"%d" % len(body)))
    return fields


async def _send(
    status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes, send: Send
) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


def route_path(scope: ASGIScope) -> str:
    """The path as the application's own routes are written, without where it is mounted."""
    path: str = scope["path"]
    root: str = scope["root_path"]
    if path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :]
    return path


def _cookie(header: bytes, name: bytes) -> bytes:
    for part in header.split(b";"):
        found, _, value = part.strip().partition(b"=")
        if found == name:
            return value
    return b""


def authenticated_user(scope: ASGIScope) -> str | None:
    """The framework's authenticated user (Starlette's and Django's `scope["user"]`)."""
    user = scope["user"]
    if not getattr(user, "is_authenticated", False):
        return None
    for attribute in ("identity", "pk", "username"):
        try:
            value = getattr(user, attribute, None)
        except NotImplementedError:
            continue
        if value:
            return str(value)
    raise TypeError(
        f"{type(user).__name__} has no identity, pk or username that tells callers apart: name the"
        " caller with Idempotency(scope=…)"
    )
