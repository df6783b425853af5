"""The middleware round a single handler, for frameworks whose own middleware is not ASGI.

Quart, Sanic, BlackSheep and Falcon know their CORS, sessions and authentication as hooks of their
own, which an ASGI middleware would be outside of. So their adapters wrap what calls the handler: an
operation then runs where the handler does, and a replay goes out through the same hooks.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final, Generic, NamedTuple, TypeVar

from semel.applications import SAFE, Endpoint, policy_on
from semel.core import failures, problems
from semel.core.policy import Policy
from semel.core.problems import Problem
from semel.core.record import Response
from semel.idempotency import Idempotency
from semel.operation import NoOperation, note_raised
from semel.web.asgi.completing import Completing
from semel.web.asgi.messages import (
    ASGIApp,
    ASGIScope,
    ASGIView,
    Ask,
    Message,
    Receive,
    Send,
    send_whole,
    wanted,
)
from semel.web.asgi.middleware import ASGIMiddleware
from semel.web.asgi.unkeyed import needs_key
from semel.web.conditional import NotMet
from semel.web.http import admission, key_source
from semel.web.http.callers import Caller, named_caller, one_way_to_ask

Native = TypeVar("Native")

_CALL = "semel.call"
UNKNOWN: Final = object()


class Received(NamedTuple):
    """A response as it comes out of the middleware."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes | AsyncIterator[bytes]
    """An iterator where the response is sent while it is being made."""

    def fields(self, *without: bytes) -> list[tuple[str, str]]:
        """Return the headers as text, without those of these names (lower case)."""
        return [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in self.headers
            if name.lower() not in without
        ]


class HandlerCall(ABC, Generic[Native]):
    """One request that has come to its handler, in the terms of its framework."""

    scope: ASGIScope
    """The ASGI scope, or what stands for it where the framework has a server of its own."""
    path: str
    """The path as the application's routes are written, without where it is mounted."""
    policy: Policy | None = None
    """The rules beside the handler, from `@idempotency.route(…)`."""
    sent: Message | None = None
    """The start of the handler's own response."""
    response: Any = None
    """The handler's own response."""
    sending: Send | None = None
    """Where the response goes, for handlers that send it themselves."""

    @abstractmethod
    async def read(self) -> bytes:
        """Return the whole body, and leave it to be read by the handler as if it were unread."""

    @abstractmethod
    async def who(self) -> object:
        """Ask who has sent the request: call the `caller` function. Raises what that raises.

        `UNKNOWN`: there is nobody to ask, and the request's credentials tell callers apart.
        """

    @abstractmethod
    async def handle(self) -> Native:
        """Run the handler. Raises what it raises."""

    @abstractmethod
    async def failed(self, error: Exception) -> Native:
        """Return the framework's response to what a handler has raised; raise it if it has none."""

    @abstractmethod
    async def send(self, response: Native, send: Send) -> None:
        """Send a response as ASGI messages."""

    @abstractmethod
    def respond(self, received: Received) -> Native:
        """Return a response as the framework has them."""


class PlacedMiddleware(ASGIMiddleware):
    """The middleware, where an adapter calls it for each handler, and not for each connection.

    `who` is the service's own `caller` function, if it has one, `ask` what the middleware asks,
    `endpoints` finds those of the application.
    """

    def __init__(
        self,
        app: ASGIApp,
        idempotency: Idempotency,
        *,
        who: object,
        ask: Ask | None,
        endpoints: Callable[[], Iterable[Endpoint]],
    ) -> None:
        one_way_to_ask(idempotency, who)
        super().__init__(app, idempotency, caller=ask, endpoints=endpoints)
        self.identified = who is not None
        self.caller = who

    def complete_through(self, app: ASGIApp) -> None:
        """Run abandoned operations through this application, whole."""
        self._completing = Completing(app, self.idempotency, self._detached)

    async def begin(self, *context: object) -> None:
        """Open the store, as the application starts."""
        await asyncio.to_thread(self.idempotency.start)
        self._completing.go_on_if_needed({})

    async def end(self, *context: object) -> None:
        """Wait for operations whose clients have gone, and close the store."""
        self._completing.stop()
        await self._detached.drain(self.idempotency.drain.total_seconds())
        await asyncio.to_thread(self.idempotency.stop)

    def rules(self, mark: Policy | None, method: str, path: str) -> Policy | None:
        """Return the rules of a request: those beside its handler go before the service's."""
        if not self._applications.met:
            self.idempotency.meet()
        if mark is not None:
            return mark if method in mark.methods else None
        return self.idempotency.routes.find(method, path)


