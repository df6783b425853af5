"""WSGI (PEP 3333): a middleware for Flask, Django, Pyramid, Bottle and bare applications.

The same engine as ASGI's, on the threads of the server. Place it inside authentication.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from semel.core import problems
from semel.core.commands import Abandoned, Answer, Park, Remembered, StoreError
from semel.core.engine import Bypass, Deliver, Outcome, Refuse, Replay, Request, run, settled
from semel.core.keys import InvalidKey, hash_key, parse_key
from semel.core.policy import Policy
from semel.core.problems import Problem
from semel.core.record import Response, UnreadableRecord
from semel.core.remembered import RememberedRequest
from semel.core.steps import OutcomeUnknown, StepFenced
from semel.drivers import ThreadDriver
from semel.failpoints import failpoint
from semel.idempotency import Idempotency, Whose, named_scope, scope_name
from semel.operation import NoOperation, current
from semel.web import completer, issuer, naming
from semel.web import headers as answer_headers
from semel.web.body import CHUNK, Body, Input, Intake

log = logging.getLogger("semel")

Environ = dict[str, Any]
Headers = list[tuple[str, str]]
StartResponse = Callable[..., Callable[[bytes], object]]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]

_REASONS = {
    200: "OK",
    201: "Created",
    202: "Accepted",
    204: "No Content",
    303: "See Other",
    400: "Bad Request",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    410: "Gone",
    413: "Content Too Large",
    422: "Unprocessable Content",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class WSGIMiddleware:
    """Gives a WSGI application idempotency keys: `application = WSGIMiddleware(application, …)`."""

    def __init__(self, app: WSGIApp, idempotency: Idempotency) -> None:
        self.app = app
        self._idempotency = idempotency
        self._completing = 0  # the process whose thread looks for abandoned operations
        self.problem_base = idempotency.problem_base
        self._keys_path = idempotency.issuer.path if idempotency.issuer is not None else None

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        method = environ["REQUEST_METHOD"]
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        if path == self._keys_path:
            return self._issue(method, environ, start_response)
        policy = self._idempotency.routes.find(method, environ.get("PATH_INFO", ""))
        if policy is None:
            return self.app(environ, start_response)
        if not self._idempotency.started and not self._idempotency.ready():
            self._drain(policy, environ)
            return self._refuse(problems.STORE_UNAVAILABLE, start_response)
        if policy.next_key:
            start_response = self._handing_out(environ, start_response)
        field = environ.get("HTTP_IDEMPOTENCY_KEY")
        fields = [] if field is None else [field.encode("latin-1", "replace")]
        try:
            parse_key(fields)
        except InvalidKey as error:
            self._drain(policy, environ)
            return self._refuse(problems.key_invalid(str(error)), start_response)
        if not fields and not naming.may_be_in_content(policy):
            return self._without_key(policy, environ, start_response)
        body = Body(
            policy.algorithm,
            method,
            path.encode("latin-1"),
            environ.get("QUERY_STRING", "").encode("latin-1"),
            environ.get("CONTENT_TYPE", "").encode("latin-1"),
            environ.get("HTTP_CONTENT_ENCODING", "").encode("latin-1"),
        )
        try:
            refusal = _read(policy, environ, body.write)
            if refusal is not None:
                body.close()
                return self._refuse(refusal, start_response)
            return self._named(policy, fields, body, environ, start_response)
        except BaseException:
            body.close()
            raise

    def _named(
        self,
        policy: Policy,
        fields: list[bytes],
        body: Body,
        environ: Environ,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        owner = scope_name(self._whose(environ))
        try:
            named = naming.name(self._idempotency, policy, fields, owner, View(environ), body)
        except InvalidKey as error:
            body.close()
            return self._refuse(problems.key_invalid(str(error)), start_response)
        if named is None:
            return self._without_key(policy, _with_body(environ, body), start_response)
        return self._operate(named, owner, body, environ, start_response)

    def _operate(
        self,
        named: naming.Named,
        owner: str,
        body: Body,
        environ: Environ,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        idempotency, policy = self._idempotency, named.policy
        key_hash = hash_key(owner, named.key)
        kept_request = None
        if policy.remember_request:
            kept_request = completer.remembered(policy, body, self._remember(environ))
            self._complete_on()
        request = Request(
            key_hash, idempotency.owner(), body.fingerprint, kept_request, late=named.late
        )
        try:
            found = None if named.late else idempotency.look_up(key_hash)
            outcome = settled(body.fingerprint, policy, *found) if found is not None else None
        except UnreadableRecord:
            found, outcome = None, Refuse(problems.STORE_UNAVAILABLE)
        if outcome is not None:
            body.close()
            return self.answer(outcome, start_response)
        life = run(request, policy, found, opens=idempotency.opens(policy))
        driver = ThreadDriver(idempotency.runtime, life, key_hash, policy.seconds)
        outcome = driver.begin()
        environ = _with_body(environ, body)
        if type(outcome) is Bypass:
            return self.app(environ, start_response)
        if outcome is not None:
            body.close()
            return self.answer(outcome, start_response)
        return _Exchange(self, policy, driver, body, start_response).run(environ)

    # --- issued keys -------------------------------------------------------------------------

    def _issue(
        self, method: str, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        body = bytearray()
        policy = dataclasses.replace(
            self._idempotency.routes.default, max_request_body=issuer.LARGEST
        )
        refusal = _read(policy, environ, body.extend)
        if refusal is not None:
            return self._refuse(refusal, start_response)
        owner = scope_name(self._whose(environ))
        answer = issuer.issue(self._idempotency, owner, method, bytes(body))
        return _whole(answer.status, answer.headers, answer.body or b"", start_response)

    def _handing_out(self, environ: Environ, start_response: StartResponse) -> StartResponse:
        """Begin answers with a fresh key for the caller's next operation."""
        issuing = self._idempotency.issuer
        assert issuing is not None
        owner = scope_name(self._whose(environ))

        def start(status: str, headers: Headers, exc_info: Any = None) -> Any:
            (key,) = issuing.issue(owner).keys
            headers = [*headers, ("Idempotency-Key", key)]
            return start_response(status, headers, *(() if exc_info is None else (exc_info,)))

        return start

    # --- what crashes have abandoned ---------------------------------------------------------

    def _remember(self, environ: Environ) -> RememberedRequest:
        headers = [
            (name[5:].replace("_", "-").lower().encode(), str(value).encode("latin-1"))
            for name, value in environ.items()
            if name.startswith("HTTP_")
        ]
        content_type = environ.get("CONTENT_TYPE")
        if content_type:
            headers.append((b"content-type", content_type.encode("latin-1")))
        root, path = environ.get("SCRIPT_NAME", ""), environ.get("PATH_INFO", "")
        return RememberedRequest(
            environ["REQUEST_METHOD"],
            root + path,
            (root + path).encode("latin-1"),
            root,
            environ.get("QUERY_STRING", "").encode("latin-1"),
            tuple(headers),
            scope_name(self._whose(environ)),
            "",
            b"",
        )

    def _complete_on(self) -> None:
        """Look for abandoned operations from now on, from a thread of this process."""
        every = self._idempotency.complete_every
        if every is None or self._completing == os.getpid():
            return
        self._completing = os.getpid()
        threading.Thread(
            target=self._complete_each,
            args=(every.total_seconds(),),
            name="semel-completer",
            daemon=True,
        ).start()

    def _complete_each(self, every: float) -> None:
        while True:
            time.sleep(every * random.uniform(0.75, 1.25))  # apart, not secret
            if not self._idempotency.started:
                continue
            try:
                self.complete_abandoned()
            except StoreError as error:
                log.warning("could not look for abandoned operations: %s", error)
            except Exception:
                log.exception("could not complete abandoned operations")

    def complete_abandoned(self, idle: float = 1.0) -> int:
        """Finish operations that a crash has abandoned; return how many were run.

        As `ASGIMiddleware.complete_abandoned`; the handler finds `environ["semel.completing"]`.
        """
        store = self._idempotency.store
        ran = 0
        abandoned = store.execute(Abandoned(completer.MOST, idle))
        for each in cast("tuple[Remembered, ...]", abandoned):
            todo = completer.work(self._idempotency, each, store.execute(completer.wanted(each)))
            if isinstance(todo, Park):
                store.execute(todo)
            elif todo is not None:
                ran += self._complete(todo)
        return ran

    def _complete(self, todo: completer.Work) -> bool:
        life = run(todo.request, todo.policy, todo.found)
        driver = ThreadDriver(self._idempotency.runtime, life, todo.key, todo.policy.seconds)
        outcome = driver.begin()
        if outcome is not None:
            todo.body.close()
            return False
        asked = todo.remembered
        environ: Environ = {
            "REQUEST_METHOD": asked.method,
            "SCRIPT_NAME": asked.root_path,
            "PATH_INFO": asked.path[len(asked.root_path) :],
            "QUERY_STRING": asked.query.decode("latin-1"),
            "CONTENT_LENGTH": str(todo.body.size),
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": Input(todo.body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "semel.completing": asked.scope,
        }
        for name, value in asked.headers:
            field = name.decode("latin-1").upper().replace("-", "_")
            field = field if field == "CONTENT_TYPE" else f"HTTP_{field}"
            environ[field] = value.decode("latin-1")
        exchange = _Exchange(self, todo.policy, driver, todo.body, _unheard)
        try:
            answer = exchange.run(environ)
            for _ in answer:
                continue
            if hasattr(answer, "close"):
                answer.close()
        except Exception:
            log.exception("operation %s failed", todo.key[:6].hex())
        return True

    def _whose(self, environ: Environ) -> Whose:
        idempotency = self._idempotency
        if idempotency.scope is not None:
            return named_scope(idempotency.scope(View(environ)))
        cookie = ""
        if idempotency.session_cookie is not None:
            for part in environ.get("HTTP_COOKIE", "").split(";"):
                name, _, value = part.strip().partition("=")
                if name == idempotency.session_cookie:
                    cookie = value
                    break
        user = environ.get("REMOTE_USER") or None
        authorization: str = environ.get("HTTP_AUTHORIZATION", "")
        return user, authorization.encode("latin-1"), cookie.encode("latin-1")

    def _without_key(
        self, policy: Policy, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        if policy.required:
            self._drain(policy, environ)
            return self._refuse(problems.KEY_MISSING, start_response)
        try:
            return self.app(environ, start_response)
        except NoOperation:  # the handler asked for the operation, so it cannot do without a key
            self._drain(policy, environ)
            return self._refuse(problems.KEY_MISSING, start_response)

    def _drain(self, policy: Policy, environ: Environ) -> None:
        """Read what is left of the body, so that the client gets an answer and not a reset."""
        _read(policy, environ, lambda chunk: None)

    def answer(self, outcome: Outcome, start_response: StartResponse) -> list[bytes]:
        """Send a replay or a refusal."""
        if isinstance(outcome, Replay):
            response = outcome.response
            headers = answer_headers.replayed(response.headers)
            return _whole(response.status, headers, response.body or b"", start_response)
        assert isinstance(outcome, Refuse)
        return self._refuse(outcome.problem, start_response)

    def _refuse(self, problem: Problem, start_response: StartResponse) -> list[bytes]:
        response = problem.response(self.problem_base)
        return _whole(response.status, response.headers, response.body or b"", start_response)


class _Exchange:
    """One operation: what the application answers, and what becomes of it."""

    def __init__(
        self,
        middleware: WSGIMiddleware,
        policy: Policy,
        driver: ThreadDriver,
        body: Body,
        start_response: StartResponse,
    ) -> None:
        self._middleware = middleware
        self._policy = policy
        self._driver = driver
        self._body = body
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

    def run(self, environ: Environ) -> Iterable[bytes]:
        """Call the application; return what the server is to send."""
        before = current.set(self._driver)
        try:
            self._iterable = self._middleware.app(environ, self._started)
            chunks = iter(self._iterable)
            length = self._gather(chunks)
            if length is not None:  # a stream: it goes out as it is made
                self._passing = True
                self._write = self._start_response(self._status, self._headers)
                return _Stream(self, chunks)
        except BaseException as error:  # noqa: BLE001  # raised again, or answered and logged
            return self._raised(error)
        finally:
            current.reset(before)
        return self._finish_whole(chunks)

    def _started(
        self, status: str, headers: Headers, exc_info: Any = None
    ) -> Callable[[bytes], object]:
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
            return self._middleware.answer(outcome, self._start_response)
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
        driver = self._driver
        if driver.outcome is not None:  # the handler has called op.commit()
            return driver.outcome
        return driver.finish(Answer(response, driver.taken, self._passing))

    def _raised(self, error: BaseException) -> Iterable[bytes]:
        failed = problems.HANDLER_FAILED
        outcome = self._finish(failed.response(self._middleware.problem_base))
        self.close()
        if outcome == Deliver(kept=False):
            if not isinstance(error, (StoreError, OutcomeUnknown, StepFenced)):
                raise error
            failed = problems.OUTCOME_UNRECORDED  # `op.connection()` could not be had
        log.error("operation %s failed", self._driver.key[:6].hex(), exc_info=error)
        if isinstance(outcome, Deliver):
            outcome = Refuse(failed)
        return self._middleware.answer(outcome, self._start_response)

    def stream(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Pass a stream through while it is recorded; record it before its end is sent."""
        following = self._recorded(self._following(chunks))
        try:
            yield from self._chunks
            yield from following
        except GeneratorExit:
            # The server has closed it, its client being gone; the handler runs to its end.
            for _ in self._recorded(self._following(chunks)):
                pass
            self._finish_stream()
            raise
        except BaseException:
            self._broken = True
            self._finish_stream()
            raise
        self._finish_stream()

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
        self._body.close()
        close = getattr(self._iterable, "close", None)
        if close is not None:
            close()


class _Stream:
    """An answer on its way, chunk by chunk."""

    def __init__(self, exchange: _Exchange, chunks: Iterator[bytes]) -> None:
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

    def __init__(self, exchange: _Exchange, held: list[bytes], rest: Iterator[bytes]) -> None:
        self._exchange = exchange
        self._held = iter(held)
        self._rest = rest

    def __iter__(self) -> Iterator[bytes]:
        yield from self._held
        yield from self._rest

    def close(self) -> None:
        """Called by the server at the end."""
        failpoint("after_answer")
        for _ in self._rest:  # the client may have gone; the handler still runs to its end
            pass
        self._exchange.close()


def _with_body(environ: Environ, body: Body) -> Environ:
    """Return the request with its body to be read once more."""
    again = {**environ, "wsgi.input": Input(body), "CONTENT_LENGTH": str(body.size)}
    again.pop("HTTP_TRANSFER_ENCODING", None)
    return again


class View:
    """What a `scope` function sees of a WSGI request."""

    def __init__(self, environ: Environ) -> None:
        self.method: str = environ["REQUEST_METHOD"]
        path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        self.path = path.encode("latin-1").decode("utf-8", "replace")  # PEP 3333 has it as bytes
        self.native = environ

    def header(self, name: str) -> str | None:
        wanted = name.upper().replace("-", "_")
        if wanted not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            wanted = f"HTTP_{wanted}"
        value: str | None = self.native.get(wanted)
        return value


def _read(policy: Policy, environ: Environ, write: Callable[[bytes], object]) -> Problem | None:
    """Read the body to its end."""
    stream = environ["wsgi.input"]
    declared = environ.get("CONTENT_LENGTH") or ""
    left = int(declared) if declared.isdigit() else None
    if left is None and not environ.get("wsgi.input_terminated"):
        if "HTTP_TRANSFER_ENCODING" in environ:
            raise RuntimeError(
                "this server does not say where a chunked body ends (wsgi.input_terminated), so"
                " the request cannot be told from another; use a server or a proxy that does"
            )
        return None
    intake = Intake(policy)
    refusal = None
    if left is not None and left > policy.max_request_body:
        refusal = problems.request_too_large(policy.max_request_body)
    while left is None or left > 0:
        chunk = stream.read(CHUNK if left is None else min(CHUNK, left))
        if not chunk:
            break
        if left is not None:
            left -= len(chunk)
        too_large = intake.count(len(chunk))
        if too_large is not None:
            return too_large
        if not intake.left():
            return problems.BODY_TIMEOUT
        if refusal is None:
            write(chunk)
    if left:
        return problems.BODY_TIMEOUT  # the client has gone, or the server gave up on it
    return refusal


def _unheard(status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], object]:
    """The client has gone long ago."""
    return len


def _whole(
    status: int,
    fields: Iterable[tuple[bytes, bytes]],
    body: bytes,
    start_response: StartResponse,
) -> list[bytes]:
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]
    has_body = status >= 200 and status not in (204, 304)
    if has_body and not any(name == "content-length" for name, _ in headers):
        headers.append(("content-length", str(len(body))))
    start_response(f"{status} {_REASONS.get(status, 'Status')}", headers)
    return [body] if has_body else []
