"""ASGI helpers: headers, the caller, the request's body, and complete responses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Any, AnyStr

from semel.core import problems
from semel.core.engine import Outcome, Refuse, Replay
from semel.core.policy import Policy
from semel.core.problems import Problem
from semel.web.asgi.timeouts import timeout_if_suspended
from semel.web.http import headers as answer_headers
from semel.web.http.body import Body, Intake, RequestLine
from semel.web.http.callers import Caller, Credentials, session_user

Message = MutableMapping[str, Any]
ASGIScope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[ASGIScope, Receive, Send], Awaitable[None]]

Ask = Callable[[ASGIScope, Receive], Awaitable[Caller | ASGIApp]]
"""Finds out who has sent a request: the name of its scope (`callers.named_caller`), or an ASGI
application that sends the refusal. It may read the body: the application gets it all the same."""
OPERATION = "semel.operation"
"""In the scope: the driver of the operation that this very request runs in."""
SERVED = "semel.served"
"""In the scope: the `Idempotency` that has this request in hand already."""
ROOT = "semel.root"
"""In the scope: below which path the patterns of routes are, where that is not `root_path`."""

_WANTED = frozenset(
    {
        b"idempotency-key",
        b"content-type",
        b"content-encoding",
        b"content-length",
        b"cookie",
    }
)


def looked_at(credentials: Iterable[bytes]) -> frozenset[bytes]:
    """Return the names of the headers that `wanted` finds, with these among them."""
    return _WANTED.union(credentials)


def wanted(scope: ASGIScope, names: frozenset[bytes]) -> tuple[list[bytes], dict[bytes, bytes]]:
    """Return the values of the key's header, and the other headers of these names."""
    found: dict[bytes, bytes] = {}
    fields: list[bytes] = []
    for name, value in scope["headers"]:
        if name in names:
            if name == b"idempotency-key":
                fields.append(value)
            elif name in found:  # doubled: HTTP/2 may split cookies, RFC 9113 section 8.2.3
                found[name] += (b"; " if name == b"cookie" else b", ") + value
            else:
                found[name] = value
    return fields, found


class ASGIView:
    """An ASGI request, as a `scope` or `key` function and the way in see it."""

    __slots__ = ("_found", "line", "method", "native", "path")

    def __init__(self, scope: ASGIScope, found: dict[bytes, bytes]) -> None:
        self.method: str = scope["method"]
        path: str = scope["path"]
        raw: bytes = scope.get("raw_path") or path.encode()
        root = scope.get("root_path")
        if root:
            root = scope.get("app_root_path", root)  # without where Starlette has mounted it
            path, raw = below(root, path), below(root.encode(), raw)
        self.path = path
        self.native = scope
        self._found = found
        self.line: RequestLine = (
            self.method,
            raw,
            scope.get("query_string", b""),
            found.get(b"content-type", b""),
            found.get(b"content-encoding", b""),
        )

    def header(self, name: str) -> str | None:
        wanted = name.lower().encode("latin-1")
        values = [value for field, value in self.native["headers"] if field == wanted]
        return b", ".join(values).decode("latin-1") if values else None

    def credentials(self, names: Iterable[bytes]) -> Credentials:
        found = self._found
        return tuple((name, found[name]) for name in names if name in found)

    def session(self, cookie: str | None) -> bytes:
        if cookie is None or (cookie == "session" and "session" in self.native):
            return (
                b""  # SessionMiddleware's says no more than `user`, and changes with each response
            )
        wanted = cookie.encode()
        for part in self._found.get(b"cookie", b"").split(b";"):
            found, _, value = part.strip().partition(b"=")
            if found == wanted:
                return value
        return b""

    def places(self) -> set[str]:
        return {route_path(self.native), self.path}

    def user(self) -> str | None:
        scope = self.native
        name = authenticated_user(scope) if "user" in scope else None
        if name is None and "session" in scope:  # of Starlette's SessionMiddleware
            return session_user(scope["session"])
        return name


def route_path(scope: ASGIScope) -> str:
    """The path as the application's own routes are written, without where it is mounted."""
    path: str = scope["path"]
    if not (root := scope.get("root_path")):
        return path
    base: str = scope.get(ROOT, root)
    return below(base, path)


