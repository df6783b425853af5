"""The test clients of the frameworks that are installed, made to send their requests twice."""

from __future__ import annotations

import contextlib
import copy
import http.cookiejar
import importlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final

from semel.core.keys import HEADER
from semel.testing.twice import Seen, Sending, Twice

_ENVIRON_KEY: Final = "HTTP_IDEMPOTENCY_KEY"
Replace = Callable[[Twice, Any], Any]


@contextlib.contextmanager
def sending_twice(twice: Twice) -> Iterator[None]:
    """Have the test clients send their requests as `twice` says.

    In this process and without a network: Starlette's, FastAPI's and Litestar's `TestClient`, httpx
    with an application in it, Flask's and Werkzeug's, Django's and Quart's.
    """
    with contextlib.ExitStack() as undo:
        for module_name, class_name, method, replace in _CLIENTS:
            client = _found(module_name, class_name)
            if client is not None:
                real = vars(client)[method]
                setattr(client, method, replace(twice, real))
                undo.callback(setattr, client, method, real)
        yield


def _found(module_name: str, class_name: str) -> Any:
    """Return a class of an installed package, or None."""
    try:
        if importlib.util.find_spec(module_name.partition(".")[0]) is None:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(importlib.import_module(module_name), class_name, None)
    except Exception:  # noqa: BLE001  # half of an extra is installed
        return None


class _SameCookies:
    """The cookies of a client that keeps them: both sendings have those of before the first.

    Whoever sends again has lost the first response, cookies and all; the test has not.
    """

    def __init__(self, client: Any, attribute: str) -> None:
        self._client = client
        self._attribute = attribute
        self._before = self._copy()
        self._after: Any = None
        self.again = False
        """Whether the next sending is the second."""

    def _copy(self) -> Any:
        jar = getattr(self._client, self._attribute)
        if not isinstance(jar, http.cookiejar.CookieJar):
            return copy.copy(jar)
        copied = type(jar)()
        for cookie in jar:
            copied.set_cookie(cookie)
        return copied

    def __enter__(self) -> None:
        if self.again:
            self._after = getattr(self._client, self._attribute)
            setattr(self._client, self._attribute, self._before)

    def __exit__(self, *_: object) -> None:
        if self.again:
            setattr(self._client, self._attribute, self._after)
        self.again = True


# --- httpx and what is made of it -----------------------------------------------------------------


def _begun(twice: Twice, request: Any) -> Sending | None:
    return twice.begin(request.method, request.url.path, keyed=HEADER in request.headers)


def _again(request: Any, key: str) -> Any:
    """Return a request like this one, whose body has been read, under a key."""
    headers = [*request.headers.raw, (HEADER.encode(), key.encode())]
    return type(request)(
        request.method,
        request.url,
        headers=headers,
        content=request.content,
        extensions=request.extensions,
    )


def _kept(response: Any, body: bytes) -> Seen:
    """Give a response that has been read its body back."""
    stream = importlib.import_module(type(response).__module__.partition(".")[0]).ByteStream
    response.stream = stream(body)
    return Seen.of(response.status_code, response.headers.items(), body)


def _httpx(twice: Twice, real: Any) -> Any:
    def see(response: Any) -> Seen:
        body = b"".join(response.stream)
        response.stream.close()
        return _kept(response, body)

    def handle_request(self: Any, request: Any) -> Any:
        sending = _begun(twice, request)
        if sending is None:
            return real(self, request)
        request.read()
        return sending.run(lambda: real(self, _again(request, sending.key)), see)

    return handle_request


def _async_httpx(twice: Twice, real: Any) -> Any:
    async def see(response: Any) -> Seen:
        body = b"".join([chunk async for chunk in response.stream])
        await response.stream.aclose()
        return _kept(response, body)

    async def handle_async_request(self: Any, request: Any) -> Any:
        sending = _begun(twice, request)
        if sending is None:
            return await real(self, request)
        await request.aread()
        return await sending.arun(lambda: real(self, _again(request, sending.key)), see)

    return handle_async_request


# --- Werkzeug and Flask ---------------------------------------------------------------------------


def _werkzeug(twice: Twice, real: Any) -> Any:
    def see(parts: Any) -> Seen:
        (body,), status, headers = parts
        return Seen.of(int(status.split()[0]), headers, body)

    def run_wsgi_app(self: Any, environ: Any, buffered: bool = False) -> Any:
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        sending = twice.begin(method, path, keyed=_ENVIRON_KEY in environ)
        if sending is None:
            return real(self, environ, buffered)
        content = environ["wsgi.input"].read()
        cookies = _SameCookies(self, "_cookies")

        def send() -> Any:
            mine = {**environ, "wsgi.input": io.BytesIO(content), _ENVIRON_KEY: sending.key}
            if cookies.again:  # the context that the test goes on in is that of the first
                mine.pop("werkzeug.debug.preserve_context", None)
            with cookies:
                body, status, headers = real(self, mine, buffered)
                try:
                    return [b"".join(body)], status, headers
                finally:
                    getattr(body, "close", lambda: None)()

        return sending.run(send, see)

    return run_wsgi_app


