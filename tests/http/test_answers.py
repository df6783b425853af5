"""Design section 3, row by row: what a client is sent."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from semel import Policy, current_operation
from semel.stores.memory import MemoryStore
from semel.stores.sqlite import SQLiteStore
from tests.http.harness import BODY, Recorder, Request, until

CREATED = (201, [("Content-Type", "application/json"), ("Location", "/runs/1")], [b'{"n": 1.0}'])


def created(number: int, request: Request) -> Any:
    body = json.dumps({"run": number}).encode()
    return 201, [("Content-Type", "application/json"), ("X-Run", str(number))], [body]


def test_a_first_request_gets_the_handlers_own_answer(start: Any, store_url: str) -> None:
    recorder = Recorder(created)
    server = start(recorder, store_url)
    answer = server.send()
    assert (answer.status, answer.body, answer.replayed) == (201, b'{"run": 1}', False)
    assert answer.header("X-Run") == "1"


def test_a_repeat_gets_the_first_answer_and_runs_nothing(start: Any, store_url: str) -> None:
    recorder = Recorder(created)
    server = start(recorder, store_url)
    first = server.send()
    for _ in range(3):  # from the store, and then from this process's last answers
        repeat = server.send()
        assert (repeat.status, repeat.body) == (first.status, first.body)
        assert repeat.header("X-Run") == "1"
        assert repeat.replayed
    assert recorder.runs == 1


def test_another_key_is_another_operation(start: Any, store_url: str) -> None:
    recorder = Recorder(created)
    server = start(recorder, store_url)
    assert server.send(key="a").body != server.send(key="b").body
    assert recorder.runs == 2


@pytest.mark.parametrize(
    "change",
    [
        {"body": b'{"amount": 6}'},
        {"path": "/other"},
        {"path": "/run?x=1"},
        {"method": "PATCH"},
        {"headers": [("Content-Type", "text/plain")]},
        {"headers": [("Content-Encoding", "gzip")]},
    ],
)
def test_the_same_key_for_another_request_is_refused(
    start: Any, store_url: str, change: dict[str, Any]
) -> None:
    recorder = Recorder(created)
    server = start(recorder, store_url)
    server.send()
    refused = server.send(**change)
    assert (refused.status, refused.problem, recorder.runs) == (422, "key-reused", 1)
    assert server.send().replayed


def test_quoted_and_bare_name_the_same_key(start: Any) -> None:
    recorder = Recorder(created)
    server = start(recorder)
    server.send(key="8e03978e-40d5-43dd-bc93-6894a57f9324")
    assert server.send(key='"8e03978e-40d5-43dd-bc93-6894a57f9324"').replayed
    assert server.send(key='"8e03978e-40d5-43dd-bc93-6894a57f9324";v=1').replayed


def test_a_key_sent_twice_alike_is_one_key(start: Any) -> None:
    recorder = Recorder(created)
    server = start(recorder)
    server.send(key="a")
    twice = server.send(key=None, headers=[("Idempotency-Key", "a"), ("Idempotency-Key", '"a"')])
    assert twice.replayed


@pytest.mark.parametrize(
    "fields",
    [
        [""],
        ["a", "b"],
        ["a,b"],
        ["a b"],
        ["a" * 256],
        ["a" * 65000],
        ['"unclosed'],
        ['"a" trailing'],
        ['"a";1bad'],
        ["caf\u00e9"],
        ["tab\there"],
        ['""'],
    ],
)
def test_a_bad_key_is_refused_and_nothing_runs(start: Any, fields: list[str]) -> None:
    recorder = Recorder(created)
    server = start(recorder)
    refused = server.send(key=None, headers=[("Idempotency-Key", field) for field in fields])
    assert recorder.runs == 0
    if len(fields[0]) > 60000 and refused.status in (400, 431) and not refused.headers:
        return  # the server itself refuses a header this long
    assert (refused.status, refused.problem) == (400, "key-invalid")
    detail = json.loads(refused.body)["detail"]
    assert detail.startswith("Nothing was done: the ")


def test_a_key_of_255_characters_is_accepted(start: Any) -> None:
    assert start(Recorder(created)).send(key="~" * 255).status == 201


@pytest.mark.parametrize("junk", [b"a\x00b", b"a\x7fb", b"\xff", b"a\x01"])
def test_control_bytes_in_a_key_never_reach_the_handler(start: Any, junk: bytes) -> None:
    recorder = Recorder(created)
    server = start(recorder)
    received = server.raw(
        b"POST /run HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIdempotency-Key: %b\r\n"
        b"Content-Length: 0\r\n\r\n" % junk
    )
    assert received.split(b" ", 2)[1] == b"400"
    assert recorder.runs == 0


def test_a_missing_key_is_refused_where_required_and_passes_elsewhere(start: Any) -> None:
    recorder = Recorder(created)
    server = start(recorder, routes={"/must": Policy(required=True)})
    refused = server.send("/must", key=None)
    assert (refused.status, refused.problem) == (400, "key-missing")
    assert server.send("/run", key=None).status == 201
    assert recorder.runs == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_pass_untouched(start: Any, method: str) -> None:
    recorder = Recorder(created)
    server = start(recorder)
    for _ in range(2):
        assert not server.send(method=method, body=b"").replayed
    assert recorder.runs == 2


def test_put_is_covered_where_the_route_opts_in(start: Any) -> None:
    recorder = Recorder(created)
    server = start(recorder, policy=Policy(methods=("POST", "PUT")))
    server.send(method="PUT")
    assert server.send(method="PUT").replayed


class Gate:
    """Holds a handler until the test lets it go on."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, number: int, request: Request) -> Any:
        self.entered.set()
        assert self.open.wait(20)
        return created(number, request)


