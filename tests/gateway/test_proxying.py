"""What passes through the gateway, and in which form."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.gateway.harness import OK, Gateway, Received, Service, gateway
from tests.http.harness import asgi_server, until


@pytest.fixture
def service() -> Iterator[Service]:
    with Service().running() as service:
        yield service


@pytest.fixture
def front(service: Service) -> Iterator[Gateway]:
    with gateway(service.port) as front:
        yield front


def answering(service: Service, data: bytes) -> None:
    service.behave = lambda connection, request: connection.sendall(data)


def test_a_request_arrives_as_it_was_sent(front: Gateway, service: Service) -> None:
    front.send(
        "/a/../b%2Fc?x=%20y&x=2", key=None, body=b"\x00\xff", headers=[("X-A", "1"), ("X-A", "2")]
    )
    (request,) = service.requests
    assert request.line == "POST /a/../b%2Fc?x=%20y&x=2 HTTP/1.1"
    assert request.body == b"\x00\xff"
    assert request.all("X-A") == ["1", "2"]
    assert request.all("Content-Length") == ["2"]
    assert not request.all("Transfer-Encoding")
    assert request.header("Host") == f"127.0.0.1:{front.port}"
    assert not request.all("User-Agent")


def test_nothing_is_added_that_the_client_did_not_send(front: Gateway, service: Service) -> None:
    front.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx")
    names = {line.split(b":")[0].lower() for line in service.requests[0].head.split(b"\r\n")[1:]}
    forwarded = {b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}
    assert names == {b"host", b"content-length", b"via"} | forwarded


def test_what_belongs_to_one_connection_does_not_pass(front: Gateway, service: Service) -> None:
    answering(
        service,
        b"HTTP/1.1 200 OK\r\nConnection: X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=9\r\n"
        b"X-Yours: 2\r\nContent-Length: 0\r\n\r\n",
    )
    fields = [("Connection", "X-Secret, keep-alive"), ("X-Secret", "1"), ("TE", "trailers")]
    answer = front.get(
        headers=[*fields, ("Proxy-Authorization", "Basic eA=="), ("Keep-Alive", "9")]
    )
    (request,) = service.requests
    for name in ("Connection", "X-Secret", "TE", "Proxy-Authorization", "Keep-Alive"):
        assert not request.all(name), name
    assert answer.header("X-Mine") is None
    assert answer.header("Keep-Alive") is None
    assert answer.header("X-Yours") == "2"


def test_connection_cannot_take_the_host_or_the_length_away(
    front: Gateway, service: Service
) -> None:
    front.send(key=None, body=b"abc", headers=[("Connection", "Host, Content-Length, Via")])
    (request,) = service.requests
    assert request.header("Host")
    assert request.body == b"abc"
    assert request.header("Via") == "1.1 semel"


def test_forwarding_headers_are_the_gateways_own(front: Gateway, service: Service) -> None:
    front.raw(
        b"GET / HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 9.9.9.9\r\nVia: 1.0 a\r\n"
        b"X-Forwarded-Proto: https\r\nForwarded: for=9.9.9.9\r\nX_Forwarded_For: 9.9.9.9\r\n"
        b"Connection: close\r\n\r\n"
    )
    (request,) = service.requests
    assert request.all("X-Forwarded-For") == ["127.0.0.1"]
    assert request.all("X-Forwarded-Proto") == ["http"]
    assert request.all("X-Forwarded-Host") == ["shop.example"]
    assert not request.all("Forwarded")
    assert not request.all("X_Forwarded_For")
    assert request.all("Via") == ["1.0 a, 1.1 semel"]
    assert request.all("Host") == ["shop.example"]


def test_behind_a_proxy_they_are_extended(service: Service) -> None:
    upstream = {"preserve_host": False}
    with gateway(service.port, callers={"behind_proxy": True}, upstream=upstream) as front:
        front.raw(
            b"GET / HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 9.9.9.9\r\n"
            b"X-Forwarded-Proto: https\r\nConnection: close\r\n\r\n"
        )
    (request,) = service.requests
    assert request.all("X-Forwarded-For") == ["9.9.9.9, 127.0.0.1"]
    assert request.all("X-Forwarded-Proto") == ["https"]
    assert request.all("Host") == [f"127.0.0.1:{service.port}"]


def test_the_callers_name_cannot_be_written_in_another_spelling(service: Service) -> None:
    with gateway(service.port, callers={"header": "X-User"}) as front:
        front.get(headers=[("X-User", "bob"), ("X_User", "alice"), ("X_Other", "1")])
    (request,) = service.requests
    assert request.all("X-User") == ["bob"]
    assert not request.all("X_User")
    assert request.all("X_Other") == ["1"]


def test_an_answer_arrives_as_it_was_sent(front: Gateway, service: Service) -> None:
    packed = gzip.compress(b"hello")
    answering(
        service,
        b"HTTP/1.1 302 Found\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nServer: mine\r\n"
        b"Location: /elsewhere\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Encoding: gzip\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(packed), packed),
    )
    answer = front.get()
    assert (answer.status, answer.body) == (302, packed)
    assert answer.all("Set-Cookie") == ["a=1", "b=2"]
    assert answer.all("Date") == ["Thu, 01 Jan 1970 00:00:00 GMT"]
    assert answer.all("Server") == ["mine"]
    assert answer.header("Location") == "/elsewhere"
    front.get()
    assert not service.requests[1].all("Cookie")  # it keeps none
    assert len(service.requests) == 2  # and follows nothing


def test_an_answer_without_a_date_gets_one(front: Gateway) -> None:
    assert front.get().header("Date")


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_answers_without_a_body_have_none(front: Gateway, service: Service, status: bytes) -> None:
    length = b"Content-Length: 5\r\n" if status.startswith(b"304") else b""
    answering(service, b'HTTP/1.1 %b\r\n%bETag: "a"\r\n\r\n' % (status, length))
    raw = front.raw(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    head, _, body = raw.partition(b"\r\n\r\n")
    assert body == b""
    assert b"transfer-encoding" not in head.lower()
    assert b'etag: "a"' in head.lower()


def test_the_answer_to_head_keeps_its_length(front: Gateway, service: Service) -> None:
    answering(service, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    answer = front.send(key=None, method="HEAD", body=b"")
    assert (answer.status, answer.header("Content-Length"), answer.body) == (200, "5", b"")


def test_early_hints_and_trailers_are_dropped(front: Gateway, service: Service) -> None:
    answering(
        service,
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nTrailer: X-Sum\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n",
    )
    answer = front.get()
    assert (answer.status, answer.body) == (200, b"hi")
    assert answer.header("X-Sum") is None
    assert answer.header("Trailer") is None


def test_a_clients_trailers_never_become_headers(service: Service) -> None:
    with gateway(service.port, callers={"header": "X-User"}) as front:
        front.raw(
            b"POST / HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nTransfer-Encoding: chunked\r\n"
            b"Connection: close\r\n\r\n2\r\nhi\r\n0\r\nX-User: alice\r\n\r\n"
        )
        answer = front.send("/", body=b"hi", headers=[("X-User", "alice")])
    assert not answer.replayed  # hers, and not that of whoever wrote her name into a trailer
    assert len(service.requests) == 2
    assert not service.requests[0].all("X-User")


def test_expect_100_continue_is_answered_here(front: Gateway, service: Service) -> None:
    with front.connect() as connection:
        connection.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.sendall(b"hi")
        assert b"201 Created" in connection.recv(1000)
    assert service.requests[0].body == b"hi"
    assert not service.requests[0].all("Expect")


def test_a_chunked_body_stays_chunked(front: Gateway, service: Service) -> None:
    front.raw(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        b"2\r\nhi\r\n3\r\nyou\r\n0\r\n\r\n"
    )
    assert service.requests[0].body == b"hiyou"


def test_connections_are_kept_and_used_again(front: Gateway, service: Service) -> None:
    for _ in range(5):
        front.get()
    assert (len(service.requests), service.connections) == (5, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="counts TCP's segments")
def test_a_short_answer_comes_in_one_piece(front: Gateway) -> None:
    with front.connect() as connection:
        for number in range(30):
            connection.sendall(
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nIdempotency-Key: %d\r\n\r\n"
                % (number // 2)
            )
            received = b""
            while not received.endswith(b"\r\n\r\nok"):
                received += connection.recv(10_000)
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    assert struct.unpack_from("I", told, 152) == (30,)  # tcpi_data_segs_in


@pytest.mark.parametrize("path", ["/-/health", "/-/ready"])
def test_the_gateway_answers_for_its_own_health(
    front: Gateway, service: Service, path: str
) -> None:
    assert front.get(path).status == 204
    assert not service.requests


def test_it_is_not_ready_without_its_store(service: Service, tmp_path: Path) -> None:
    with gateway(service.port, store=f"sqlite:///{tmp_path}/keys.db") as front:
        app = front.server.config.loaded_app
        assert front.get("/-/ready").status == 204
        app.idempotency.store.stop()
        assert front.get("/-/ready").status == 503
        assert front.get("/-/health").status == 204
        app.idempotency.started = False


# --- bodies that stream -----------------------------------------------------------------------


def test_a_large_upload_and_download_stream_both_ways(front: Gateway, service: Service) -> None:
    size = 64 * 1024 * 1024
    seen: list[int] = []

    def behave(connection: socket.socket, request: Received) -> str:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // 65536):
            connection.sendall(bytes(65536))
        return "close"

    def swallow(connection: socket.socket) -> None:
        with connection:
            data = connection.recv(65536)
            total = len(data.partition(b"\r\n\r\n")[2])
            while total < size:
                total += len(connection.recv(1 << 20))
            seen.append(total)
            behave(connection, Received(b""))

    service._serve = swallow  # type: ignore[method-assign]
    before = _peak()
    with front.connect() as connection:
        sender = threading.Thread(
            target=lambda: [connection.sendall(bytes(65536)) for _ in range(size // 65536)]
        )
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        sender.start()
        got = 0
        while got < size:
            chunk = connection.recv(1 << 20)
            assert chunk
            got += len(chunk)
        sender.join()
    assert seen == [size]
    assert _peak() - before < 32 * 1024 * 1024  # of this process, which is service and client too


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def test_an_event_stream_comes_as_it_is_made_and_may_be_silent(service: Service) -> None:
    go_on, gone = threading.Event(), threading.Event()

    def behave(connection: socket.socket, request: Received) -> str:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        connection.sendall(b"9\r\ndata: 1\n\n\r\n")
        go_on.wait(20)
        connection.sendall(b"9\r\ndata: 2\n\n\r\n")
        while connection.recv(100):
            pass
        gone.set()
        return "close"

    service.behave = behave
    with gateway(service.port, upstream={"timeout": "300ms"}) as front:
        with front.connect() as connection:
            connection.sendall(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
            data = b""
            while b"data: 1" not in data:
                data += connection.recv(1000)
            assert not gone.wait(0.6)  # twice as long as any other answer may be silent
            go_on.set()
            while b"data: 2" not in data:
                data += connection.recv(1000)
        assert gone.wait(20), "the service was not told that the client had gone"


def test_a_client_that_goes_in_mid_upload_is_not_taken_for_one_that_ended(
    front: Gateway, service: Service
) -> None:
    with front.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 999999\r\n\r\nabc")
        until(lambda: service.connections == 1)
    front.get()
    assert [request.line for request in service.requests] == ["GET / HTTP/1.1"]


def test_a_body_over_the_limit_is_refused(service: Service) -> None:
    with gateway(service.port, limits={"body": "1KiB"}) as front:
        assert front.send(key=None, body=bytes(1025)).problem == "request-too-large"
        raw = front.raw(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            + b"200\r\n%b\r\n" % bytes(512) * 3
            + b"0\r\n\r\n"
        )
        assert raw.startswith(b"HTTP/1.1 413")
        assert front.send(key=None, body=bytes(1024)).status == 201
    with gateway(service.port, policy={"max_request_body": 10}) as front:
        assert front.send(body=bytes(11)).status == 413
    assert len(service.requests) == 1


def test_a_silent_client_is_not_waited_for(service: Service) -> None:
    with gateway(service.port, limits={"client_timeout": "200ms"}) as front:
        assert front.raw(b"GET / HTTP/1.1\r\nHo").startswith(b"HTTP/1.1 408")
        assert front.raw(b"").startswith(b"HTTP/1.1 408")
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close\r\n\r\nab"
        assert front.raw(head).startswith(b"HTTP/1.1 408")
    assert not service.requests


# --- WebSockets -------------------------------------------------------------------------------


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        return
    await receive()
    if scope["path"] == "/no":
        await send({"type": "websocket.close", "code": 1000})
        return
    await send({"type": "websocket.accept", "subprotocol": (scope["subprotocols"] or [None])[0]})
    names = {name: value.decode("latin-1") for name, value in scope["headers"]}
    await send(
        {"type": "websocket.send", "text": json.dumps([names.get(b"cookie"), scope["path"]])}
    )
    while (message := await receive())["type"] == "websocket.receive":
        if message.get("text") == "bye":
            await send({"type": "websocket.close", "code": 4001, "reason": "as you wish"})
            return
        await send({**message, "type": "websocket.send"})


async def test_a_websocket_passes_through() -> None:
    with asgi_server(_echo) as port, gateway(port, upstream={"timeout": "200ms"}) as front:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{front.port}/chat?a=1"
            async with session.ws_connect(url, protocols=["v1"], headers={"Cookie": "a=1"}) as ws:
                assert ws.protocol == "v1"
                assert await ws.receive_json() == ["a=1", "/chat"]
                await ws.send_str("hello")
                assert await ws.receive_str() == "hello"
                await asyncio.sleep(0.5)  # silent for longer than an answer may be
                await ws.send_bytes(bytes(100_000))
                assert await ws.receive_bytes() == bytes(100_000)
                await ws.send_str("bye")
                message = await ws.receive()
                assert (message.type, message.data, message.extra) == (
                    aiohttp.WSMsgType.CLOSE,
                    4001,
                    "as you wish",
                )
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(f"http://127.0.0.1:{front.port}/no")
            assert refused.value.status == 403


async def test_a_client_that_leaves_a_websocket_leaves_the_service_too() -> None:
    left = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        await receive()
        await send({"type": "websocket.accept"})
        assert (await receive())["type"] == "websocket.disconnect"
        loop.call_soon_threadsafe(left.set)

    with asgi_server(app) as port, gateway(port) as front:
        async with aiohttp.ClientSession() as session:
            ws = await session.ws_connect(f"http://127.0.0.1:{front.port}/")
            await ws.close()
        await asyncio.wait_for(left.wait(), 10)


# --- ends ---------------------------------------------------------------------------------------


def test_what_is_in_flight_is_finished_at_the_end(service: Service) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def behave(connection: socket.socket, request: Received) -> None:
        arrived.set()
        go_on.wait(20)
        connection.sendall(OK)

    service.behave = behave
    answers: list[Any] = []
    with contextlib.ExitStack() as stack:
        front = stack.enter_context(gateway(service.port))
        asking = threading.Thread(target=lambda: answers.append(front.send()))
        asking.start()
        assert arrived.wait(10)
        front.server.should_exit = True
        until(lambda: _refused(front.port), "it still takes connections")
        go_on.set()
        asking.join(10)
    assert answers[0].status == 201


def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False
