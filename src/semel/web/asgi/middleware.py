"""ASGI: a middleware for Starlette, FastAPI, Litestar, Quart, Django's ASGI and bare applications.

Buffers nothing that it need not, keeps streams, background tasks and trailers, and imports no
framework. Place it inside authentication, so that a replay is authorised like any request.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
from collections.abc import Hashable
from typing import Any, cast

from semel.core import problems
from semel.core.commands import Abandoned, Park, Remembered, StoreError
from semel.core.engine import Bypass, Replay, Request, run, settled
from semel.core.keys import InvalidKey, hash_key
from semel.core.policy import Policy
from semel.core.problems import Problem
from semel.core.record import UnreadableRecord
from semel.core.remembered import RememberedRequest
from semel.idempotency import Idempotency, Whose, named_scope, scope_name
from semel.operation import NoOperation
from semel.runtime.drivers import AsyncDriver
from semel.web.asgi.exchange import Exchange, start_operation
from semel.web.asgi.messages import (
    ASGIApp,
    ASGIScope,
    Message,
    Receive,
    Send,
    Unread,
    View,
    authenticated_user,
    cookie_value,
    read_body,
    route_path,
    send_outcome,
    send_problem,
    send_whole,
    wanted,
    with_length,
)
from semel.web.asgi.replays import Kept, Replays
from semel.web.http import completer
from semel.web.http import headers as answer_headers
from semel.web.http import issue as issuer
from semel.web.http import key_source as naming
from semel.web.http.body import Body

log = logging.getLogger("semel")

DRAIN_TIMEOUT = 30.0
"""Seconds that a shutdown waits for operations whose clients have gone."""


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
            await send_problem(problems.STORE_UNAVAILABLE, self.problem_base, send)
            return
        fields, found = wanted(scope)
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
            refusal = await read_body(
                policy, receive, body.write, found.get(b"content-length", b"")
            )
            if refusal is not None:
                if isinstance(refusal, Problem):
                    await send_problem(refusal, self.problem_base, send, scope)
                return
            asked = None  # known again byte by byte, where nothing but these bytes names it
            if fields and idempotency.store.lookup_first and (small := body.small()) is not None:
                asked = (*fields, whose, request_line, small)
                kept = self._replays.get(asked, idempotency.store.now())
                if kept is not None:
                    await send_whole(kept.status, kept.headers, kept.body, send)
                    return
            owner = scope_name(whose)
            named = naming.name(idempotency, policy, fields, owner, View(scope), body)
            if named is None:
                await self._without_key(policy, scope, Unread(body, receive), send)
                return
            policy = named.policy
            key_hash = hash_key(owner, named.key)
            outcome = None
            found_record = None if named.late else idempotency.look_up(key_hash)
            if found_record is not None:
                outcome = settled(body.fingerprint, policy, *found_record)
                if outcome is not None:
                    await send_outcome(outcome, self.problem_base, send)
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
                    await send_outcome(outcome, self.problem_base, send)
                    return
            exchange = Exchange(
                self.app, self.problem_base, policy, driver, scope, receive, send, body
            )
            done, task = start_operation(exchange.operate, outcome)
        except InvalidKey as error:
            await send_problem(problems.key_invalid(str(error)), self.problem_base, send)
            return
        except UnreadableRecord:
            await send_problem(problems.STORE_UNAVAILABLE, self.problem_base, send)
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
        _, found = wanted(scope)
        body = bytearray()
        policy = dataclasses.replace(
            self._idempotency.routes.default, max_request_body=issuer.LARGEST
        )
        refusal = await read_body(policy, receive, body.extend, found.get(b"content-length", b""))
        if isinstance(refusal, Problem):
            await send_problem(refusal, self.problem_base, send, scope)
        elif refusal is None:
            owner = scope_name(self._whose(scope, found))
            answer = issuer.issue(self._idempotency, owner, scope["method"], bytes(body))
            told = answer.body or b""
            headers = with_length(answer.headers, answer.status, told)
            await send_whole(answer.status, headers, told, send)

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
        exchange = Exchange(
            self.app, self.problem_base, todo.policy, driver, scope, _nobody, _unheard, todo.body
        )
        done, task = start_operation(exchange.operate, None)
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
            cookie = cookie_value(found[b"cookie"], idempotency.session_cookie.encode())
        user = authenticated_user(scope) if "user" in scope else None
        return user, found.get(b"authorization", b""), cookie

    def _keep(self, asked: Hashable, size: int, outcome: Replay, expires_at: float) -> None:
        status, headers, body = outcome.response
        fields = tuple(with_length(answer_headers.replayed(headers), status, body or b""))
        self._replays.keep(asked, size, Kept(status, fields, body or b"", expires_at))

    async def _without_key(
        self, policy: Policy, scope: ASGIScope, receive: Receive, send: Send
    ) -> None:
        if policy.required:
            await self._drain(policy, receive)
            await send_problem(problems.KEY_MISSING, self.problem_base, send)
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
            await send_problem(problems.KEY_MISSING, self.problem_base, send)

    async def _drain(self, policy: Policy, receive: Receive) -> None:
        """Read what is left of the body, so that the client gets an answer and not a reset."""
        await read_body(policy, receive, lambda chunk: None, b"")

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


async def _nobody() -> Message:
    return {"type": "http.disconnect"}


async def _unheard(message: Message) -> None:
    """The client has gone long ago."""


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