def test_a_repeat_in_flight_waits_for_the_answer(start: Any, store_url: str) -> None:
    gate = Gate()
    recorder = Recorder(gate)
    server = start(recorder, store_url)
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(server.send())) for _ in range(6)]
    for thread in threads:
        thread.start()
    assert gate.entered.wait(10)
    gate.open.set()
    for thread in threads:
        thread.join()
    assert [a.status for a in answers] == [201] * 6
    assert sorted(a.replayed for a in answers) == [False] + [True] * 5
    assert recorder.runs == 1


def test_patience_ends_with_409_and_retry_after(start: Any, store_url: str) -> None:
    gate = Gate()
    recorder = Recorder(gate)
    server = start(recorder, store_url, policy=Policy(wait=timedelta(milliseconds=50)))
    first: list[Any] = []
    thread = threading.Thread(target=lambda: first.append(server.send()))
    thread.start()
    assert gate.entered.wait(10)
    refused = server.send()
    assert (refused.status, refused.problem) == (409, "in-flight")
    assert refused.header("Retry-After") == "1"
    gate.open.set()
    thread.join()
    assert first[0].status == 201
    assert server.send().replayed


def test_waiters_are_bounded(start: Any) -> None:
    gate = Gate()
    recorder = Recorder(gate)
    server = start(recorder, policy=Policy(max_waiters=2))
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(server.send())) for _ in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: len(answers) == 3)  # one runs, two wait, three are told at once
    assert {a.problem for a in answers} == {"in-flight"}
    gate.open.set()
    for thread in threads:
        thread.join()
    assert sorted(a.status for a in answers) == [201, 201, 201, 409, 409, 409]


def test_a_body_over_the_limit_is_refused_before_any_claim(start: Any) -> None:
    recorder = Recorder(created)
    server = start(recorder, policy=Policy(max_request_body=100))
    refused = server.send(body=b"x" * 101)
    assert (refused.status, refused.problem) == (413, "request-too-large")
    assert "100 bytes" in json.loads(refused.body)["detail"]
    assert server.send(body=b"x" * 100).status == 201


def test_an_answer_over_the_limit_reaches_the_first_client_whole(
    start: Any, store_url: str
) -> None:
    recorder = Recorder(lambda n, r: (200, [("Content-Length", "5000")], [b"x" * 5000]))
    server = start(recorder, store_url, policy=Policy(max_response_body=4999))
    first = server.send()
    assert (first.status, first.body) == (200, b"x" * 5000)
    for _ in range(2):
        repeat = server.send()
        assert (repeat.status, repeat.problem) == (409, "response-not-kept")
    assert recorder.runs == 1


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def stores(tmp_path: Path, clock: Clock) -> list[Any]:
    return [MemoryStore(clock=clock), SQLiteStore(tmp_path / "r.db", clock=clock)]


