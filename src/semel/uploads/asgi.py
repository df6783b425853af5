"""Uploads as an ASGI application: bodies go to disk as they arrive, on threads of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from semel.core import problems as common
from semel.core.record import Response
from semel.uploads import protocol
from semel.uploads.intake import UploadIntake
from semel.uploads.protocol import UploadRequest
from semel.uploads.uploads import UploadService
from semel.web.asgi.messages import (
    ASGIScope,
    ASGIView,
    Receive,
    Send,
    looked_at,
    route_path,
    wanted,
)
from semel.web.asgi.timeouts import timeout_if_suspended
from semel.web.http.callers import KNOWN_CREDENTIALS, caller_of, scope_name

AT_ONCE = 256 * 1024
"""Bytes of a body that go to a thread together; what one upload holds in memory."""
DRAINED = 16 * 1024 * 1024
"""Bytes of a refused body that are read, so that its client gets the response and not a reset."""
THREADS = 8
"""Threads that write, hash and store; a disk is not faster with more."""

P = ParamSpec("P")
T = TypeVar("T")


class UploadsASGI:
    """The ASGI application of an `UploadService`."""

    def __init__(self, uploads: UploadService) -> None:
        self._uploads = uploads
        self._threads: ThreadPoolExecutor | None = None
        self._process = 0

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await _lifespan(receive, send)
            return
        asked = _asked(scope)
        whose = self._owner(scope)
        outcome = await self._run(
            self._uploads.begin, asked, whose, str(scope.get("root_path", "")).rstrip("/")
        )
        if isinstance(outcome, UploadIntake):
            answer = await self._take(outcome, receive)
        else:
            answer = outcome
            if "expect" not in asked.headers:  # else it waits, and to read on would ask it to send
                with contextlib.suppress(TimeoutError):
                    await timeout_if_suspended(self._uploads.idle, _drain(receive))
        if answer is not None:
            headers = [*answer.headers]
            body = (answer.body or b"") if scope["method"] != "HEAD" else b""
            if answer.status != 204:
                headers.append((b"content-length", b"%d" % len(body)))
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    async def _take(self, intake: UploadIntake, receive: Receive) -> Response | None:
        """Pass a body on; return the response, or None where nobody waits for it any more.

        However it ends, the upload is let go of. What came of a body that is cut is kept.
        """
        chunks: list[bytes] = []
        try:
            size, more = 0, True
            while more:
                try:
                    message = await timeout_if_suspended(self._uploads.idle, receive())
                except TimeoutError:
                    await self._run(intake.cut, chunks)
                    return protocol.refused(_TOO_SLOW, self._uploads.problem_base)
                if message["type"] == "http.disconnect":
                    await self._run(intake.cut, chunks)
                    return None
                chunk = message.get("body", b"")
                if chunk:
                    chunks.append(chunk)
                    size += len(chunk)
                more = message.get("more_body", False)
                if size >= AT_ONCE:
                    batch, chunks, size = chunks, [], 0
                    refusal = await self._run(intake.write, batch)
                    if refusal is not None:
                        return refusal
            return await self._run(_end, intake, chunks)
        except GeneratorExit:  # its event loop is gone, so nothing can be waited for
            raise
        except BaseException:  # a cancel, at any await; or the server's own
            await self._run(intake.cut, chunks)
            raise

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run on a thread. A cancel waits for it: the thread has the file, and lets go of it."""
        if self._threads is None or self._process != os.getpid():
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="semel-uploads")
            self._process = os.getpid()
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._threads, lambda: call(*args, **kwargs))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            while not running.done():  # one cancel may follow another
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            if not running.cancelled() and running.exception() is None:
                outcome = running.result()
                if isinstance(outcome, UploadIntake):  # which nobody will take
                    await self._run(outcome.cut)
            raise

    def _owner(self, scope: ASGIScope) -> str:
        request = ASGIView(scope, wanted(scope, _WANTED)[1])
        return scope_name(caller_of(request, self._uploads.scope))


_WANTED = looked_at(KNOWN_CREDENTIALS)

_TOO_SLOW = common.BODY_TIMEOUT._replace(
    detail="The client sent nothing for too long. What arrived of a resumable upload is kept: ask"
    " with HEAD for its Upload-Offset, and go on from there."
)


def _end(intake: UploadIntake, chunks: list[bytes]) -> Response:
    refusal = intake.write(chunks) if chunks else None
    return intake.end() if refusal is None else refusal


def _asked(scope: ASGIScope) -> UploadRequest:
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        field, text = name.decode("latin-1"), value.decode("latin-1")
        headers[field] = f"{headers[field]}, {text}" if field in headers else text
    path = route_path(scope) if scope.get("root_path") else scope["path"]
    return UploadRequest(scope["method"], path, headers)


async def _drain(receive: Receive) -> None:
    read = 0
    while read < DRAINED:
        message = await receive()
        read += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
