"""An adapter for requests that retries, each logical request under one key."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

try:
    import requests
    from requests import exceptions
    from requests.adapters import BaseAdapter, HTTPAdapter
    from urllib3.exceptions import NewConnectionError
except ImportError as error:  # pragma: no cover
    raise ImportError("semel.client.requests needs requests: pip install requests") from error

from semel.client.budget import Budget
from semel.client.journal import Journal
from semel.client.keys import uuid7
from semel.client.logical import (
    AttemptResult,
    Holding,
    Keys,
    Logical,
    TransportSettings,
    credentials,
    drive,
)
from semel.client.retry import Broke, Retry
from semel.client.verdict import ReceivedResponse
from semel.core.keys import HEADER

__all__ = ["RetryAdapter"]

_CHUNK: Final = 65536
Timeout = float | tuple[float | None, float | None] | None


class RetryAdapter(BaseAdapter):
    """Retries what is safe to retry: `session.mount("https://", RetryAdapter())`.

    `adapter` is what sends (default `HTTPAdapter()`, without retries of its own); the rest, and
    what is raised, is as `RetryTransport` says. Where the caller gives no timeout, an attempt may
    take all that is left of the deadline.
    """

    def __init__(
        self,
        adapter: BaseAdapter | None = None,
        *,
        retry: Retry | None = None,
        keys: Keys = uuid7,
        journal: Journal | None = None,
        budget: Budget | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__()
        self._inner = adapter if adapter is not None else HTTPAdapter()
        self._settings = TransportSettings(retry, keys, journal, budget, clock, jitter)
        self._sleep = sleep

    def send(  # type: ignore[override]  # the stubs name one form of a timeout
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Timeout = None,
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send a logical request."""
        how: dict[str, object] = {"verify": verify, "cert": cert, "proxies": proxies}
        method = (request.method or "GET").upper()
        way, key = self._settings.way(method, _text(request.headers.get(HEADER)))
        if way == "once":
            return self._inner.send(request, stream=stream, timeout=timeout, **how)  # type: ignore[arg-type]
        body = _hold(request, self._settings.retry.max_body)
        if way == "keyed" and key is None:
            self._fill(request, timeout, how)
            key = request.headers[HEADER] = self._settings.new_key()
        headers = [(name, _text(value) or "") for name, value in request.headers.items()]
        logical = Logical(self._settings, method, request.url or "", headers, body, key)
        return self._drive(logical, request, timeout, how)

    def close(self) -> None:
        """Close the adapter that sends."""
        self._inner.close()

    def _drive(
        self,
        logical: Logical,
        request: requests.PreparedRequest,
        timeout: Timeout,
        how: dict[str, object],
    ) -> requests.Response:
        held = logical.key is not None

        def send(seconds: float) -> AttemptResult[requests.Response]:
            return self._attempt(request, _within(timeout, seconds), seconds, how, held=held)

        return drive(logical, send, self._sleep, requests.Response.close)

    def _attempt(
        self,
        request: requests.PreparedRequest,
        timeout: tuple[float, float],
        seconds: float,
        how: dict[str, object],
        *,
        held: bool,
    ) -> AttemptResult[requests.Response]:
        over = self._settings.started()
        body = bytearray()
        try:
            response = self._inner.send(request, stream=True, timeout=timeout, **how)  # type: ignore[arg-type]
            if held and not _streams(response):
                try:
                    for chunk in response.iter_content(_CHUNK):
                        body += chunk
                        if over(seconds):
                            raise exceptions.ReadTimeout("the deadline passed", request=request)
                finally:
                    response.close()
                response._content = bytes(body)  # as `Response.content` does
        except exceptions.RequestException as error:
            return AttemptResult(_broke(error), None, error)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return AttemptResult(
            ReceivedResponse(response.status_code, headers, bytes(body)), response, None
        )

    def _fill(
        self, request: requests.PreparedRequest, timeout: Timeout, how: dict[str, object]
    ) -> None:
        pool = self._settings.pool
        if pool is None or (attempts := pool.needed()) is None:
            return
        headers = credentials({n.lower(): _text(v) or "" for n, v in request.headers.items()})
        ask = requests.Request("POST", pool.url, headers=headers, data=pool.body).prepare()
        logical = Logical(self._settings, "POST", pool.url, attempts=attempts)
        try:
            response = self._drive(logical, ask, timeout, how)
            pool.add(response.status_code, response.content)
        except exceptions.RequestException as error:
            pool.failed(repr(error))
        finally:
            pool.fetched()


def _hold(request: requests.PreparedRequest, limit: int) -> bytes:
    """Read the body of a request so that it can be sent again."""
    body: object = request.body
    if body is None:
        return b""
    holding = Holding(limit, _text(request.headers.get("Content-Length")))
    if isinstance(body, str):
        holding.take(body.encode())
    elif isinstance(body, (bytes, bytearray)):
        holding.take(bytes(body))
    elif hasattr(body, "read"):
        while chunk := body.read(_CHUNK):
            holding.take(chunk.encode() if isinstance(chunk, str) else chunk)
    elif isinstance(body, Iterable):
        for chunk in body:
            holding.take(chunk.encode() if isinstance(chunk, str) else chunk)
    else:
        raise TypeError(f"body: give bytes, text, a file or an iterable, not {type(body)!r}")
    request.body = holding.body()
    if request.headers.pop("Transfer-Encoding", None) is not None:
        request.headers["Content-Length"] = str(len(request.body))
    return request.body


def _within(timeout: Timeout, seconds: float) -> tuple[float, float]:
    """Shorten the caller's time limits to what is left of the deadline."""
    connect, read = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    return (
        seconds if connect is None else min(connect, seconds),
        seconds if read is None else min(read, seconds),
    )


def _broke(error: exceptions.RequestException) -> Broke:
    sent, again = True, True
    if isinstance(error, exceptions.ConnectTimeout):
        sent = False
    elif isinstance(error, exceptions.ConnectionError):
        cause = error.args[0] if error.args else None
        sent = not isinstance(getattr(cause, "reason", cause), NewConnectionError)
    elif isinstance(error, ValueError):  # InvalidURL, InvalidHeader: found before anything is sent
        sent, again = False, False
    elif not isinstance(error, (exceptions.Timeout, exceptions.ChunkedEncodingError)):
        again = False
    return Broke(repr(error), sent, again)


def _streams(response: requests.Response) -> bool:
    kind = response.headers.get("Content-Type", "")
    return response.status_code < 400 and kind.startswith("text/event-stream")


def _text(value: str | bytes | None) -> str | None:
    return value.decode("latin-1") if isinstance(value, bytes) else value