@pytest.mark.parametrize("which", [0, 1], ids=["memory", "sqlite"])
def test_an_expired_key_is_refused_while_its_tombstone_stands(
    start: Any, tmp_path: Path, which: int
) -> None:
    clock = Clock()
    recorder = Recorder(created)
    server = start(recorder, stores(tmp_path, clock)[which])
    server.send()
    assert server.send().replayed
    assert server.send().replayed
    clock.now += 24 * 3600 - 1
    assert server.send().replayed
    clock.now += 2
    for _ in range(2):  # before and after the sweeper has been
        refused = server.send()
        assert (refused.status, refused.problem) == (410, "key-expired")
        server.idempotency.sweep()
    assert recorder.runs == 1
    clock.now += 30 * 24 * 3600
    server.idempotency.sweep()
    assert server.send().body == b'{"run": 2}'


@pytest.mark.parametrize("which", [0, 1], ids=["memory", "sqlite"])
def test_an_expired_key_runs_anew_where_the_route_says_so(
    start: Any, tmp_path: Path, which: int
) -> None:
    clock = Clock()
    recorder = Recorder(created)
    policy = Policy(after_expiry="run")
    server = start(recorder, stores(tmp_path, clock)[which], policy=policy)
    server.send()
    clock.now += 24 * 3600 + 1
    assert server.send(body=b"another").body == b'{"run": 2}'


def test_numbers_order_and_bytes_of_a_replay_are_those_of_the_first_answer(
    start: Any, store_url: str
) -> None:
    body = b'{"z":1.0,"a":12345678901234567,"e":[],"\xc3\xa9":null}\n\x00\xff'
    recorder = Recorder(lambda n, r: (200, [("Content-Type", "application/json")], [body]))
    server = start(recorder, store_url)
    assert server.send().body == body
    for _ in range(2):
        assert server.send().body == body


@pytest.mark.parametrize("status", [200, 201, 202, 204, 303, 400, 404, 410, 422])
def test_definite_answers_of_every_kind_are_replayed(start: Any, status: int) -> None:
    chunks = [b""] if status == 204 else [b"body"]
    recorder = Recorder(lambda n, r: (status, [("Location", f"/runs/{n}")], chunks))
    server = start(recorder)
    first = server.send()
    repeat = server.send()
    assert (repeat.status, repeat.body, repeat.header("Location")) == (
        status,
        first.body,
        "/runs/1",
    )
    assert repeat.replayed
    assert recorder.runs == 1


RELEASED = [307, 308, 401, 403, 408, 409, 425, 428, 429, 500, 502, 503]


@pytest.mark.parametrize("guarantee", [None, "at-least-once", "at-most-once"])
@pytest.mark.parametrize("status", RELEASED)
def test_what_is_no_outcome_lets_a_retry_run(start: Any, guarantee: Any, status: int) -> None:
    recorder = Recorder(lambda n, r: (status if n == 1 else 201, [], [b"run %d" % n]))
    server = start(recorder, policy=Policy(guarantee=guarantee))
    assert server.send().status == status
    again = server.send()
    if guarantee == "at-most-once" and status >= 500:
        assert (again.status, again.replayed, recorder.runs) == (status, True, 1)
    else:
        assert (again.status, again.body, again.replayed) == (201, b"run 2", False)


def raises_once(number: int, request: Request) -> Any:
    if number == 1:
        raise RuntimeError("on purpose")
    return created(number, request)


def test_a_handler_that_raised_may_run_again(start: Any, store_url: str) -> None:
    recorder = Recorder(raises_once)
    server = start(recorder, store_url)
    assert server.send().status == 500
    assert server.send().body == b'{"run": 2}'


def test_at_most_once_keeps_the_failure_of_a_handler_that_raised(
    start: Any, store_url: str
) -> None:
    recorder = Recorder(raises_once)
    policy = Policy(guarantee="at-most-once")
    server = start(recorder, store_url, policy=policy, problem_base="https://docs.example/")
    first, repeat = server.send(), server.send()
    assert (
        (first.status, first.problem) == (repeat.status, repeat.problem) == (500, "handler-failed")
    )
    assert first.body == repeat.body
    assert recorder.runs == 1