def below(root: AnyStr, path: AnyStr) -> AnyStr:
    """The path without its root, where it begins with that."""
    slash = path[:0] + ("/" if isinstance(path, str) else b"/")
    root = root.rstrip(slash)
    if path.startswith(root) and path[len(root) : len(root) + 1] in (path[:0], slash):
        return path[len(root) :]
    return path


def authenticated_user(scope: ASGIScope) -> str | None:
    """The framework's authenticated user (Starlette's and Django's `scope["user"]`)."""
    user = scope["user"]
    if not getattr(user, "is_authenticated", False):
        return None
    for attribute in ("identity", "pk", "username"):
        try:
            value = getattr(user, attribute, None)
        except NotImplementedError:
            continue
        if value:
            return str(value)
    raise TypeError(
        f"{type(user).__name__} has no identity, pk or username that tells callers apart: name the"
        " caller with Idempotency(scope=…)"
    )


async def read_body(
    policy: Policy, receive: Receive, write: Callable[[bytes], object], length: bytes
) -> Problem | bool | None:
    """Read the body to its end. A problem, True where the client has gone, or None."""
    refusal: Problem | None = None
    if length.isdigit() and int(length) > policy.max_request_body:
        refusal = problems.request_too_large(policy.max_request_body)
    intake = None
    left = policy.seconds.body_timeout
    while True:
        try:
            message = await timeout_if_suspended(left, receive())
        except TimeoutError:
            return problems.BODY_TIMEOUT
        if message["type"] == "http.disconnect":
            return True
        chunk = message.get("body", b"")
        if intake is None:
            if not message.get("more_body", False) and len(chunk) <= policy.max_request_body:
                write(chunk)
                return refusal
            intake = Intake(policy)
        too_large = intake.count(len(chunk))
        if too_large is not None:
            return too_large
        if refusal is None and chunk:
            write(chunk)
        if not message.get("more_body", False):
            return refusal
        left = intake.left()


class Unread:
    """A body that was read, as the application receives it; then whatever comes after it."""

    __slots__ = ("_chunks", "_given", "_receive", "_size")

    def __init__(self, body: Body, receive: Receive) -> None:
        self._chunks: Iterator[bytes] | None = body.chunks()
        self._size = body.size
        self._given = 0
        self._receive = receive

    def next(self) -> Message | None:
        """Return the next message of the body, or None after its end."""
        if self._chunks is None:
            return None
        chunk = next(self._chunks, b"")
        self._given += len(chunk)
        more = self._given < self._size
        if not more:
            self._chunks = None
        return {"type": "http.request", "body": chunk, "more_body": more}

    async def __call__(self) -> Message:
        return self.next() or await self._receive()


def with_length(
    headers: Iterable[tuple[bytes, bytes]], status: int, body: bytes
) -> list[tuple[bytes, bytes]]:
    fields = list(headers)
    has_body = status >= 200 and status not in (204, 304)
    if has_body and all(name != b"content-length" for name, _ in fields):
        fields.append((b"content-length", b"%d" % len(body)))
    return fields


async def send_whole(
    status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes, send: Send
) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


def is_reused(outcome: Outcome) -> bool:
    """Say whether the key belongs to another request."""
    return type(outcome) is Refuse and outcome.problem.slug == problems.KEY_REUSED.slug


async def send_outcome(outcome: Outcome, problem_base: str, send: Send) -> None:
    """Send a replay or a refusal."""
    if type(outcome) is Replay:
        response = outcome.response
        body = response.body or b""
        headers = answer_headers.replayed(response.headers)
        await send_whole(response.status, with_length(headers, response.status, body), body, send)
    else:
        assert isinstance(outcome, Refuse)
        await send_problem(outcome.problem, problem_base, send)


async def send_problem(
    problem: Problem, problem_base: str, send: Send, scope: ASGIScope | None = None
) -> None:
    """Send a problem. `scope` is given where the body has not been read to its end."""
    response = problem.response(problem_base)
    body = response.body or b""
    headers = with_length(response.headers, response.status, body)
    if problem is problems.BODY_TIMEOUT and scope and scope["http_version"].startswith("1"):
        headers.append((b"connection", b"close"))  # RFC 9110 section 15.5.9
    await send_whole(response.status, headers, body, send)
