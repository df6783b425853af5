"""What ASGI applications rely on: the messages, the disconnects, the life span, the frameworks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from semel import (
    ASGIMiddleware,
    AsyncOperation,
    Idempotency,
    Policy,
    StoreSetupError,
    current_async_operation,
)
from semel.stores.memory import MemoryStore
from tests.http.harness import Client, asgi_server, until

REQUEST = (
    b"POST /run HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIdempotency-Key: k\r\n"
    b"Content-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"
)

Serve = Callable[..., Client]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve a Starlette application of one route, or any ASGI application."""
    with contextlib.ExitStack() as stack:

        def serve(endpoint: Any, store: Any = "memory://", **settings: Any) -> Client:
            middleware = settings.pop("middleware", [])
            app = endpoint
            if not isinstance(endpoint, Starlette):
                app = Starlette(
                    routes=[Route("/run", endpoint, methods=["POST", "GET"])], middleware=middleware
                )
            idempotency = Idempotency(store, **settings)
            app.add_middleware(ASGIMiddleware, idempotency=idempotency)
            # What is added later runs earlier; Semel belongs inside authentication.
            app.user_middleware.append(app.user_middleware.pop(0))
            return Client(stack.enter_context(asgi_server(app)))

        yield serve


async def plain(app: Any, scope: dict[str, Any], body: bytes = b"{}") -> list[dict[str, Any]]:
    """Call an ASGI application without a server, to see the messages themselves."""
    sent: list[dict[str, Any]] = []
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app({**SCOPE, **scope}, receive, send)
    return sent


SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.4"},
    "http_version": "1.1",
    "method": "POST",
    "path": "/run",
    "raw_path": b"/run",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"idempotency-key", b"k")],
}


def test_a_background_task_runs_once_and_after_the_answer(serve: Serve) -> None:
    ran: list[str] = []
    go_on = threading.Event()

    async def later() -> None:
        assert await asyncio.to_thread(go_on.wait, 20)
        ran.append("task")

    async def run(request: Request) -> Response:
        return PlainTextResponse("done", background=BackgroundTask(later))

    client = serve(run)
    assert client.send().body == b"done"
    assert client.send().replayed
    assert ran == []
    go_on.set()
    until(lambda: ran == ["task"])


def test_a_background_task_that_raises_changes_nothing_of_the_answer(serve: Serve) -> None:
    async def later() -> None:
        raise RuntimeError("on purpose")

    async def run(request: Request) -> Response:
        return PlainTextResponse("done", background=BackgroundTask(later))

    client = serve(run)
    assert client.send().body == b"done"
    assert client.send().replayed


def test_a_handler_that_asks_whether_its_client_has_gone_is_told_no_while_it_runs(
    serve: Serve,
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    told: list[bool] = []

    async def run(request: Request) -> Response:
        await request.body()
        entered.set()
        assert await asyncio.to_thread(go_on.wait, 20)
        told.append(await request.is_disconnected())
        return PlainTextResponse("done")

    client = serve(run)
    with client.connect() as connection:
        connection.sendall(REQUEST)
        assert entered.wait(10)
    go_on.set()
    until(lambda: told == [False])
    assert client.send(body=b"{}").replayed


def test_a_committed_stream_ends_when_its_client_goes(serve: Serve, tmp_path: Path) -> None:
    ended = threading.Event()

    async def run(request: Request) -> Response:
        await current_async_operation().commit()

        async def forever() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"tick"
                    await asyncio.sleep(0.01)
            finally:
                ended.set()

        return StreamingResponse(forever())

    client = serve(run, f"sqlite:///{tmp_path}/r.db")
    with client.connect() as connection:
        connection.sendall(REQUEST)
        while b"tick" not in connection.recv(65536):
            pass
    assert ended.wait(10)
    assert client.send(body=b"{}").problem == "response-not-kept"


def test_a_stream_committed_in_its_midst_ends_when_its_client_goes(serve: Serve) -> None:
    ended = threading.Event()

    async def run(request: Request) -> Response:
        op = current_async_operation()

        async def forever() -> AsyncIterator[bytes]:
            try:
                yield b"tick"
                await op.commit()
                while True:
                    yield b"tick"
                    await asyncio.sleep(0.01)
            finally:
                ended.set()

        return StreamingResponse(forever())

    client = serve(run)
    with client.connect() as connection:
        connection.sendall(REQUEST)
        received = b""
        while received.count(b"tick") < 3:
            received += connection.recv(65536)
    assert ended.wait(10)
    assert client.send(body=b"{}").problem == "response-not-kept"


async def test_a_server_that_raises_for_a_client_that_left_stops_no_operation() -> None:
    store = MemoryStore()
    ran: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"a" * 10, "more_body": True})
        await send({"type": "http.response.body", "body": b"b"})
        ran.append("to its end")

    async def gone(message: Any) -> None:
        raise OSError("ASGI 2.4: the client has gone")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}"}

    middleware = ASGIMiddleware(app, Idempotency(store))
    await middleware(SCOPE, receive, gone)
    assert ran == ["to its end"]
    sent = await plain(middleware, {})
    assert sent[1]["body"] == b"a" * 10 + b"b"