@pytest.mark.parametrize("guarantee", ["at-most-once", "at-least-once", "atomic"])
def test_a_handler_that_says_that_nothing_happened_may_run_again(
    start: Any, guarantee: Any, tmp_path: Path
) -> None:
    path = tmp_path / "books.db"
    with sqlite3.connect(path) as books:
        books.execute("create table sales (run)")

    def sell(number: int, request: Any) -> Any:
        operation = current_operation()
        if guarantee == "atomic":
            operation.connection().execute("insert into sales values (?)", (number,))
        if number == 1:
            operation.release()
        return (503 if number == 1 else 201), [], [b"run %d" % number]

    recorder = Recorder(sell)
    server = start(recorder, f"sqlite:///{path}", policy=Policy(guarantee=guarantee))
    assert (server.send().status, server.send().status) == (503, 201)
    assert server.send().body == b"run 2"
    if guarantee == "atomic":
        with sqlite3.connect(path) as books:
            assert books.execute("select run from sales").fetchall() == [(2,)]


def test_keep_statuses_is_the_exact_list(start: Any) -> None:
    recorder = Recorder(lambda n, r: (503 if n == 1 else 201, [], [b"run %d" % n]))
    server = start(recorder, policy=Policy(keep_statuses=frozenset({503})))
    assert (server.send().status, server.send().status, recorder.runs) == (503, 503, 1)


def test_problems_carry_type_title_status_detail_and_a_link(start: Any) -> None:
    recorder = Recorder(created)
    base = "https://docs.example/idempotency/"
    server = start(recorder, policy=Policy(required=True), problem_base=base)
    refused = server.send(key=None)
    problem = json.loads(refused.body)
    assert problem["type"] == base + "key-missing"
    assert (problem["status"], refused.header("Cache-Control")) == (400, "no-store")
    assert {"title", "detail"} <= problem.keys()
    assert refused.header("Link") == f'<{base}key-missing>; rel="describedby"'


def test_multipart_with_another_boundary_is_the_same_request(start: Any) -> None:
    recorder = Recorder(created)
    server = start(recorder)

    def form(boundary: str) -> dict[str, Any]:
        part = 'Content-Disposition: form-data; name="a"'
        body = f"--{boundary}\r\n{part}\r\n\r\n1\r\n--{boundary}--\r\n"
        kind = f"multipart/form-data; boundary={boundary}"
        return {"body": body.encode(), "headers": [("Content-Type", kind)]}

    server.send(**form("----one"))
    assert server.send(**form("----two")).replayed


def test_json_serialised_anew_is_the_same_request_where_asked_for(start: Any) -> None:
    recorder = Recorder(created)
    server = start(recorder, policy=Policy(fingerprint="json"))
    server.send(body=b'{"a": 1, "b": 2}')
    assert server.send(body=b'{"b":2,"a":1.0}').replayed
    assert server.send(body=b'{"b":2,"a":1.5}').problem == "key-reused"


def test_the_wait_is_over_as_soon_as_the_first_request_is(start: Any) -> None:
    gate = Gate()
    server = start(Recorder(gate), policy=Policy(wait=timedelta(seconds=15)))
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(server.send())) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert gate.entered.wait(10)
    time.sleep(0.3)  # long enough for a poller to have slowed down to one look in half a second
    gate.open.set()
    for thread in threads:
        thread.join(10)
    assert len(answers) == 2


def test_the_body_reaches_the_handler_as_it_was_sent(start: Any) -> None:
    seen: list[bytes] = []

    def behave(number: int, request: Request) -> Any:
        seen.append(request.body)
        return created(number, request)

    server = start(Recorder(behave))
    large = bytes(range(256)) * 8192  # 2 MiB: through the file
    server.send(key="small", body=BODY)
    server.send(key="large", body=large)
    server.send(key="none", body=b"")
    assert seen == [BODY, large, b""]
    assert server.send(key="large", body=large).replayed
    assert server.send(key="large", body=large[:-1] + b"x").problem == "key-reused"
