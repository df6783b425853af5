"""Streaming responses: held until the outcome is known, or recorded while they pass through."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from itertools import chain
from typing import Any

from asgiref.sync import sync_to_async

from semel.core.engine import Deliver
from semel.operation import current
from semel.runtime.servers import Shutdown
from semel.web.django.exchange import DjangoExchange

log = logging.getLogger("semel")

AHEAD = 8
"""Chunks that a view may be ahead of its client."""


class Recorder:
    """The part of a response that has passed, while it can still be kept."""

    def __init__(self, exchange: DjangoExchange) -> None:
        self._exchange = exchange
        self._chunks: list[bytes] = []
        self._size = 0

    def takes(self, chunk: bytes) -> bool:
        """Take the next piece. False: the answer has outgrown what is kept."""
        self._size += len(chunk)
        fits = self._exchange.fits(self._size)
        if fits:
            self._chunks.append(chunk)
        else:
            self._chunks.clear()
        return fits

    def body(self) -> bytes:
        """Return all of it."""
        return b"".join(self._chunks)


def consume(exchange: DjangoExchange, response: Any) -> tuple[bytes | None, Any]:
    """Consume the response. Returns (body, chunks); body is None when it exceeds the limit."""
    if not response.streaming:
        content = response.content
        return content if exchange.fits(len(content)) else None, None
    recorder, chunks, rest = Recorder(exchange), [], iter(response)
    for chunk in rest:
        chunks.append(chunk)
        if not recorder.takes(chunk):
            return None, chain(chunks, rest)
    return recorder.body(), chunks


async def aconsume(exchange: DjangoExchange, response: Any) -> tuple[bytes | None, Any]:
    """As `consume`, for an async view's response."""
    if not response.streaming:
        return consume(exchange, response)
    recorder, chunks, rest = Recorder(exchange), [], _pieces(response)
    async for chunk in rest:
        chunks.append(chunk)
        if not recorder.takes(chunk):
            return None, _achain(chunks, rest)
    return recorder.body(), _achain(chunks, None)


def _pieces(response: Any) -> AsyncIterator[bytes]:
    """What a streaming response holds now, whatever is put in its place; plain iterators too."""
    content = response.streaming_content
    return content if response.is_async else _on_a_thread(content)


async def _on_a_thread(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    following = sync_to_async(_next, thread_sensitive=True)
    while (chunk := await following(chunks)) is not None:
        yield chunk


def _next(chunks: Iterator[bytes]) -> bytes | None:
    return next(chunks, None)


async def _achain(chunks: list[bytes], rest: AsyncIterator[bytes] | None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if rest is not None:
        async for chunk in rest:
            yield chunk


class PassingStream:
    """A stream on its way: recorded before its end is sent; made to its end without a client."""

    def __init__(self, exchange: DjangoExchange, response: Any) -> None:
        self._exchange = exchange
        self._response = response
        self._recorder = Recorder(exchange)
        self._close = getattr(response._iterator, "close", None)
        self._rest = iter(response)
        self._ended = False

    def take_over(self) -> None:
        """Stand in the place of the view's stream, and be closed before it is."""
        self._response.streaming_content = self
        closers = self._response._resource_closers
        closers.insert(0, closers.pop())

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._ended:
            raise StopIteration
        driver = self._exchange.driver
        before = current.get()
        current.set(driver)
        try:
            chunk: bytes | None = next(self._rest, None)
        except BaseException:
            self._end(None)
            raise
        finally:
            current.set(before)
        if chunk is None:
            self._end(self._recorder.body())
            raise StopIteration
        if driver.outcome is None and not self._recorder.takes(chunk):
            self._finish(None)  # outgrown: complete now
        return chunk

    def _end(self, body: bytes | None) -> None:
        self._ended = True
        self._exchange.close()
        if self._exchange.driver.outcome is None:
            self._finish(body)

    def _finish(self, body: bytes | None) -> None:
        answer = self._exchange.answer(self._response, body, sent=True)
        if not isinstance(self._exchange.driver.finish(answer), Deliver):
            self._ended = True
            raise RuntimeError("the stream could not be recorded")

    def close(self) -> None:
        """Called by the server at the end, whether or not it has sent everything.

        Without its client the view runs on, unless that is to end it, as long as its response can
        still be kept and the server does not shut down.
        """
        shutdown = Shutdown()
        while not self._ended and self._exchange.driver.outcome is None:
            if self._exchange.cancels or shutdown.is_due():
                self._cut_off()
            else:
                next(self, None)
        self._ended = True
        self._exchange.close()

    def _cut_off(self) -> None:
        try:
            if self._close is not None:
                self._close()
        finally:
            self._exchange.driver.finish(self._exchange.cut_off())


class AsyncPassingStream:
    """The same on an event loop: the stream is made by a task that outlives its client."""

    def __init__(self, exchange: DjangoExchange, response: Any) -> None:
        self._exchange = exchange
        self._response = response
        self._close = getattr(response._iterator, "aclose", None)
        self._rest = _pieces(response)
        self._made: asyncio.Queue[bytes | None] = asyncio.Queue(AHEAD)
        self._gone = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._task = task = asyncio.get_running_loop().create_task(self._make())
        _making.add(task)
        task.add_done_callback(_making.discard)
        try:
            while (chunk := await self._made.get()) is not None:
                yield chunk
        except BaseException:
            self._gone.set()
            while not self._made.empty():
                self._made.get_nowait()
            if self._exchange.cancels:
                task.cancel()
            raise
        await task

    async def _make(self) -> None:
        driver = self._exchange.driver
        recorder = Recorder(self._exchange)
        current.set(driver)
        try:
            try:
                async for chunk in self._rest:
                    if driver.outcome is None and not recorder.takes(chunk):
                        await self._finish(None)  # outgrown: complete now
                    await self._hand(chunk)
                    if driver.outcome is not None and self._gone.is_set():
                        break  # nothing of it is kept, and nobody reads it
            except asyncio.CancelledError:
                if driver.outcome is None:
                    await driver.finish(self._exchange.cut_off())
                raise
            except BaseException:
                if driver.outcome is None:
                    await self._finish(None)
                raise
            if driver.outcome is None:
                await self._finish(recorder.body())
        finally:
            if self._close is not None:
                await self._close()
            self._exchange.close()
            await self._hand(None)

    async def _hand(self, chunk: bytes | None) -> None:
        """Hand a chunk to the client, if it is there."""
        if self._gone.is_set():
            return
        handing = asyncio.ensure_future(self._made.put(chunk))
        leaving = asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait([handing, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            handing.cancel()
            leaving.cancel()

    async def _finish(self, body: bytes | None) -> None:
        answer = self._exchange.answer(self._response, body, sent=True)
        if not isinstance(await self._exchange.driver.finish(answer), Deliver):
            raise RuntimeError("the stream could not be recorded")


_making: set[asyncio.Task[None]] = set()
"""Streams under way; a task that nobody holds may vanish."""