async def test_trailers_and_early_messages_pass_in_their_places() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.debug", "info": {}})
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"x"})
        await send({"type": "http.response.trailers", "headers": [(b"digest", b"1")]})

    middleware = ASGIMiddleware(app, Idempotency("memory://"))
    sent = await plain(middleware, {})
    assert [m["type"].rpartition(".")[2] for m in sent] == ["debug", "start", "body", "trailers"]
    assert sent[1]["trailers"] is True
    replay = await plain(middleware, {})
    assert [m["type"].rpartition(".")[2] for m in replay] == ["start", "body"]


async def test_a_server_is_not_asked_to_send_what_cannot_be_recorded() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["extensions"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    extensions = {"http.response.pathsend": {}, "http.response.trailers": {}}
    middleware = ASGIMiddleware(app, Idempotency("memory://"))
    await plain(middleware, {"extensions": extensions})
    assert seen == [{"http.response.trailers": {}}]


async def test_an_application_that_answers_nothing_is_an_error_and_keeps_nothing() -> None:
    runs: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        runs.append(1)

    middleware = ASGIMiddleware(app, Idempotency("memory://"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="without a complete answer"):
            await plain(middleware, {})
    assert len(runs) == 2


async def test_a_body_that_stalls_is_told_so_and_its_connection_is_closed() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    policy = Policy(body_timeout=timedelta(milliseconds=20))
    middleware = ASGIMiddleware(Starlette(), Idempotency("memory://", policy=policy))
    await middleware(SCOPE, receive, send)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    sent.clear()
    await middleware({**SCOPE, "http_version": "2"}, receive, send)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") not in sent[0]["headers"]  # RFC 9113 section 8.2.2


async def test_split_cookies_and_doubled_credentials_all_count() -> None:
    runs: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        runs.append(1)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % len(runs)})

    middleware = ASGIMiddleware(app, Idempotency("memory://", session_cookie="sid"))

    async def body(*headers: tuple[bytes, bytes]) -> bytes:
        sent = await plain(middleware, {"headers": [(b"idempotency-key", b"k"), *headers]})
        return bytes(sent[1]["body"])

    assert await body((b"cookie", b"sid=one"), (b"cookie", b"theme=dark")) == b"1"
    assert await body((b"cookie", b"theme=dark; sid=one")) == b"1"
    assert await body((b"authorization", b"a")) == b"2"
    assert await body((b"authorization", b"a"), (b"authorization", b"b")) == b"3"
    assert await body((b"authorization", b"b")) == b"4"


def test_routes_are_matched_as_the_application_writes_them_wherever_it_is_mounted() -> None:
    async def run(request: Request) -> Response:
        return PlainTextResponse("done")

    inner = Starlette(routes=[Route("/run/{id}", run, methods=["POST"])])
    routes = {"/run/{id}": Policy(required=True)}
    inner.add_middleware(ASGIMiddleware, idempotency=Idempotency("memory://", routes=routes))
    with asgi_server(Starlette(routes=[Mount("/api", inner)])) as port:
        refused = Client(port).send("/api/run/1", key=None)
        assert (refused.status, refused.problem) == (400, "key-missing")
        assert Client(port).send("/api/run/1").status == 200


class Bearer(AuthenticationBackend):
    """The token is `name` or `name.rotation`."""

    def __init__(self, user: Callable[[str], BaseUser]) -> None:
        self._user = user

    async def authenticate(self, connection: Any) -> Any:
        header = connection.headers.get("Authorization")
        if header is None:
            return None
        return AuthCredentials(), self._user(header.split(".")[0])