class HandlerMiddleware(PlacedMiddleware):
    """Gives the handlers of one application idempotency keys, each where it is called.

    `who` is the service's own `caller` function, which the calls know how to call; `asks` whether
    they have something to ask without it.
    """

    def __init__(
        self,
        idempotency: Idempotency,
        *,
        who: object,
        endpoints: Callable[[], Iterable[Endpoint]],
        asks: bool = False,
    ) -> None:
        ask = self._who if who is not None or asks else None
        super().__init__(self._handle, idempotency, who=who, ask=ask, endpoints=endpoints)

    async def issue(self, call: HandlerCall[Native]) -> Native:
        """Answer a request for issued keys."""
        return await self._through(call, self._issue)

    async def around(self, call: HandlerCall[Native]) -> Native:
        """Run a handler under its request's key, or give the response that is there already."""
        scope = call.scope
        policy = self.rules(call.policy, scope["method"], call.path)
        if policy is None or "semel.completing" in scope:
            return await self._plain(call)
        keyed = key_source.may_be_in_content(policy) or policy.next_key
        if not keyed and all(name.lower() != b"idempotency-key" for name, _ in scope["headers"]):
            problem = admission.without_key(policy)
            if problem is not None:
                return self._refused(call, problem)
            try:
                return await self._plain(call)
            except Exception as error:
                if needs_key(error):
                    return self._refused(call, problems.KEY_MISSING)
                raise

        async def covered(scope: ASGIScope, receive: Receive, send: Send) -> None:
            await self._covered(policy, scope, receive, send)

        return await self._through(call, covered, cancels=policy.on_disconnect == "cancel")

    async def _plain(self, call: HandlerCall[Native]) -> Native:
        """Run a handler without a key of its own."""
        try:
            return await call.handle()
        except NotMet as error:
            return call.respond(_received(error.response(self.problem_base)))
        except Exception as error:
            if "semel.completing" in call.scope:
                note_raised(error)
            raise

    def _refused(self, call: HandlerCall[Native], problem: Problem) -> Native:
        refusal = self.idempotency.operations.refuse(problem)
        return call.respond(_received(refusal.problem.response(self.problem_base)))

    async def _who(self, scope: ASGIScope, receive: Receive) -> Caller:
        call: HandlerCall[Any] = scope[_CALL]
        user = await call.who()
        if user is UNKNOWN:
            return self._known(ASGIView(scope, wanted(scope, self._wanted)[1]))
        return named_caller(user)

    async def _through(
        self,
        call: HandlerCall[Native],
        serve: Callable[[ASGIScope, Receive, Send], Any],
        *,
        cancels: bool = False,
    ) -> Native:
        reply = _Reply()
        scope = {**call.scope, _CALL: call}
        task = asyncio.get_running_loop().create_task(
            reply.run(serve, scope, _receiving(call, reply.gone))
        )
        try:
            await reply.begun.wait()
        except asyncio.CancelledError:
            # The client has gone: what the framework keeps for the request has to stay until the
            # handler has ended. Who cancels once more has no time for it.
            reply.leave()
            if cancels:
                task.cancel()
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                task.cancel()
            raise
        if reply.start is None:
            await task
            raise RuntimeError("the handler returned without a complete response")
        if reply.start is call.sent and reply.body is not None:
            return call.response  # type: ignore[no-any-return]
        body = reply.body if reply.body is not None else reply.chunks(task)
        return call.respond(Received(reply.start["status"], list(reply.start["headers"]), body))

    async def _handle(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """The application, as the middleware sees it: one handler."""
        call: HandlerCall[Any] = scope[_CALL]

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.sent = message
            await send(message)

        call.sending = sending
        try:
            call.response = await call.handle()
        except (NoOperation, *failures.OPERATION_ERRORS):
            raise
        except NotMet as error:
            note_raised(error)
            status, headers, body = error.response(self.problem_base)
            await send_whole(status, headers, body or b"", send)
            return
        except Exception as error:  # noqa: BLE001  # a response of the framework's, or raised anew
            note_raised(error)
            call.response = await call.failed(error)
        await call.send(call.response, sending)


class _Reply:
    """What the middleware sends: a whole response, or one that goes out as it is made."""

    def __init__(self) -> None:
        self.start: Message | None = None
        self.body: bytes | None = None
        self.begun = asyncio.Event()
        self._streamed: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(1)
        self.gone = asyncio.Event()
        """Whether nobody reads on."""

    async def run(
        self, serve: Callable[[ASGIScope, Receive, Send], Any], scope: ASGIScope, receive: Receive
    ) -> None:
        try:
            await serve(scope, receive, self.send)
        except BaseException as error:
            if self.begun.is_set() and self.body is None:
                await self._put(error)
                return
            self.start = None
            raise
        finally:
            self.begun.set()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start = message
            return
        if message["type"] != "http.response.body":
            return  # hints and trailers, for which these frameworks have no words
        more = message.get("more_body", False)
        chunk = bytes(message.get("body", b""))
        if not self.begun.is_set():
            if not more:
                self.body = chunk
            self.begun.set()
            if not more:
                return
        if chunk:
            await self._put(chunk)
        if not more:
            await self._put(None)

    async def _put(self, chunk: bytes | BaseException | None) -> None:
        if not self.gone.is_set():
            await self._streamed.put(chunk)

    def leave(self) -> None:
        """Say that nobody reads on; the handler goes on to its end."""
        self.gone.set()
        while not self._streamed.empty():
            self._streamed.get_nowait()

    async def chunks(self, task: asyncio.Task[None]) -> AsyncIterator[bytes]:
        """Give what is sent, as it is; who stops to read has left, as a client that disconnects."""
        chunk: bytes | BaseException | None = b""
        try:
            while (chunk := await self._streamed.get()) is not None:
                if isinstance(chunk, BaseException):
                    raise chunk
                yield chunk
        finally:
            if chunk is not None:
                self.leave()
                task.cancel()


def _receiving(call: HandlerCall[Any], gone: asyncio.Event) -> Receive:
    read = False

    async def receive() -> Message:
        nonlocal read
        if read:
            await gone.wait()
            return {"type": "http.disconnect"}
        read = True
        return {"type": "http.request", "body": await call.read(), "more_body": False}

    return receive


def _received(response: Response) -> Received:
    return Received(response.status, list(response.headers), response.body or b"")


async def ask(caller: Callable[..., object], *arguments: object) -> object:
    """Call a `caller` function, which may be async."""
    user = caller(*arguments)
    if inspect.isawaitable(user):
        user = await user
    return user


def rules_beside(handler: object, method: str) -> Policy | None:
    """Return the rules that `@idempotency.route(…)` has put beside a handler, for this method."""
    policy = policy_on(handler)
    if policy is None or method in policy.methods or method in SAFE:
        return policy
    return dataclasses.replace(policy, methods=(*policy.methods, method))


def parameter(name: str, kind: str | None) -> str:
    """Return a parameter as patterns are written; kinds that they do not know are left out."""
    return f"{{{name}:{kind}}}" if kind in ("int", "float", "uuid", "path") else f"{{{name}}}"


async def send_body(
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    body: bytes | AsyncIterator[bytes],
    send: Send,
) -> None:
    """Send a response whose body is there, or is being made."""
    if isinstance(body, bytes):
        await send_whole(status, headers, body, send)
        return
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    async for chunk in body:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
