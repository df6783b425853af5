"""What becomes of a key when the service does not answer as it should."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway.harness import OK, Gateway, Received, Service, gateway


@pytest.fixture
def service() -> Iterator[Service]:
    with Service().running() as service:
        yield service


@pytest.fixture
def front(service: Service) -> Iterator[Gateway]:
    with gateway(service.port, upstream={"timeout": "400ms"}) as front:
        yield front


def first(behave: Any, then: Any = lambda connection, request: connection.sendall(OK)) -> Any:
    """Behave so once, then answer."""
    numbers = itertools.count()
    return lambda c, r: (behave if next(numbers) == 0 else then)(c, r)


def cut(connection: socket.socket, request: Received) -> str:
    return "close"


def reset(connection: socket.socket, request: Received) -> str:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "close"


def half_a_head(connection: socket.socket, request: Received) -> str:
    connection.sendall(b"HTTP/1.1 201 Cre")
    return "close"


def half_a_body(connection: socket.socket, request: Received) -> str:
    connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 10\r\n\r\nabc")
    return "close"


def half_the_chunks(connection: socket.socket, request: Received) -> str:
    connection.sendall(b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    return "close"


def silence(connection: socket.socket, request: Received) -> None:
    threading.Event().wait(2)


UNKNOWN = [cut, reset, half_a_head, half_a_body, half_the_chunks, silence]


@pytest.mark.parametrize("behave", UNKNOWN)
def test_an_unknown_outcome_is_parked_and_never_sent_again(
    front: Gateway, service: Service, behave: Any
) -> None:
    service.behave = first(behave)
    try:
        told = front.send().problem
    except Exception:  # a stream that had begun is broken off
        assert behave is half_the_chunks
        told = "outcome-unknown"
    assert told == "outcome-unknown"
    assert front.send().problem == "outcome-unknown"
    assert len(service.requests) == 1


@pytest.mark.parametrize("behave", [cut, reset, half_a_head, half_a_body, silence])
def test_without_a_key_the_client_is_told_and_nothing_is_sent_again(
    front: Gateway, service: Service, behave: Any
) -> None:
    service.behave = first(behave)
    wanted = "upstream-timeout" if behave is silence else "upstream-failed"
    assert front.send(key=None).problem == wanted
    assert len(service.requests) == 1


def test_an_answer_that_breaks_off_within_is_not_passed_off_as_whole(
    front: Gateway, service: Service
) -> None:
    service.behave = half_the_chunks
    raw = front.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
    assert not raw.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("behave", UNKNOWN)
def test_a_service_that_takes_the_key_gets_the_request_again(service: Service, behave: Any) -> None:
    service.behave = first(behave)
    upstream = {"timeout": "400ms"}
    with gateway(service.port, upstream=upstream, policy={"forward_key": True}) as front:
        if behave is half_the_chunks:  # part of the answer was out: the client has to come again
            with pytest.raises(Exception):  # noqa: B017
                front.send(key="k-1")
        answer = front.send(key="k-1")
        assert (answer.status, answer.replayed) == (201, False)
        assert front.send(key="k-1").replayed
    assert [request.header("Idempotency-Key") for request in service.requests] == ["k-1", "k-1"]


def test_it_is_sent_again_only_so_often_and_a_retry_once_more(service: Service) -> None:
    service.behave = cut
    with gateway(service.port, upstream={"resend": 1}, policy={"forward_key": True}) as front:
        assert front.send().problem == "upstream-failed"
        assert len(service.requests) == 2
        service.behave = lambda connection, request: connection.sendall(OK)
        assert front.send().status == 201
    assert len(service.requests) == 3


def test_a_service_that_goes_down_after_it_was_sent_the_request_may_have_done_it() -> None:
    service = Service()
    with contextlib.ExitStack() as stack:
        stack.enter_context(service.running())

        def die(connection: socket.socket, request: Received) -> str:
            stack.close()  # nothing listens any more when it is sent again
            return "close"

        service.behave = die
        with gateway(service.port, upstream={"resend": 1}, policy={"forward_key": True}) as front:
            assert front.send().problem == "upstream-failed"  # and not: nothing was done
    assert len(service.requests) == 1


def test_at_most_once_goes_before_the_forwarded_key(service: Service) -> None:
    service.behave = cut
    policy = {"forward_key": True, "guarantee": "at-most-once"}
    with gateway(service.port, policy=policy) as front:
        for _ in range(2):
            assert front.send(key="k").problem == "outcome-unknown"
    assert [request.header("Idempotency-Key") for request in service.requests] == ["k"]


def test_a_key_from_the_payload_is_forwarded_as_a_derived_one(service: Service) -> None:
    policy = {"forward_key": True, "key": "payload", "shared": True, "window": "1h"}
    with gateway(service.port, policy=policy) as front:
        front.send(key=None)
        assert front.send(key=None).replayed
    assert len(service.requests) == 1
    assert len(service.requests[0].header("Idempotency-Key") or "") >= 16


def test_a_service_that_does_not_take_the_key_does_not_get_it(
    front: Gateway, service: Service
) -> None:
    front.send(key="k")
    assert not service.requests[0].all("Idempotency-Key")


def test_a_service_that_cannot_be_reached_did_nothing(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with gateway(port) as front:
        answer = front.send()
        assert (answer.status, answer.problem) == (503, "upstream-unavailable")
        assert answer.header("Retry-After") == "1"
        service = Service(port=port)
        with service.running():
            assert front.send().status == 201  # the same key: it was given back
            assert front.send().replayed
    assert len(service.requests) == 1


def test_a_connection_that_cannot_be_had_in_time_is_a_no(service: Service) -> None:
    held = threading.Event()

    def hold(connection: socket.socket, request: Received) -> None:
        held.wait(10)
        connection.sendall(OK)

    service.behave = hold
    upstream = {"connections": 1, "connect_timeout": "200ms"}
    with gateway(service.port, upstream=upstream) as front:
        waiting = threading.Thread(target=lambda: front.send(key="a"))
        waiting.start()
        while not service.requests:
            pass
        assert front.send(key="b").problem == "upstream-unavailable"
        held.set()
        waiting.join()
        assert front.send(key="b").status == 201
    assert len(service.requests) == 2


def test_a_server_error_is_kept_as_the_answer(front: Gateway, service: Service) -> None:
    failed = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\noops"
    service.behave = first(lambda connection, request: connection.sendall(failed))
    assert front.send().body == b"oops"
    again = front.send()
    assert (again.status, again.body, again.replayed) == (503, b"oops", True)
    assert len(service.requests) == 1


def test_a_route_may_say_which_answers_are_kept(service: Service) -> None:
    failed = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    service.behave = first(lambda connection, request: connection.sendall(failed))
    routes = {"/charges/{id}": {"keep_statuses": [201]}}
    with gateway(service.port, routes=routes) as front:
        assert front.send("/charges/1").status == 503
        assert front.send("/charges/1").status == 201


def test_a_route_may_need_a_key_and_another_be_left_alone(service: Service) -> None:
    routes = {"POST /charges": {"required": True}, "/hooks/{name}": {"off": True}}
    with gateway(service.port, routes=routes) as front:
        assert front.send("/charges", key=None).problem == "key-missing"
        for _ in range(2):
            assert not front.send("/hooks/a").replayed
        assert service.requests[0].header("Idempotency-Key") == "k"  # nothing is taken away
    assert len(service.requests) == 2


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT", "DELETE"])
def test_no_change_is_sent_twice_over_a_connection_that_was_just_closed(
    service: Service, method: str
) -> None:
    """The service closes each kept connection when the second request comes, having read it."""
    seen: dict[socket.socket, int] = {}

    def behave(connection: socket.socket, request: Received) -> str | None:
        seen[connection] = seen.get(connection, 0) + 1
        if seen[connection] == 2:
            return "close"
        connection.sendall(OK)
        return None

    service.behave = behave
    with gateway(service.port, policy={"methods": ["POST", "PATCH", "PUT", "DELETE"]}) as front:
        front.send(key="a", method=method)
        assert front.send(key="b", method=method).problem == "outcome-unknown"
        front.send(key=None, method=method)
        assert front.send(key=None, method=method).problem == "upstream-failed"
        assert len(service.requests) == 4  # as many as were sent
        before = service.connections
        assert front.get().status == 201
        assert front.get().status == 201  # a GET is sent again, on a new connection
        assert service.connections > before


def test_a_kept_connection_is_dropped_before_the_service_would(service: Service) -> None:
    with gateway(service.port, upstream={"keep_alive": "1ms"}) as front:
        front.get()
        threading.Event().wait(0.1)
        front.get()
    assert service.connections == 2


def test_the_callers_header_tells_callers_apart(service: Service) -> None:
    with gateway(service.port, callers={"header": "X-User"}) as front:
        for user in ("alice", "bob"):
            assert not front.send(
                headers=[("X-User", user), ("Authorization", "Bearer 1")]
            ).replayed
        assert front.send(headers=[("X-User", "bob"), ("Authorization", "Bearer 2")]).replayed
        assert not front.send(headers=[("Authorization", "Bearer 2")]).replayed


def test_credentials_tell_callers_apart_and_a_forwarded_name_does_not(
    front: Gateway, service: Service
) -> None:
    front.send(headers=[("Authorization", "Bearer 1"), ("X-Forwarded-For", "9.9.9.9")])
    assert not front.send(headers=[("Authorization", "Bearer 2")]).replayed
    assert front.send(headers=[("Authorization", "Bearer 1"), ("X-User", "eve")]).replayed


def test_keys_are_issued(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_SECRET", "s" * 32)
    issuer = {"secret_env": "GATEWAY_SECRET"}
    with gateway(service.port, issuer=issuer, policy={"required": "issued"}) as front:
        assert front.send().problem == "key-invalid"
        issued = front.send("/idempotency-keys", key=None, body=b'{"count": 1}')
        key = str(__import__("json").loads(issued.body)["keys"][0])
        assert front.send(key=key).status == 201
        assert front.send(key=key).replayed
    assert len(service.requests) == 1


def test_a_large_body_with_a_key_is_sent_whole(front: Gateway, service: Service) -> None:
    body = bytes(3 * 1024 * 1024)
    assert front.send(body=body).status == 201
    assert front.send(body=body).replayed
    assert [len(request.body) for request in service.requests] == [len(body)]


def test_a_stream_with_a_key_comes_as_it_is_made_and_is_replayed(service: Service) -> None:
    go_on = threading.Event()

    def behave(connection: socket.socket, request: Received) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        go_on.wait(10)
        connection.sendall(b"3\r\ntwo\r\n0\r\n\r\n")

    service.behave = behave
    with gateway(service.port) as front:
        with front.connect() as connection:
            connection.sendall(
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nIdempotency-Key: k\r\n\r\n"
            )
            data = b""
            while b"one" not in data:
                data += connection.recv(1000)
            go_on.set()
            while b"0\r\n\r\n" not in data:
                data += connection.recv(1000)
        again = front.send(body=b"", headers=[("Content-Type", "")])
    assert again.body == b"onetwo" or again.problem == "key-reused"
    assert len(service.requests) == 1