async def whoever(request: Request) -> Response:
    return PlainTextResponse(f"hello {request.user.display_name}")


def test_the_authenticated_user_is_the_scope_and_a_new_token_changes_nothing(serve: Serve) -> None:
    authentication = Middleware(AuthenticationMiddleware, backend=Bearer(SimpleUser))
    client = serve(whoever, middleware=[authentication])
    assert client.send(headers=[("Authorization", "alice.1")]).body == b"hello alice"
    assert client.send(headers=[("Authorization", "alice.2")]).replayed
    theirs = client.send(headers=[("Authorization", "bob.1")])
    assert (theirs.body, theirs.replayed) == (b"hello bob", False)
    assert client.send().body == b"hello "


def test_a_user_whom_nothing_tells_apart_is_an_error_and_not_a_stranger(serve: Serve) -> None:
    class Named(BaseUser):
        def __init__(self, name: str) -> None:
            self._name = name

        @property
        def is_authenticated(self) -> bool:
            return True

        @property
        def display_name(self) -> str:  # two people may have the same
            return self._name

    ran: list[str] = []

    async def run(request: Request) -> Response:
        ran.append(request.user.display_name)
        return PlainTextResponse("done")

    authentication = Middleware(AuthenticationMiddleware, backend=Bearer(Named))
    client = serve(run, middleware=[authentication])
    assert client.send(headers=[("Authorization", "alice")]).status == 500
    assert ran == []


# --- the life span --------------------------------------------------------------------------


async def lifespan(middleware: Any, *kinds: str) -> list[str]:
    sent: list[str] = []
    messages = [{"type": f"lifespan.{kind}"} for kind in kinds]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"].removeprefix("lifespan."))

    await middleware({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    return sent


async def test_the_store_opens_with_the_application_and_closes_with_it(tmp_path: Path) -> None:
    idempotency = Idempotency(f"sqlite:///{tmp_path}/r.db")
    during: list[bool] = []

    @contextlib.asynccontextmanager
    async def around(app: Any) -> AsyncIterator[None]:
        during.append(idempotency.started)
        yield
        during.append(idempotency.started)

    middleware = ASGIMiddleware(Starlette(lifespan=around), idempotency)
    said = await lifespan(middleware, "startup", "shutdown")
    assert said == ["startup.complete", "shutdown.complete"]
    assert during == [True, True]
    assert not idempotency.started


async def test_a_store_that_cannot_open_fails_the_start(tmp_path: Path) -> None:
    middleware = ASGIMiddleware(Starlette(), Idempotency(f"sqlite:///{tmp_path}/no/such/r.db"))
    with pytest.raises(StoreSetupError):
        await lifespan(middleware, "startup", "shutdown")


async def test_a_shutdown_waits_for_an_operation_whose_client_has_gone(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    entered = asyncio.Event()

    async def run(request: Request) -> Response:
        entered.set()
        await go_on.wait()
        return PlainTextResponse("done")

    idempotency = Idempotency(f"sqlite:///{tmp_path}/r.db")
    app = Starlette(routes=[Route("/run", run, methods=["POST"])])
    middleware = ASGIMiddleware(app, idempotency)
    request = asyncio.create_task(plain(middleware, {}))
    await entered.wait()
    request.cancel()
    await asyncio.wait([request])
    shutdown = asyncio.create_task(lifespan(middleware, "startup", "shutdown"))
    done, _ = await asyncio.wait([shutdown], timeout=0.1)
    assert not done
    go_on.set()
    await shutdown
    assert (await plain(middleware, {}))[1]["body"] == b"done"
    idempotency.stop()


async def test_other_protocols_pass_untouched() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    middleware = ASGIMiddleware(app, Idempotency("memory://"))
    await plain(middleware, {"type": "websocket"})
    assert seen == ["websocket"]


async def test_op_is_there_below_the_handler_and_gone_after_it() -> None:
    seen: list[AsyncOperation] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.create_task(below())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def below() -> None:
        seen.append(current_async_operation())

    middleware = ASGIMiddleware(app, Idempotency("memory://"))
    await plain(middleware, {})
    (op,) = seen
    assert (op.attempt, len(op.key_hash)) == (1, 16)
    assert op.derive("charge") == op.derive("charge") != op.derive("mail")
    with pytest.raises(RuntimeError, match="the operation is over"):
        await op.connection()
