"""Transports for httpx that retry, each logical request under one key.

httpx2 is another library whose classes are not httpx's: these transports do not fit it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

try:
    import anyio
    import anyio.to_thread
    import httpx
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.client.httpx needs httpx: pip install 'semel[client]'") from error

from semel.client.budget import Budget
from semel.client.journal import Journal
from semel.client.keys import KeyPool, uuid7
from semel.client.logical import (
    AttemptResult,
    Holding,
    Keys,
    Logical,
    TransportSettings,
    credentials,
    drive,
)
from semel.client.retry import Broke, Retry, RetryPause
from semel.client.verdict import ReceivedResponse
from semel.core.keys import HEADER
from semel.failpoints import failpoint

__all__ = ["AsyncRetryTransport", "RetryTransport"]

_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_HOPELESS: Final = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)


class RetryTransport(httpx.BaseTransport):
    """Retries what is safe to retry: `httpx.Client(transport=RetryTransport())`.

    - `transport`: what sends; default `httpx.HTTPTransport()`.
    - `retry`: how often, how long; see `Retry`. `budget`: a `Budget` to share with others.
    - `keys`: where the keys of POST and PATCH come from: a function, or a `KeyPool`; None: none are
      generated. A key that the caller has set (header `Idempotency-Key`) is kept.
    - `journal`: makes requests under a key durable before they are sent; see `Journal`.
    - `clock` (monotonic seconds), `sleep` (seconds), `jitter` (0 to 1): for tests.

    GET, HEAD, OPTIONS, TRACE, PUT and DELETE are retried without a key, POST and PATCH only with
    one. A response to a request under a key is read whole before it is handed over (an event stream
    excepted), for half a response is a reason to send it again. The body of a request is held in
    memory.

    Raises `Unsettled` where it stays unknown whether a request under a key took effect,
    `RequestTooLarge`, `KeysNotIssued` and `JournalError` before anything is sent, and what httpx
    raises where nothing was done.
    """

    def __init__(
        self,
        transport: httpx.BaseTransport | None = None,
        *,
        retry: Retry | None = None,
        keys: Keys = uuid7,
        journal: Journal | None = None,
        budget: Budget | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._inner = transport if transport is not None else httpx.HTTPTransport()
        self._settings = TransportSettings(retry, keys, journal, budget, clock, jitter)
        self._sleep = sleep

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a logical request."""
        way, key = self._settings.way(request.method, request.headers.get(HEADER))
        if way == "once":
            return self._inner.handle_request(request)
        assert isinstance(request.stream, httpx.SyncByteStream)
        holding = Holding(self._settings.retry.max_body, request.headers.get("content-length"))
        for chunk in request.stream:
            holding.take(chunk)
        _hold(request, holding.body())
        if way == "keyed" and key is None:
            self._fill(request)
            key = request.headers[HEADER] = self._settings.new_key()
        return self._drive(_logical(self._settings, request, holding.body(), key), request)

    def close(self) -> None:
        """Close the transport that sends."""
        self._inner.close()

    def _drive(self, logical: Logical, request: httpx.Request) -> httpx.Response:
        held = logical.key is not None

        def send(seconds: float) -> AttemptResult[httpx.Response]:
            return self._attempt(request, seconds, held=held)

        return drive(logical, send, self._sleep, httpx.Response.close)

    def _attempt(
        self, request: httpx.Request, seconds: float, *, held: bool
    ) -> AttemptResult[httpx.Response]:
        over = self._settings.started()
        body = bytearray()
        try:
            response = self._inner.handle_request(_within(request, seconds))
            if held and not _streams(response):
                assert isinstance(response.stream, httpx.SyncByteStream)
                try:
                    for chunk in response.stream:
                        body += chunk
                        _require_time(over(seconds))
                finally:
                    response.stream.close()  # `response.close` would have it unreadable
                response.stream = httpx.ByteStream(bytes(body))
        except httpx.TransportError as error:
            return _broke(error)
        return _answered(response, bytes(body))

    def _fill(self, request: httpx.Request) -> None:
        pool = self._settings.pool
        if pool is None or (attempts := pool.needed()) is None:
            return
        ask = _ask(pool, request)
        logical = Logical(self._settings, "POST", pool.url, attempts=attempts)
        try:
            response = self._drive(logical, ask)
            pool.add(response.status_code, response.read())
        except httpx.TransportError as error:
            pool.failed(repr(error))
        finally:
            pool.fetched()


