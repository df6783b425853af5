"""One operation under WSGI: runs the application, and records its response on the way out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from semel.core import failures
from semel.core.commands import Answer
from semel.core.engine import Deliver, Outcome
from semel.core.policy import Policy
from semel.core.record import Response
from semel.failpoints import failpoint
from semel.operation import current
from semel.runtime.drivers import ThreadDriver
from semel.runtime.servers import Shutdown
from semel.web.http import headers as answer_headers
from semel.web.http.body import Body
from semel.web.wsgi.messages import Environ, Headers, StartResponse, WSGIApp, send_outcome

log = logging.getLogger("semel")


class WSGIExchange:
    """One request to the application: its response, and what becomes of it once `begin` was called.

    `begin` comes before `run`, or from within the application: until then nothing is held back.
    """

    _driver: ThreadDriver
    _policy: Policy
    _body: Body

    def __init__(self, app: WSGIApp, problem_base: str, start_response: StartResponse) -> None:
        self.begun = False
        self._running = False
        self.raised = False
        """Whether the response is known to come from an exception that left the handler."""
        self._app = app
        self._problem_base = problem_base
        self._start_response = start_response
        self._status = ""
        self._headers: Headers = []
        self._exc_info: Any = None
        self._written: list[bytes] = []
        self._chunks: list[bytes] = []
        self._size = 0
        self._iterable: Iterable[bytes] = ()
        self._passing = False
        self._broken = False

    def begin(self, driver: ThreadDriver, body: Body) -> None:
        """Take charge of an operation whose handler is to run now."""
        self._driver, self._policy, self._body = driver, driver.policy, body
        self.begun = True
        if self._running:
            current.set(driver)

    def run(self, environ: Environ) -> Iterable[bytes]:
        """Call the application; return what the server is to send."""
        before = current.set(self._driver if self.begun else current.get())
        self._running = True
        try:
            self._iterable = self._app(environ, self._started)
            if not self.begun:
                return self._iterable
            chunks = iter(self._iterable)
            length = self._gather(chunks)
            if length is not None:  # a stream: it goes out as it is made
                self._passing = True
                self._write = self._start_response(self._status, self._headers)
                return _Stream(self, chunks)
        except BaseException as error:
            if not self.begun:
                raise
            return self._failed(error)
        finally:
            self._running = False
            current.reset(before)
        return self._finish_whole(chunks)

    def _started(
        self, status: str, headers: Headers, exc_info: Any = None
    ) -> Callable[[bytes], object]:
        if not self.begun:
            told = (status, headers) if exc_info is None else (status, headers, exc_info)
            return self._start_response(*told)
        if self._passing and exc_info is not None:
            raise exc_info[1].with_traceback(exc_info[2])
        self._status, self._headers, self._exc_info = status, list(headers), exc_info
        return self._written.append

    def _gather(self, chunks: Iterator[bytes]) -> int | None:
        """Collect the answer. None: it is whole, or over the limit; else what came of a stream."""
        for chunk in chunks:
            self._record(chunk)
            if self._size > self._policy.max_response_body:
                return None
            if chunk and self._streams():
                return self._size
        self._take_written()
        if not self._status:
            raise RuntimeError("the application returned without calling start_response")
        return None

    def _streams(self) -> bool:
        """Whether bytes are to go out before the answer is whole."""
        if self._driver.outcome is not None:  # `op.commit()`
            return True
        if self._driver.transaction is not None or self._policy.guarantee == "atomic":
            return False
        if isinstance(self._iterable, (list, tuple)):
            return False
        return not any(name.lower() == "content-length" for name, _ in self._headers)

    def _record(self, chunk: bytes) -> None:
        self._take_written()
        self._size += len(chunk)
        self._chunks.append(chunk)

    def _take_written(self) -> None:
        for chunk in self._written:
            self._size += len(chunk)
            self._chunks.append(chunk)
        self._written.clear()

    def _finish_whole(self, rest: Iterator[bytes]) -> Iterable[bytes]:
        fits = self._size <= self._policy.max_response_body
        held = self._chunks
        outcome = self._finish(self._response(b"".join(held) if fits else None))
        if type(outcome) is not Deliver:
            self.close()
            return send_outcome(outcome, self._problem_base, self._start_response)
        failpoint("before_answer")
        self._passing = True
        self._start_response(self._status, self._headers)
        self._chunks = []
        return _Rest(self, held, rest)

    def _response(self, body: bytes | None) -> Response:
        fields = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in self._headers]
        status = int(self._status.split(" ", 1)[0])
        return Response(status, answer_headers.kept(fields, self._policy), body)

    def _finish(self, response: Response) -> Outcome:
        taken = self._driver.taken
        return self._record_outcome(Answer(response, taken, self._passing, raised=self.raised))

    def _record_outcome(self, answer: Answer) -> Outcome:
        driver = self._driver
        if driver.outcome is not None:  # the handler has called op.commit()
            return driver.outcome
        return driver.finish(answer)

    def _failed(self, error: BaseException) -> Iterable[bytes]:
        failed = failures.failed(self._problem_base, atomic=self._driver.taken)
        outcome = failures.told(self._record_outcome(failed), error)
        self.close()
        if type(outcome) is Deliver:
            raise error
        log.error("operation %s failed", self._driver.key[:6].hex(), exc_info=error)
        return send_outcome(outcome, self._problem_base, self._start_response)

    def stream(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Pass a stream through while it is recorded; record it before its end is sent."""
        following = self._recorded(self._following(chunks))
        try:
            yield from self._chunks
            yield from following
        except GeneratorExit:
            # The server has closed it, its client being gone.
            if self._goes_on(chunks):
                self._finish_stream()
            else:
                self._cut_off()
            raise
        except BaseException:
            self._broken = True
            self._finish_stream()
            raise
        self._finish_stream()

    def _goes_on(self, chunks: Iterator[bytes]) -> bool:
        """Go on without a client. False: the handler has been ended before its end.

        Unless it is to be cancelled it runs on, as long as its response can still be kept and the
        server does not shut down.
        """
        if self._policy.on_disconnect == "cancel":
            return self._driver.outcome is not None
        shutdown = Shutdown()
        rest = self._recorded(self._following(chunks))
        while self._driver.outcome is None:
            if shutdown.is_due():
                return False
            if next(rest, None) is None:
                break
        return True

    def _cut_off(self) -> None:
        """Have the handler end, then record that it was ended."""
        failpoint("cut_off")
        log.info("operation %s was ended: its client had left", self._driver.key[:6].hex())
        before = current.set(self._driver)
        try:
            self._close_iterable()
        finally:
            current.reset(before)
            atomic, policy = self._driver.taken, self._policy
            self._record_outcome(failures.cut_off(self._problem_base, policy=policy, atomic=atomic))

    def _recorded(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._record(chunk)
            if self._size > self._policy.max_response_body:
                self._broken = True  # outgrown: complete now, and forget what was recorded
                self._finish_stream()
                self._chunks.clear()
            yield chunk

    def _following(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The application's next chunks, each made within the operation's context."""
        while True:
            before = current.set(self._driver)
            try:
                chunk = next(chunks, None)
            finally:
                current.reset(before)
            if chunk is None:
                return
            yield chunk

    def _finish_stream(self) -> None:
        """Record the stream: with its body, unless it broke off or has outgrown the limit."""
        body = None if self._broken else b"".join(self._chunks)
        if type(self._finish(self._response(body))) is not Deliver:
            raise RuntimeError("the stream could not be recorded")

    def close(self) -> None:
        """Close the application's iterable and the request's body."""
        if self.begun:
            self._body.close()
        self._close_iterable()

    def _close_iterable(self) -> None:
        close = getattr(self._iterable, "close", None)
        self._iterable = ()
        if close is not None:
            close()


class _Stream:
    """An answer on its way, chunk by chunk."""

    def __init__(self, exchange: WSGIExchange, chunks: Iterator[bytes]) -> None:
        self._exchange = exchange
        self._chunks = exchange.stream(chunks)
        self._begun = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._begun = True
        return next(self._chunks)

    def close(self) -> None:
        """Called by the server at the end, whether or not it has sent everything."""
        try:
            if not self._begun:
                next(self._chunks, None)  # enter it, so that closing it records the answer
            self._chunks.close()  # type: ignore[attr-defined]
        finally:
            self._exchange.close()


class _Rest:
    """A recorded answer, and what an answer over the limit still makes."""

    def __init__(self, exchange: WSGIExchange, held: list[bytes], rest: Iterator[bytes]) -> None:
        self._exchange = exchange
        self._held = iter(held)
        self._rest = rest

    def __iter__(self) -> Iterator[bytes]:
        yield from self._held
        yield from self._rest

    def close(self) -> None:
        """Called by the server at the end."""
        failpoint("after_answer")
        self._exchange.close()
