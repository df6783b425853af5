"""A request that runs without a key, and its handler that may not be able to."""

from __future__ import annotations

from semel.operation import NoOperation, unkeyed
from semel.web.asgi.messages import ASGIApp, ASGIScope, Message, Receive, Send


class UnkeyedRun:
    """Runs an application without an operation, and notices where its handler asks for one.

    The handler's `NoOperation` may come through, or a server error that a framework has made of it:
    such a response is held back until it is clear what it was made of.
    """

    __slots__ = ("_held", "_receive", "_send", "_started", "_told", "read")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._told: list[NoOperation] = []
        self._held: list[Message] | None = None
        self._started = False
        self.read = False
        """Whether the body has been read to its end."""

    async def run(self, app: ASGIApp, scope: ASGIScope) -> bool:
        """Run the application. False: its handler needs a key, and nothing has been sent."""
        before = unkeyed.set(self._told)
        try:
            await app(scope, self.receive, self.send)
        except Exception as error:
            if self._started or not needs_key(error):
                await self._let_go()
                raise
            return False
        finally:
            unkeyed.reset(before)
        return self._held is None

    async def receive(self) -> Message:
        """Receive for the application."""
        message = await self._receive()
        self.read = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send for the application."""
        if self._held is not None:
            self._held.append(message)
        elif self._told and not self._started and message.get("status", 0) >= 500:
            self._held = [message]
        else:
            self._started = True
            await self._send(message)

    async def _let_go(self) -> None:
        for message in self._held or ():
            await self._send(message)


def needs_key(error: BaseException) -> bool:
    """Say whether an error is, or was made of, a handler's asking for an operation in vain."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, NoOperation):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
