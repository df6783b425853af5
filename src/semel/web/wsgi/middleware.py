"""The WSGI middleware (PEP 3333): for Flask, Pyramid, Bottle and bare applications.

The same engine as ASGI's, on the threads of the server. Place it inside authentication.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from typing import Any

from semel.applications import Endpoint
from semel.core import problems
from semel.core.engine import Bypass
from semel.core.policy import Policy
from semel.core.problems import Problem
from semel.core.remembered import RememberedRequest
from semel.idempotency import Idempotency
from semel.operation import NoOperation, current, unkeyed
from semel.runtime.drivers import ServerThreadDriver, ThreadDriver
from semel.runtime.operations import Known
from semel.web.http import admission, issue, key_source
from semel.web.http.body import Body
from semel.web.http.callers import (
    ANONYMOUS,
    Caller,
    caller_of,
    credential_headers,
    one_way_to_ask,
    scope_name,
)
from semel.web.wsgi.completing import ThreadCompleting
from semel.web.wsgi.endpoints import endpoints_of
from semel.web.wsgi.exchange import WSGIExchange
from semel.web.wsgi.messages import (
    Ask,
    Environ,
    Headers,
    HeldStart,
    StartResponse,
    WSGIApp,
    WSGIView,
    full_path,
    read_body,
    send_outcome,
    send_problem,
    send_whole,
    with_body,
)

log = logging.getLogger("semel")


class WSGIMiddleware:
    """Gives a WSGI application idempotency keys: `application = WSGIMiddleware(application, …)`.

    `caller`, for adapters: finds out who has sent a request, as `ASGIMiddleware` describes.

    Raises `PolicyError` where `Idempotency(scope=…)` names the caller already.
    """

    def __init__(
        self, app: WSGIApp, idempotency: Idempotency, *, caller: Ask | None = None
    ) -> None:
        one_way_to_ask(idempotency, caller)
        self.app = app
        self.idempotency = idempotency
        self._ask = caller
        self._completing = ThreadCompleting(self._exchange, idempotency)
        self.problem_base = idempotency.problem_base
        self._credentials = credential_headers(idempotency.credentials)
        self._keys_path = idempotency.issuer.path if idempotency.issuer is not None else None
        self._applications = idempotency.applications
        self.identified = caller is not None
        idempotency.serve(self)

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints of the application, none where they are unknown."""
        return list(endpoints_of(self.app))

    def within(self) -> tuple[()]:
        """Return nothing: an application that is mounted in another is one of its own."""
        return ()

    def _meet(self) -> None:
        if not self._applications.met:
            self.idempotency.meet()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        self._meet()
        path = environ.get("PATH_INFO", "")
        if path == self._keys_path:
            return self._issue(environ, start_response)
        policy = self.idempotency.routes.find(environ["REQUEST_METHOD"], path)
        if policy is None:
            return self.app(environ, start_response)
        return self._covered(policy, environ, start_response)

    def _covered(
        self, policy: Policy, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        idempotency = self.idempotency
        field = environ.get("HTTP_IDEMPOTENCY_KEY")
        fields = [] if field is None else [field.encode("latin-1", "replace")]
        problem = admission.unready(idempotency)
        if problem is not None:
            return self._refuse_unread(problem, policy, environ, start_response)
        keyed = bool(fields) or key_source.may_be_in_content(policy)
        if not keyed and not policy.next_key:
            return self._without_key(policy, environ, start_response)
        request = self._view(environ)
        caller = None
        if self._ask is None or policy.shared:
            caller = self._known(request)
            if policy.next_key:
                start_response = self._handing_out(caller, start_response)
            if not keyed:
                return self._without_key(policy, environ, start_response)
        problem = admission.malformed(fields)
        if problem is not None:
            return self._refuse_unread(problem, policy, environ, start_response)
        body = Body(policy.algorithm, request.line)
        try:
            return self._keyed(policy, fields, request, caller, body, start_response)
        except BaseException:
            body.close()
            raise

    def _keyed(
        self,
        policy: Policy,
        fields: list[bytes],
        request: WSGIView,
        caller: Caller | None,
        body: Body,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        idempotency, environ, base = self.idempotency, request.native, self.problem_base
        refusal = read_body(policy, environ, body.write)
        if refusal is not None:
            body.close()
            idempotency.operations.refuse(refusal)
            return send_problem(refusal, base, start_response)
        if caller is None:
            asked = self._asked(environ, body)
            if callable(asked):
                return asked(with_body(environ, body), start_response)
            caller = asked
            if policy.next_key:
                start_response = self._handing_out(caller, start_response)
            if not fields and not key_source.may_be_in_content(policy):
                return self._without_key(policy, with_body(environ, body), start_response)
        owner = scope_name(caller)
        admitted = admission.admit(
            idempotency,
            ServerThreadDriver,
            policy,
            fields,
            owner,
            request,
            body,
            (lambda: _remember(environ, owner)) if policy.remember_request else None,
        )
        if isinstance(admitted, Known):
            body.close()
            return send_outcome(admitted.outcome, base, start_response)
        if admitted is None:
            return self._without_key(policy, with_body(environ, body), start_response)
        outside = current.get()
        if outside is not None and outside.key == admitted.key:  # the same middleware, once more
            return self._bypass(with_body(environ, body), start_response)
        if admitted.policy.remember_request:
            self._completing.go_on()
        outcome = admitted.begin()
        if type(outcome) is Bypass:
            return self._bypass(with_body(environ, body), start_response)
        if outcome is not None:
            body.close()
            return send_outcome(outcome, base, start_response)
        return self._operate(admitted, body, with_body(environ, body), start_response)

    def _operate(
        self, driver: ThreadDriver, body: Body, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Have the handler run under a claim."""
        exchange = self._exchange(start_response)
        exchange.begin(driver, body)
        return exchange.run(environ)

    def _exchange(self, start_response: StartResponse) -> WSGIExchange:
        return WSGIExchange(self.app, self.problem_base, start_response)

    def _bypass(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Have the handler run without a record."""
        return self.app(environ, start_response)

    def _view(self, environ: Environ) -> WSGIView:
        return WSGIView(environ)

    def complete_abandoned(self, idle: float = 1.0) -> int:
        """Finish operations that a crash has abandoned; return how many were run.

        As `ASGIMiddleware.complete_abandoned`; the handler finds `environ["semel.completing"]`.
        """
        return self._completing.complete_abandoned(idle)

    def _asked(self, environ: Environ, body: Body) -> Caller | WSGIApp:
        """Ask who has sent a request whose body has been read."""
        assert self._ask is not None
        caller = self._ask(with_body(environ, body))
        if caller == ANONYMOUS:  # nobody is logged in: what there is tells them apart
            return self._known(self._view(environ))
        return caller

    def _known(self, request: WSGIView) -> Caller:
        own = self.idempotency
        return caller_of(request, own.scope, own.session_cookie, self._credentials)

    # --- issued keys -------------------------------------------------------------------------

    def _issue(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        idempotency = self.idempotency
        request = self._view(environ)
        policy = dataclasses.replace(idempotency.routes.default, max_request_body=issue.LARGEST)
        body = Body(policy.algorithm, request.line)
        refusal = read_body(policy, environ, body.write)
        if refusal is not None:
            return send_problem(refusal, self.problem_base, start_response)
        caller = self._known(request) if self._ask is None else self._asked(environ, body)
        if callable(caller):
            return caller(with_body(environ, body), start_response)
        wanting = b"".join(body.chunks())
        answer = issue.issue(idempotency, scope_name(caller), request.method, wanting)
        return send_whole(answer.status, answer.headers, answer.body or b"", start_response)

    def _handing_out(self, caller: Caller, start_response: StartResponse) -> StartResponse:
        """Begin responses with a fresh key for the caller's next operation."""
        issuer = self.idempotency.issuer
        assert issuer is not None
        owner = scope_name(caller)

        def start(status: str, headers: Headers, exc_info: Any = None) -> Any:
            (key,) = issuer.issue(owner).keys
            headers = [*headers, ("Idempotency-Key", key)]
            return start_response(status, headers, *(() if exc_info is None else (exc_info,)))

        return start

    # --- requests without a key --------------------------------------------------------------

    def _without_key(
        self, policy: Policy, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        problem = admission.without_key(policy)
        if problem is None:
            answer = self._unprotected(environ, start_response)
            if answer is not None:
                return answer
            problem = problems.KEY_MISSING
        return self._refuse_unread(problem, policy, environ, start_response)

    def _unprotected(
        self, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes] | None:
        """Run a request without a key. None: its handler asked for the operation, and failed.

        Frameworks make a server error of that, which has not begun to leave while it is held.
        """
        held = HeldStart(start_response)
        asked: list[NoOperation] = []
        before = unkeyed.set(asked)
        try:
            answer = self.app(environ, held)
        except NoOperation:
            if not held.begun:
                return None
            raise
        finally:
            unkeyed.reset(before)
        if asked and held.failed:
            close = getattr(answer, "close", None)
            if close is not None:
                close()
            return None
        held.begin()
        return answer

    def _refuse_unread(
        self, problem: Problem, policy: Policy, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        self._drain(policy, environ)
        return send_outcome(
            self.idempotency.operations.refuse(problem), self.problem_base, start_response
        )

    def _drain(self, policy: Policy, environ: Environ) -> None:
        """Read what is left of the body, so that the client gets a response and not a reset."""
        read_body(policy, environ, lambda chunk: None)


def _remember(environ: Environ, owner: str) -> RememberedRequest:
    headers = [
        (name[5:].replace("_", "-").lower().encode(), str(value).encode("latin-1"))
        for name, value in environ.items()
        if name.startswith("HTTP_")
    ]
    content_type = environ.get("CONTENT_TYPE")
    if content_type:
        headers.append((b"content-type", content_type.encode("latin-1")))
    path = full_path(environ)
    return RememberedRequest(
        environ["REQUEST_METHOD"],
        path,
        path.encode("latin-1"),
        environ.get("SCRIPT_NAME", ""),
        environ.get("QUERY_STRING", "").encode("latin-1"),
        tuple(headers),
        owner,
        "",
        b"",
    )
