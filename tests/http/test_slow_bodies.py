"""A body that arrives a byte at a time: told so, and no claim is made."""

from __future__ import annotations

import time
from datetime import timedelta

from semel import Idempotency, Policy
from semel.core.commands import Lookup
from semel.core.keys import hash_key
from semel.web.http.body import Intake
from tests.http.harness import Recorder, Server, serve

HEAD = (
    b"POST /run HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIdempotency-Key: slow\r\n"
    b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
)


def test_slow_loris_gets_408_on_every_socket_and_claims_nothing() -> None:
    """ASGI only: a WSGI server blocks in `read`, and has a timeout of its own."""
    recorder = Recorder(lambda n, r: (201, [], [b"x"]))
    policy = Policy(body_timeout=timedelta(seconds=0.5))
    with serve("asgi", recorder, Idempotency("memory://", policy=policy)) as server:
        told = trickle(server)
        assert all(b" 408 " in answer and b"body-timeout" in answer for answer in told)
        assert recorder.runs == 0
        assert server.idempotency.store.execute(Lookup(hash_key("anonymous", "slow"))) is None


def trickle(server: Server) -> list[bytes]:
    """Send a byte at a time on forty sockets, until each is told off; return what it is told."""
    sockets = [server.connect() for _ in range(40)]
    for connection in sockets:
        connection.sendall(HEAD)
    answers: dict[int, bytes] = {}
    deadline = time.monotonic() + 20
    while len(answers) < len(sockets) and time.monotonic() < deadline:
        for number, connection in enumerate(sockets):
            if number in answers:
                continue
            try:
                connection.sendall(b"x")
                connection.settimeout(0.001)
                answers[number] = connection.recv(4096)
            except TimeoutError:
                pass
            except OSError:
                answers.setdefault(number, b"")
        time.sleep(0.05)
    for connection in sockets:
        connection.close()
    told = [answer for answer in answers.values() if answer]
    assert len(told) == len(sockets)
    return told


def test_a_steady_upload_earns_its_time() -> None:
    intake = Intake(Policy(body_timeout=timedelta(seconds=10), min_body_rate=100))
    before = intake.left()
    assert intake.count(5000) is None
    assert 49 < intake.left() - before + 0.5 < 51


def test_the_limit_is_counted_and_not_taken_from_the_header() -> None:
    intake = Intake(Policy(max_request_body=10))
    assert intake.count(10) is None
    refusal = intake.count(1)
    assert refusal is not None
    assert refusal.slug == "request-too-large"
