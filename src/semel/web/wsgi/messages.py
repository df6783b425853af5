"""WSGI helpers: the caller, the request's body, and complete responses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from semel.core.engine import Outcome, Refuse, Replay
from semel.core.policy import Policy
from semel.core.problems import Problem
from semel.web.http import headers as answer_headers
from semel.web.http.body import CHUNK, Body, Input, Intake, RequestLine
from semel.web.http.callers import Caller, Credentials

Environ = dict[str, Any]
Headers = list[tuple[str, str]]
StartResponse = Callable[..., Callable[[bytes], object]]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]

Ask = Callable[[Environ], Caller | WSGIApp]
"""Finds out who has sent a request: the name of its scope (`callers.named_caller`), or a WSGI
application that sends the refusal. It may read the body: the application gets it all the same."""

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


class WSGIView:
    """A WSGI request, as a `scope` or `key` function and the way in see it."""

    def __init__(self, environ: Environ) -> None:
        path = full_path(environ).encode("latin-1")
        self.native = environ
        self.method: str = environ["REQUEST_METHOD"]
        self.path = path.decode("utf-8", "replace")
        self.line: RequestLine = (
            self.method,
            path,
            environ.get("QUERY_STRING", "").encode("latin-1"),
            environ.get("CONTENT_TYPE", "").encode("latin-1"),
            environ.get("HTTP_CONTENT_ENCODING", "").encode("latin-1"),
        )

    def header(self, name: str) -> str | None:
        wanted = name.upper().replace("-", "_")
        if wanted not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            wanted = f"HTTP_{wanted}"
        value: str | None = self.native.get(wanted)
        return value

    def places(self) -> set[str]:
        below: str = self.native.get("PATH_INFO", "")
        return {below.encode("latin-1").decode("utf-8", "replace"), self.path}

    def credentials(self, names: Iterable[bytes]) -> Credentials:
        found = []
        for name in names:
            value = self.native.get("HTTP_" + name.decode("latin-1").upper().replace("-", "_"))
            if value:
                found.append((name, value.encode("latin-1")))
        return tuple(found)

    def session(self, cookie: str | None) -> bytes:
        if cookie is None:
            return b""
        for part in self.native.get("HTTP_COOKIE", "").split(";"):
            found, _, value = part.strip().partition("=")
            if found == cookie:
                return bytes(value.encode("latin-1"))
        return b""

    def user(self) -> str | None:
        return self.native.get("REMOTE_USER") or None


class HeldStart:
    """A `start_response` that waits until the application has returned, or writes."""

    def __init__(self, start_response: StartResponse) -> None:
        self._start_response = start_response
        self._told: tuple[Any, ...] = ()
        self._write: Callable[[bytes], object] = len
        self.begun = False
        """Whether the response may have begun to leave."""

    def __call__(
        self, status: str, headers: Headers, exc_info: Any = None
    ) -> Callable[[bytes], object]:
        told = (status, headers) if exc_info is None else (status, headers, exc_info)
        if self.begun:
            return self._start_response(*told)
        self._told = told
        return lambda data: self.begin()(data)

    @property
    def failed(self) -> bool:
        """Whether what waits is a server error."""
        return not self.begun and bool(self._told) and self._told[0].startswith("5")

    def begin(self) -> Callable[[bytes], object]:
        """Let the response begin; return what writes to it."""
        if not self.begun:
            self.begun = True
            if self._told:
                self._write = self._start_response(*self._told)
        return self._write


def full_path(environ: Environ) -> str:
    """Return the path as the client sent it, its bytes as latin-1 characters (PEP 3333)."""
    path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return path


def read_body(policy: Policy, environ: Environ, write: Callable[[bytes], object]) -> Problem | None:
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
    return Intake(policy).take(_chunks(stream, left), left or 0, write)


def _chunks(stream: Any, left: int | None) -> Iterator[bytes]:
    """What a stream has, but no more than `left` bytes."""
    while left is None or left > 0:
        chunk = stream.read(CHUNK if left is None else min(CHUNK, left))
        if not chunk:
            return
        if left is not None:
            left -= len(chunk)
        yield chunk


def with_body(environ: Environ, body: Body) -> Environ:
    """Return the request with its body to be read once more."""
    again = {**environ, "wsgi.input": Input(body), "CONTENT_LENGTH": str(body.size)}
    again.pop("HTTP_TRANSFER_ENCODING", None)
    return again


def send_whole(
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


def send_outcome(outcome: Outcome, problem_base: str, start_response: StartResponse) -> list[bytes]:
    """Send a replay or a refusal."""
    if isinstance(outcome, Replay):
        response = outcome.response
        headers = answer_headers.replayed(response.headers)
        return send_whole(response.status, headers, response.body or b"", start_response)
    assert isinstance(outcome, Refuse)
    return send_problem(outcome.problem, problem_base, start_response)


def send_problem(problem: Problem, problem_base: str, start_response: StartResponse) -> list[bytes]:
    """Send a problem."""
    response = problem.response(problem_base)
    return send_whole(response.status, response.headers, response.body or b"", start_response)