# --- Django ---------------------------------------------------------------------------------------


def _django_seen(response: Any, body: bytes | None) -> Seen:
    if body is not None:
        response.streaming_content = [body]
    else:
        body = response.content
    return Seen.of(response.status_code, response.headers.items(), body)


def _django(twice: Twice, real: Any) -> Any:
    def see(response: Any) -> Seen:
        body = b"".join(response.streaming_content) if response.streaming else None
        return _django_seen(response, body)

    def request(self: Any, **asked: Any) -> Any:
        method, path = asked.get("REQUEST_METHOD", "GET"), asked.get("PATH_INFO", "/")
        sending = twice.begin(method, path, keyed=_ENVIRON_KEY in {**self.defaults, **asked})
        if sending is None:
            return real(self, **asked)
        resend, cookies = _resent(asked, "wsgi.input"), _SameCookies(self, "cookies")

        def send() -> Any:
            with cookies:
                return real(self, **resend(), **{_ENVIRON_KEY: sending.key})

        return sending.run(send, see)

    return request


def _async_django(twice: Twice, real: Any) -> Any:
    async def see(response: Any) -> Seen:
        body = None
        if response.streaming:
            pieces = response.streaming_content
            body = b"".join([piece async for piece in pieces] if response.is_async else pieces)
        return _django_seen(response, body)

    async def request(self: Any, **asked: Any) -> Any:
        method, path = asked.get("method", "GET"), asked.get("path", "/")
        header = HEADER.lower().encode()
        keyed = any(name == header for name, _ in asked.get("headers", ()))
        sending = twice.begin(method, path, keyed=keyed)
        if sending is None:
            return await real(self, **asked)
        resend, cookies = _resent(asked, "_body_file"), _SameCookies(self, "cookies")

        async def send() -> Any:
            with cookies:
                mine = resend()
                mine["headers"] = [*mine.get("headers", ()), (header, sending.key.encode())]
                return await real(self, **mine)

        return await sending.arun(send, see)

    return request


def _resent(asked: dict[str, Any], body: str) -> Callable[[], dict[str, Any]]:
    """Return what gives the arguments of a sending, with a body that can be read once more."""
    payload = asked.get(body)
    if payload is None:
        return lambda: dict(asked)
    content = payload.read()
    return lambda: {**asked, body: type(payload)(content)}


# --- Quart ----------------------------------------------------------------------------------------


def _quart(twice: Twice, real: Any) -> Any:
    async def see(response: Any) -> Seen:
        body = await response.get_data(as_text=False)
        return Seen.of(response.status_code, response.headers.items(), body)

    async def _make_request(
        self: Any, path: str, method: str, headers: Any, *more: Any, **named: Any
    ) -> Any:
        given = list(headers.items()) if headers is not None else []
        keyed = any(name.lower() == HEADER.lower() for name, _ in given)
        sending = twice.begin(method, path.partition("?")[0], keyed=keyed)
        if sending is None:
            return await real(self, path, method, headers, *more, **named)
        cookies = _SameCookies(self, "cookie_jar")

        async def send() -> Any:
            mine = importlib.import_module("werkzeug.datastructures").Headers(given)
            mine.add(HEADER, sending.key)
            if cookies.again:
                _rewind(more)
            with cookies:
                return await real(self, path, method, mine, *more, **named)

        return await sending.arun(send, see)

    return _make_request


def _rewind(arguments: tuple[Any, ...]) -> None:
    """Have files that were sent be read from their beginning."""
    for files in arguments:
        if isinstance(files, dict):
            for file in files.values():
                if hasattr(file, "seek"):
                    file.seek(0)


_CLIENTS: Final[tuple[tuple[str, str, str, Replace], ...]] = (
    ("starlette.testclient", "_TestClientTransport", "handle_request", _httpx),
    ("litestar.testing.transport", "TestClientTransport", "handle_request", _httpx),
    ("httpx", "WSGITransport", "handle_request", _httpx),
    ("httpx", "ASGITransport", "handle_async_request", _async_httpx),
    ("httpx2", "WSGITransport", "handle_request", _httpx),
    ("httpx2", "ASGITransport", "handle_async_request", _async_httpx),
    ("werkzeug.test", "Client", "run_wsgi_app", _werkzeug),
    ("django.test.client", "Client", "request", _django),
    ("django.test.client", "AsyncClient", "request", _async_django),
    ("quart.testing.client", "QuartClient", "_make_request", _quart),
)
