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
from collections.abc import Callable, Iterable
from typing import Any, cast

from semel.core import problems
from semel.core.commands import Abandoned, Park, Remembered, StoreError
from semel.core.engine import Bypass, Refuse, Request, run, settled
from semel.core.keys import InvalidKey, hash_key, parse_key
from semel.core.policy import Policy
from semel.core.record import UnreadableRecord
from semel.core.remembered import RememberedRequest
from semel.idempotency import Idempotency, Whose, named_scope, scope_name
from semel.operation import NoOperation
from semel.runtime.drivers import ThreadDriver
from semel.web.http import completer
from semel.web.http import issue as issuer
from semel.web.http import key_source as naming
from semel.web.http.body import Body, Input
from semel.web.wsgi.exchange import Exchange
from semel.web.wsgi.messages import (
    Environ,
    Headers,
    StartResponse,
    View,
    WSGIApp,
    read_body,
    send_outcome,
    send_problem,
    send_whole,
    with_body,
)

log = logging.getLogger("semel")


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
            return send_problem(problems.STORE_UNAVAILABLE, self.problem_base, start_response)
        if policy.next_key:
            start_response = self._handing_out(environ, start_response)
        field = environ.get("HTTP_IDEMPOTENCY_KEY")
        fields = [] if field is None else [field.encode("latin-1", "replace")]
        try:
            parse_key(fields)
        except InvalidKey as error:
            self._drain(policy, environ)
            return send_problem(problems.key_invalid(str(error)), self.problem_base, start_response)
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
            refusal = read_body(policy, environ, body.write)
            if refusal is not None:
                body.close()
                return send_problem(refusal, self.problem_base, start_response)
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
            return send_problem(problems.key_invalid(str(error)), self.problem_base, start_response)
        if named is None:
            return self._without_key(policy, with_body(environ, body), start_response)
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
            return send_outcome(outcome, self.problem_base, start_response)
        life = run(request, policy, found, opens=idempotency.opens(policy))
        driver = ThreadDriver(idempotency.runtime, life, key_hash, policy.seconds)
        outcome = driver.begin()
        environ = with_body(environ, body)
        if type(outcome) is Bypass:
            return self.app(environ, start_response)
        if outcome is not None:
            body.close()
            return send_outcome(outcome, self.problem_base, start_response)
        return Exchange(self.app, self.problem_base, policy, driver, body, start_response).run(
            environ
        )

    # --- issued keys -------------------------------------------------------------------------

    def _issue(
        self, method: str, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        body = bytearray()
        policy = dataclasses.replace(
            self._idempotency.routes.default, max_request_body=issuer.LARGEST
        )
        refusal = read_body(policy, environ, body.extend)
        if refusal is not None:
            return send_problem(refusal, self.problem_base, start_response)
        owner = scope_name(self._whose(environ))
        answer = issuer.issue(self._idempotency, owner, method, bytes(body))
        return send_whole(answer.status, answer.headers, answer.body or b"", start_response)

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
        exchange = Exchange(self.app, self.problem_base, todo.policy, driver, todo.body, _unheard)
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
            return send_problem(problems.KEY_MISSING, self.problem_base, start_response)
        try:
            return self.app(environ, start_response)
        except NoOperation:  # the handler asked for the operation, so it cannot do without a key
            self._drain(policy, environ)
            return send_problem(problems.KEY_MISSING, self.problem_base, start_response)

    def _drain(self, policy: Policy, environ: Environ) -> None:
        """Read what is left of the body, so that the client gets an answer and not a reset."""
        read_body(policy, environ, lambda chunk: None)


def _unheard(status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], object]:
    """The client has gone long ago."""
    return len
