"""The ASGI middleware: for Starlette, FastAPI, Litestar, Quart and bare applications.

Buffers nothing that it need not, keeps streams, background tasks and trailers, and imports no
framework. Place it inside authentication, so that a replay is authorised like any request.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from semel.applications import Endpoint
from semel.core import problems
from semel.core.engine import Bypass, Replay
from semel.core.policy import Policy
from semel.core.problems import Problem
from semel.core.remembered import RememberedRequest
from semel.idempotency import Idempotency
from semel.runtime.drivers import AsyncDriver
from semel.runtime.operations import Known
from semel.web.asgi.completing import Completing
from semel.web.asgi.endpoints import endpoints_of, layers_of
from semel.web.asgi.exchange import ASGIExchange, Detached
from semel.web.asgi.messages import (
    OPERATION,
    SERVED,
    ASGIApp,
    ASGIScope,
    ASGIView,
    Ask,
    Message,
    Receive,
    Send,
    Unread,
    is_reused,
    looked_at,
    read_body,
    route_path,
    send_outcome,
    send_problem,
    send_whole,
    wanted,
    with_length,
)
from semel.web.asgi.raised import note_within
from semel.web.asgi.replays import CachedResponse, Replays
from semel.web.asgi.slashes import redirects
from semel.web.asgi.unkeyed import UnkeyedRun
from semel.web.http import admission, issue, key_source
from semel.web.http import headers as answer_headers
from semel.web.http.body import Body
from semel.web.http.callers import (
    ANONYMOUS,
    Caller,
    caller_of,
    credential_headers,
    one_way_to_ask,
    scope_name,
)

log = logging.getLogger("semel")


class ASGIMiddleware:
    """Gives an ASGI application idempotency keys.

    `app.add_middleware(ASGIMiddleware, idempotency=idempotency)`, or `ASGIMiddleware(app, …)`.

    `caller`, for adapters: finds out who has sent a request, once its body is read and before its
    key is looked at, so that who is refused gets neither a claim nor a replay. Not asked on routes
    with `Policy(shared=True)`, which are public. `endpoints`, for adapters: finds the endpoints of
    the application, where it has no `routes` as Starlette's have; `registers=False`: another knows
    of them.

    Raises `PolicyError` where `Idempotency(scope=…)` names the caller already.
    """

    def __init__(
        self,
        app: ASGIApp,
        idempotency: Idempotency,
        *,
        caller: Ask | None = None,
        endpoints: Callable[[], Iterable[Endpoint]] | None = None,
        registers: bool = True,
    ) -> None:
        one_way_to_ask(idempotency, caller)
        self.app = app
        self.idempotency = idempotency
        self._ask = caller
        self._idle = False
        self._detached = Detached()
        self._replays = Replays()
        self._completing = Completing(app, idempotency, self._detached)
        self.problem_base = idempotency.problem_base
        self._credentials = credential_headers(idempotency.credentials)
        self._wanted = looked_at(self._credentials)
        self._keys_path = idempotency.issuer.path if idempotency.issuer is not None else None
        self._find_endpoints = endpoints
        self._around: object = None
        self.identified = caller is not None
        self._applications = idempotency.applications
        if registers:
            idempotency.serve(self)

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints of the application, none where they are unknown."""
        find = self._find_endpoints
        found = list(find() if find is not None else endpoints_of(self.app, self._around))
        self.learn(found)
        return found

    def within(self) -> tuple[ASGIMiddleware, ...]:
        """Return this one, where another inside it serves its requests."""
        self._idle = any(
            layer is not self and getattr(layer, "idempotency", None) is self.idempotency
            for layer in layers_of(self.app)
        )
        if self._idle:
            log.warning("ASGIMiddleware: Semel is in its place inside already; drop this one")
        return (self,) if self._idle else ()

    def has_met(self) -> None:
        """Look at the application, once, when the rules of its routes are known."""
        note_within(self.app)

    def learn(self, endpoints: Iterable[Endpoint]) -> None:
        """Have the headers that their security schemes read tell callers apart."""
        more = sorted({name for endpoint in endpoints for name in endpoint.credentials})
        self._credentials = credential_headers((*self.idempotency.credentials, *more))
        self._wanted = looked_at(self._credentials)

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        kind = scope["type"]
        if not self._applications.met:
            self._around = scope.get("app")
            self.idempotency.meet()
            self.has_met()
        if kind == "http" and not self._idle:
            path = route_path(scope) if scope.get("root_path") else scope["path"]
            if path == self._keys_path:
                await self._issue(scope, receive, send)
                return
            policy = self.idempotency.routes.find(scope["method"], path)
            if policy is not None and scope.get(SERVED) is not self.idempotency:
                await self._covered(policy, scope, receive, send)
                return
        elif kind == "lifespan" and not self._idle:
            await self._lifespan(scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _covered(
        self, policy: Policy, scope: ASGIScope, receive: Receive, send: Send
    ) -> None:
        idempotency = self.idempotency
        if not idempotency.started and await self._unready(policy, receive, send):
            return
        fields, found = wanted(scope, self._wanted)
        keyed = bool(fields) or key_source.may_be_in_content(policy)
        if not keyed and not policy.next_key:
            await self._without_key(policy, scope, receive, send)
            return
        request = ASGIView(scope, found)
        caller = self._known(request) if self._ask is None or policy.shared else None
        if policy.next_key and caller is not None:
            send = self._handing_out(caller, send)
            if not keyed:
                await self._without_key(policy, scope, receive, send)
                return
        body = Body(policy.algorithm, request.line)
        own = None
        try:
            length = found.get(b"content-length", b"")
            refusal = await read_body(policy, receive, body.write, length)
            if refusal is not None:
                await self._unread(refusal, scope, send)
                return
            if caller is None:
                caller = await self._asked(request, receive, send, body)
                if caller is None:
                    return
                send = self._handing_out(caller, send) if policy.next_key else send
            driver = await self._admit(policy, fields, request, caller, body, receive, send)
            if driver is not None:
                around = _enter(scope, idempotency, driver)
                base = self.problem_base
                exchange = ASGIExchange(self.app, base, driver, scope, receive, send, body)
                own = self._detached.start(exchange)
        finally:
            if own is None:  # else the body is the operation's
                body.close()
        if own is not None:
            try:
                await self._detached.outlive(own, exchange)
            finally:
                _leave(scope, around, own.task)

    async def _unready(self, policy: Policy, receive: Receive, send: Send) -> bool:
        """Open the store, or refuse a request as that cannot be done."""
        problem = admission.unready(self.idempotency)
        if problem is not None:
            await self._refuse_unread(problem, policy, receive, send)
        return problem is not None

    async def _unread(self, refusal: Problem | bool, scope: ASGIScope, send: Send) -> None:
        """Refuse a request whose body cannot be had; True: its client has gone."""
        if isinstance(refusal, Problem):
            self.idempotency.operations.refuse(refusal)
            await send_problem(refusal, self.problem_base, send, scope)

    async def _asked(
        self, request: ASGIView, receive: Receive, send: Send, body: Body
    ) -> Caller | None:
        """Ask who has sent a request whose body has been read. None: refused, the client knows."""
        assert self._ask is not None
        scope = request.native
        caller = await self._ask(scope, Unread(body, receive))
        if caller == ANONYMOUS:  # nobody is logged in: what there is tells them apart
            return self._known(request)
        if isinstance(caller, (str, tuple)):
            return caller
        await caller(scope, Unread(body, receive), send)
        return None

    async def _admit(
        self,
        policy: Policy,
        fields: list[bytes],
        request: ASGIView,
        caller: Caller,
        body: Body,
        receive: Receive,
        send: Send,
    ) -> AsyncDriver | None:
        """Find out what the key says. None: the request has had its response."""
        idempotency, scope = self.idempotency, request.native
        if SERVED in scope:  # its keys are not those of the service around this one
            caller = f"within {scope_name(caller)}"
        asked: Hashable = None  # known again byte by byte, where nothing but these bytes names it
        if fields and idempotency.store.lookup_first and (small := body.small()) is not None:
            asked = (*fields, caller, request.line, small)
            cached = self._replays.get(asked, idempotency.store.now())
            if cached is not None:
                idempotency.outcomes.passed(cached.outcome, cached.key)
                stored = cached.outcome.response
                await send_whole(stored.status, cached.headers, stored.body or b"", send)
                return None
        owner = scope_name(caller)
        admitted = admission.admit(
            idempotency,
            AsyncDriver,
            policy,
            fields,
            owner,
            request,
            body,
            (lambda: _remember(scope, owner)) if policy.remember_request else None,
        )
        if admitted is None:
            await self._without_key(policy, scope, Unread(body, receive), send)
            return None
        if isinstance(admitted, Known):
            if is_reused(admitted.outcome) and redirects(self.app, scope):
                await self.app(scope, Unread(body, receive), send)
                return None
            await send_outcome(admitted.outcome, self.problem_base, send)
            if type(admitted.outcome) is Replay and asked is not None:
                self._replays.keep(asked, body.size, _cached(admitted))
            return None
        if admitted.policy.remember_request:
            self._completing.go_on(scope)
        if admitted.looked_up:  # in flight: wait for it here, where a cancel does no harm
            outcome = await admitted.look()
            if outcome is not None and type(outcome) is not Bypass:
                await send_outcome(outcome, self.problem_base, send)
                return None
        return admitted

    def _known(self, request: ASGIView) -> Caller:
        own = self.idempotency
        return caller_of(request, own.scope, own.session_cookie, self._credentials)

    # --- issued keys -------------------------------------------------------------------------

    async def _issue(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        idempotency = self.idempotency
        _, found = wanted(scope, self._wanted)
        request = ASGIView(scope, found)
        policy = dataclasses.replace(idempotency.routes.default, max_request_body=issue.LARGEST)
        body = Body(policy.algorithm, request.line)
        refusal = await read_body(policy, receive, body.write, found.get(b"content-length", b""))
        if refusal is not None:
            await self._unread(refusal, scope, send)
            return
        caller: Caller | None
        if self._ask is None:
            caller = self._known(request)
        else:
            caller = await self._asked(request, receive, send, body)
        if caller is not None:
            wanting = b"".join(body.chunks())
            answer = issue.issue(idempotency, scope_name(caller), scope["method"], wanting)
            told = answer.body or b""
            headers = with_length(answer.headers, answer.status, told)
            await send_whole(answer.status, headers, told, send)

    def _handing_out(self, caller: Caller, send: Send) -> Send:
        """Send responses with a fresh key for the caller's next operation."""
        issuer = self.idempotency.issuer
        assert issuer is not None
        owner = scope_name(caller)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                (key,) = issuer.issue(owner).keys
                headers = [*message.get("headers", ()), (b"idempotency-key", key.encode())]
                message = {**message, "headers": headers}
            await send(message)

        return sending

    # --- requests without a key, and the service's life --------------------------------------

    async def _without_key(
        self, policy: Policy, scope: ASGIScope, receive: Receive, send: Send
    ) -> None:
        problem = admission.without_key(policy)
        if problem is not None:
            await self._refuse_unread(problem, policy, receive, send)
            return
        unkeyed = UnkeyedRun(receive, send)
        around = _enter(scope, self.idempotency)
        try:
            done = await unkeyed.run(self.app, scope)
        finally:
            _leave(scope, around)
        if not done:
            if not unkeyed.read:
                await self._drain(policy, receive)
            refusal = self.idempotency.operations.refuse(problems.KEY_MISSING)
            await send_outcome(refusal, self.problem_base, send)

    async def _refuse_unread(
        self, problem: Problem, policy: Policy, receive: Receive, send: Send
    ) -> None:
        await self._drain(policy, receive)
        await send_outcome(self.idempotency.operations.refuse(problem), self.problem_base, send)

    async def _drain(self, policy: Policy, receive: Receive) -> None:
        """Read what is left of the body, so that the client gets an answer and not a reset."""
        await read_body(policy, receive, lambda chunk: None, b"")

    async def complete_abandoned(self, idle: float = 1.0) -> int:
        """Finish operations that a crash has abandoned; return how many were run.

        Those whose policy has `remember_request`, and whose lease ended `idle` seconds ago or
        longer: their clients come first. The handler finds `scope["semel.completing"]`, the scope
        of the first request's caller. Raises `StoreError`.
        """
        return await self._completing.complete_abandoned(idle)

    async def _lifespan(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        async def started() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await asyncio.to_thread(self.idempotency.start)
                self._completing.go_on_if_needed(scope)
            return message

        async def stopped(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                self._completing.stop()
                await self._detached.drain(self.idempotency.drain.total_seconds())
                await asyncio.to_thread(self.idempotency.stop)
            await send(message)

        await self.app(scope, started, stopped)


def _enter(scope: ASGIScope, idempotency: Idempotency, driver: Any = None) -> object:
    """Mark a request as in hand; return who had it in hand before."""
    around: object = scope.get(SERVED)
    scope[SERVED] = idempotency
    if driver is not None:
        scope[OPERATION] = driver
    return around


def _leave(scope: ASGIScope, around: object, task: asyncio.Task[None] | None = None) -> None:
    """Take the marks away, as a test may use the scope again, once the operation has ended."""
    if task is not None and not task.done():
        return
    scope.pop(OPERATION, None)
    if around is None:
        scope.pop(SERVED, None)
    else:
        scope[SERVED] = around


def _cached(known: Known) -> CachedResponse:
    outcome = known.outcome
    assert isinstance(outcome, Replay)
    status, headers, body = outcome.response
    fields = tuple(with_length(answer_headers.replayed(headers), status, body or b""))
    return CachedResponse(outcome, known.key, fields, known.until)


def _remember(scope: ASGIScope, owner: str) -> RememberedRequest:
    return RememberedRequest(
        scope["method"],
        scope["path"],
        scope.get("raw_path") or scope["path"].encode(),
        scope.get("root_path", ""),
        scope.get("query_string", b""),
        tuple(scope["headers"]),
        owner,
        "",
        b"",
    )