class AsyncRetryTransport(httpx.AsyncBaseTransport):
    """As `RetryTransport`, for `httpx.AsyncClient`, on asyncio and trio.

    The journal's disk is waited for in a thread. A request that is cancelled is unfinished: its
    entry stays.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        retry: Retry | None = None,
        keys: Keys = uuid7,
        journal: Journal | None = None,
        budget: Budget | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._inner = transport if transport is not None else httpx.AsyncHTTPTransport()
        self._settings = TransportSettings(retry, keys, journal, budget, clock, jitter)
        self._sleep = sleep

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a logical request."""
        way, key = self._settings.way(request.method, request.headers.get(HEADER))
        if way == "once":
            return await self._inner.handle_async_request(request)
        assert isinstance(request.stream, httpx.AsyncByteStream)
        holding = Holding(self._settings.retry.max_body, request.headers.get("content-length"))
        async for chunk in request.stream:
            holding.take(chunk)
        _hold(request, holding.body())
        if way == "keyed" and key is None:
            await self._fill(request)
            key = request.headers[HEADER] = self._settings.new_key()
        return await self._drive(_logical(self._settings, request, holding.body(), key), request)

    async def aclose(self) -> None:
        """Close the transport that sends."""
        await self._inner.aclose()

    async def _drive(self, logical: Logical, request: httpx.Request) -> httpx.Response:
        """Carry a logical request out on the running event loop, as `logical.drive` on a thread."""
        try:
            if logical.journaled:
                life = await anyio.to_thread.run_sync(logical.begin)
            else:
                life = logical.begin()
            attempt: AttemptResult[httpx.Response] | None = None
            command = next(life)
            while True:
                if isinstance(command, RetryPause):
                    assert attempt is not None
                    if attempt.response is not None:
                        await attempt.response.aclose()
                    failpoint("client_before_retry")
                    await self._sleep(command.seconds)
                    command = next(life)
                    continue
                failpoint("client_before_send")
                attempt = await self._attempt(
                    request, command.seconds, held=logical.key is not None
                )
                failpoint("client_answered")
                try:
                    command = life.send(attempt.told)
                except StopIteration as end:
                    return logical.conclude(end.value, attempt)
        finally:
            if logical.journaled:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(logical.end)

    async def _attempt(
        self, request: httpx.Request, seconds: float, *, held: bool
    ) -> AttemptResult[httpx.Response]:
        over = self._settings.started()
        body = bytearray()
        try:
            response = await self._inner.handle_async_request(_within(request, seconds))
            if held and not _streams(response):
                assert isinstance(response.stream, httpx.AsyncByteStream)
                try:
                    async for chunk in response.stream:
                        body += chunk
                        _require_time(over(seconds))
                finally:
                    await response.stream.aclose()
                response.stream = httpx.ByteStream(bytes(body))
        except httpx.TransportError as error:
            return _broke(error)
        return _answered(response, bytes(body))

    async def _fill(self, request: httpx.Request) -> None:
        pool = self._settings.pool
        if pool is None or (attempts := pool.needed()) is None:
            return
        ask = _ask(pool, request)
        logical = Logical(self._settings, "POST", pool.url, attempts=attempts)
        try:
            response = await self._drive(logical, ask)
            pool.add(response.status_code, await response.aread())
        except httpx.TransportError as error:
            pool.failed(repr(error))
        finally:
            pool.fetched()


def _logical(
    settings: TransportSettings, request: httpx.Request, body: bytes, key: str | None
) -> Logical:
    headers = request.headers.multi_items()
    return Logical(settings, request.method, str(request.url), headers, body, key)


def _hold(request: httpx.Request, body: bytes) -> None:
    request.stream = httpx.ByteStream(body)
    if "transfer-encoding" in request.headers:
        del request.headers["transfer-encoding"]
        request.headers["content-length"] = str(len(body))


def _within(request: httpx.Request, seconds: float) -> httpx.Request:
    """Shorten the request's own time limits to what is left of the deadline."""
    own = request.extensions.get("timeout", {})
    limits = {name: own.get(name) for name in ("connect", "read", "write", "pool")}
    shorter = {n: seconds if s is None else min(s, seconds) for n, s in limits.items()}
    return httpx.Request(
        request.method,
        request.url,
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "timeout": shorter},
    )


def _require_time(over: bool) -> None:
    if over:
        raise httpx.ReadTimeout("the deadline passed while the response was read")


def _streams(response: httpx.Response) -> bool:
    """Say whether a response is a stream of events, which is the definite response by its head."""
    kind = response.headers.get("content-type", "")
    return response.status_code < 400 and kind.startswith("text/event-stream")


def _answered(response: httpx.Response, body: bytes) -> AttemptResult[httpx.Response]:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return AttemptResult(ReceivedResponse(response.status_code, headers, body), response, None)


def _broke(error: httpx.TransportError) -> AttemptResult[httpx.Response]:
    if isinstance(error, _HOPELESS):
        sent, again = isinstance(error, httpx.LocalProtocolError), False
    else:
        sent, again = not isinstance(error, _NOT_SENT), True
    return AttemptResult(Broke(repr(error), sent, again), None, error)


def _ask(pool: KeyPool, request: httpx.Request) -> httpx.Request:
    return httpx.Request(
        "POST",
        pool.url,
        headers=credentials(request.headers),
        content=pool.body,
        extensions={"timeout": request.extensions.get("timeout", {})},
    )
