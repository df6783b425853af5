"""Streams, large bodies, disconnects, and what a replay carries."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from semel import Policy
from semel.core.commands import Complete, StoreUnavailable
from semel.core.record import Response, State
from semel.operation import Operation, current
from semel.stores.memory import MemoryStore
from semel.web.http.headers import is_valid
from tests.http.harness import Recorder, Request, until


def read_until(connection: Any, wanted: bytes) -> bytes:
    received = b""
    while wanted not in received:
        chunk = connection.recv(65536)
        assert chunk, received
        received += chunk
    return received


REQUEST = (
    b"POST /run HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIdempotency-Key: k\r\n"
    b"Content-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"
)


def test_a_stream_passes_as_it_is_made_and_is_replayed_whole(start: Any, store_url: str) -> None:
    second = threading.Event()

    def wait() -> bytes:
        assert second.wait(20)
        return b"second"

    recorder = Recorder(lambda n, r: (200, [("X-Stream", "1")], [b"first", wait, b"third"]))
    server = start(recorder, store_url)
    with server.connect() as connection:
        connection.sendall(REQUEST)
        read_until(connection, b"first")  # before the handler has made the second
        second.set()
        read_until(connection, b"third")
        while connection.recv(65536):
            pass
    until(lambda: recorder.finished == 1)
    repeat = server.send(body=b"{}")
    assert (repeat.body, repeat.replayed, repeat.header("X-Stream")) == (
        b"firstsecondthird",
        True,
        "1",
    )
    assert recorder.runs == 1


def test_a_stream_over_the_limit_passes_whole_and_is_never_run_again(start: Any) -> None:
    chunks = [b"x" * 1000] * 10
    recorder = Recorder(lambda n, r: (200, [], chunks))
    server = start(recorder, policy=Policy(max_response_body=3500))
    assert server.send().body == b"x" * 10_000
    assert server.send().problem == "response-not-kept"
    assert recorder.runs == 1


def test_a_stream_that_broke_is_never_run_again(start: Any) -> None:
    def breaks() -> bytes:
        raise RuntimeError("on purpose")

    recorder = Recorder(lambda n, r: (200, [], [b"begun", breaks]))
    server = start(recorder)
    with server.connect() as connection:
        connection.sendall(REQUEST)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    assert b"begun" in received
    assert not received.endswith(b"0\r\n\r\n")
    assert server.send(body=b"{}").problem == "response-not-kept"
    assert recorder.runs == 1


def test_a_client_that_leaves_does_not_stop_the_operation(start: Any, store_url: str) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def behave(number: int, request: Request) -> Any:
        entered.set()
        assert go_on.wait(20)
        return 201, [], [b"done"]

    recorder = Recorder(behave)
    server = start(recorder, store_url)
    with server.connect() as connection:
        connection.sendall(REQUEST)
        assert entered.wait(10)
    go_on.set()
    until(lambda: recorder.finished == 1)
    repeat = server.send(body=b"{}")
    assert (repeat.status, repeat.body, repeat.replayed) == (201, b"done", True)
    assert recorder.runs == 1


def test_a_client_that_leaves_a_stream_does_not_stop_it(start: Any) -> None:
    go_on = threading.Event()

    def wait() -> bytes:
        assert go_on.wait(20)
        return b"second"

    recorder = Recorder(lambda n, r: (200, [], [b"first" * 100, wait, *[b"x" * 5000] * 50]))
    server = start(recorder)
    with server.connect() as connection:
        connection.sendall(REQUEST)
        read_until(connection, b"first")
    go_on.set()
    until(lambda: recorder.finished == 1)
    repeat = server.send(body=b"{}")
    assert repeat.body == b"first" * 100 + b"second" + b"x" * 250_000
    assert recorder.runs == 1


FIRST = [
    ("Content-Type", "text/plain"),
    ("X-Charge-Id", "ch_1"),
    ("Location", "/charges/1"),
    ("ETag", '"abc"'),
    ("Set-Cookie", "session=1; HttpOnly"),
    ("Set-Cookie", "theme=dark"),
    ("Access-Control-Allow-Origin", "https://first.example"),
    ("X-RateLimit-Remaining", "9"),
    ("RateLimit-Remaining", "9"),
    ("Server-Timing", "db;dur=5"),
    ("traceparent", "00-1-2-01"),
    ("X-Request-Id", "r1"),
]


def test_the_first_answer_is_never_altered(start: Any) -> None:
    server = start(Recorder(lambda n, r: (201, FIRST, [b"x"])))
    first = server.send()
    for name, value in FIRST:
        assert value in first.all(name), name
    assert first.all("Set-Cookie") == ["session=1; HttpOnly", "theme=dark"]


def test_a_replay_carries_what_belongs_to_the_answer_and_nothing_of_the_moment(start: Any) -> None:
    server = start(Recorder(lambda n, r: (201, FIRST, [b"x"])))
    server.send()
    for _ in range(2):
        repeat = server.send()
        for name, value in FIRST[:4]:
            assert repeat.all(name) == [value]
        for name, _ in FIRST[4:]:
            assert repeat.all(name) == [], name


def test_cookies_are_replayed_where_the_route_says_so(start: Any) -> None:
    server = start(Recorder(lambda n, r: (201, FIRST, [b"x"])), policy=Policy(keep_cookies=True))
    server.send()
    assert server.send().all("Set-Cookie") == ["session=1; HttpOnly", "theme=dark"]


def test_keep_headers_is_an_allow_list(start: Any) -> None:
    policy = Policy(keep_headers=frozenset({"ETag"}))
    server = start(Recorder(lambda n, r: (201, FIRST, [b"x"])), policy=policy)
    server.send()
    repeat = server.send()
    assert repeat.header("ETag") == '"abc"'
    assert repeat.header("Content-Type") == "text/plain"
    assert repeat.header("X-Charge-Id") is None


def test_a_header_smuggled_into_the_store_is_dropped(start: Any) -> None:
    store = MemoryStore()
    server = start(Recorder(lambda n, r: (201, [("X-Ok", "1")], [b"x"])), store)
    server.send()
    (record,) = store._table.records.values()
    bad = (
        (b"x-evil", b"1\r\nSet-Cookie: a=b"),
        (b"x evil", b"2"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Content-Length", b"1000"),
        (b"x-ok", b"1"),
    )
    store._table.records[record.key] = record._replace(response=Response(201, bad, b"x"))
    repeat = server.send()
    assert (repeat.status, repeat.header("X-Ok"), repeat.body) == (201, "1", b"x")
    assert repeat.all("Content-Length") == ["1"]
    assert repeat.header("X-Evil") is None
    assert repeat.header("Set-Cookie") is None


@pytest.mark.parametrize("value", [b"a\rb", b"a\nb", b"a\x00b", b"\r\n", b"\x7f"])
def test_no_line_break_is_a_valid_header_value(value: bytes) -> None:
    assert not is_valid(b"name", value)


class Broken(MemoryStore):
    """A memory store that can be switched off, for all commands or for some."""

    def __init__(self, *kinds: type) -> None:
        super().__init__()
        self.kinds = kinds
        self.down = True

    def execute(self, command: Any) -> Any:
        if self.down and (not self.kinds or isinstance(command, self.kinds)):
            raise StoreUnavailable("switched off")
        return super().execute(command)

    async def aexecute(self, command: Any) -> Any:
        return self.execute(command)


def test_a_dead_store_refuses_and_nothing_runs(start: Any) -> None:
    recorder = Recorder(lambda n, r: (201, [], [b"x"]))
    store = Broken()
    server = start(recorder, store)
    refused = server.send()
    assert (refused.status, refused.problem) == (503, "store-unavailable")
    assert refused.header("Retry-After") == "2"
    assert recorder.runs == 0
    store.down = False
    assert server.send().status == 201


def test_a_dead_store_lets_pass_where_the_route_chose_so(start: Any) -> None:
    recorder = Recorder(lambda n, r: (201, [], [r.body]))
    server = start(recorder, Broken(), policy=Policy(on_store_error="run"))
    assert server.send().body == b'{"amount": 5}'
    assert server.send().status == 201
    assert recorder.runs == 2


def test_an_outcome_that_cannot_be_recorded_is_not_called_done(start: Any) -> None:
    store = Broken(Complete)
    recorder = Recorder(lambda n, r: (201, [], [b"run %d" % n]))
    server = start(recorder, store)
    refused = server.send()
    assert (refused.status, refused.problem) == (503, "outcome-unrecorded")
    assert recorder.runs == 1


def test_a_parked_key_says_so(start: Any) -> None:
    clock = [1000.0]
    store = MemoryStore(clock=lambda: clock[0])
    recorder = Recorder(lambda n, r: (201, [], [b"x"]))
    server = start(recorder, store, policy=Policy(guarantee="at-most-once"))
    server.send()
    (record,) = store._table.records.values()
    store._table.records[record.key] = record._replace(
        state=State.IN_FLIGHT, response=None, lease_until=clock[0] - 1
    )
    for _ in range(2):
        refused = server.send(body=b'{"amount": 5}')
        assert (refused.status, refused.problem) == (409, "outcome-unknown")
        assert refused.header("Retry-After") is None
        assert record.key[:6].hex().encode() in refused.body
    assert recorder.runs == 1


# --- atomic, on both kinds of server --------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path) -> tuple[str, Path]:
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table charges (amount)")
    connection.close()
    return f"sqlite:///{path}", path


def charges(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("select count(*) from charges").fetchone()[0])
    finally:
        connection.close()


def charge(recorder_behaviour: Any = None) -> Any:
    """A handler that writes through `op.connection()` from whatever thread it is on."""

    def behave(number: int, request: Request) -> Any:
        driver = current.get()
        assert driver is not None
        db = Operation(driver).connection()
        db.execute("insert into charges values (?)", (number,))
        if recorder_behaviour is not None:
            return recorder_behaviour(number, request)
        return 201, [], [b"charged %d" % number]

    return behave


def test_the_charge_and_the_record_commit_together(start: Any, shop: Any) -> None:
    url, path = shop
    recorder = Recorder(charge())
    server = start(recorder, url)
    assert server.send().status == 201
    assert server.send().replayed
    assert (charges(path), recorder.runs) == (1, 1)


@pytest.mark.parametrize("status", [500, 503, 409, 429])
def test_an_answer_that_is_no_outcome_rolls_the_charge_back(
    start: Any, shop: Any, status: int
) -> None:
    url, path = shop
    recorder = Recorder(charge(lambda n, r: (status if n == 1 else 201, [], [b"x"])))
    server = start(recorder, url)
    assert server.send().status == status
    assert charges(path) == 0
    assert server.send().status == 201
    assert charges(path) == 1


def test_a_handler_that_raises_rolls_the_charge_back(start: Any, shop: Any) -> None:
    def fails_once(number: int, request: Request) -> Any:
        if number == 1:
            raise RuntimeError("on purpose")
        return 201, [], [b"x"]

    url, path = shop
    server = start(Recorder(charge(fails_once)), url)
    assert server.send().status == 500
    assert charges(path) == 0
    assert server.send().status == 201
    assert charges(path) == 1


def test_nothing_of_an_atomic_stream_is_sent_before_the_commit(start: Any, shop: Any) -> None:
    url, path = shop
    go_on = threading.Event()

    def wait() -> bytes:
        assert go_on.wait(20)
        return b"second"

    recorder = Recorder(charge(lambda n, r: (200, [], [b"first", wait])))
    server = start(recorder, url)
    with server.connect() as connection:
        connection.sendall(REQUEST)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert charges(path) == 0
        go_on.set()
        connection.settimeout(20)
        read_until(connection, b"second")
    assert charges(path) == 1
    assert server.send(body=b"{}").body == b"firstsecond"


def test_an_atomic_stream_that_broke_rolls_back(start: Any, shop: Any) -> None:
    def breaks() -> bytes:
        raise RuntimeError("on purpose")

    url, path = shop
    chunks = lambda n: [b"first", breaks] if n == 1 else [b"whole"]  # noqa: E731
    server = start(Recorder(charge(lambda n, r: (200, [], chunks(n)))), url)
    assert server.send().status == 500
    assert charges(path) == 0
    assert server.send().body == b"whole"
    assert charges(path) == 1


def test_fifty_at_once_charge_once(start: Any, shop: Any) -> None:
    url, path = shop
    server = start(Recorder(charge()), url)
    answers = server.together(50)
    assert {a.status for a in answers} == {201}
    assert sum(not a.replayed for a in answers) == 1
    assert charges(path) == 1


def test_declared_atomic_without_taking_the_connection_is_an_error(start: Any, shop: Any) -> None:
    url, _ = shop
    recorder = Recorder(lambda n, r: (201, [], [b"x"]))
    server = start(recorder, url, policy=Policy(guarantee="atomic"))
    refused = server.send()
    assert (refused.status, refused.problem) == (500, "connection-not-taken")


def test_two_callers_with_one_key_never_meet(start: Any, store_url: str) -> None:
    recorder = Recorder(lambda n, r: (201, [], [b"run %d" % n]))
    server = start(recorder, store_url)
    alice = [("Authorization", "Bearer alice")]
    bob = [("Authorization", "Bearer bob")]
    assert server.send(headers=alice).body == b"run 1"
    theirs = server.send(headers=bob, body=b"something else")
    assert (theirs.status, theirs.body, theirs.replayed) == (201, b"run 2", False)
    assert server.send(headers=alice).body == b"run 1"
    assert server.send().body == b"run 3"
    for _ in range(2):
        assert server.send(headers=bob, body=b"something else").body == b"run 2"


def test_a_named_cookie_tells_callers_apart(start: Any) -> None:
    recorder = Recorder(lambda n, r: (201, [], [b"run %d" % n]))
    server = start(recorder, session_cookie="sid")
    assert server.send(headers=[("Cookie", "a=1; sid=one")]).body == b"run 1"
    assert server.send(headers=[("Cookie", "sid=two")]).body == b"run 2"
    assert server.send(headers=[("Cookie", "sid=one; b=9")]).body == b"run 1"


def test_a_scope_of_ones_own_survives_a_rotated_token(start: Any) -> None:
    recorder = Recorder(lambda n, r: (201, [], [b"run %d" % n]))

    def account(request: Any) -> str:
        return str(request.header("Authorization")).split("-")[0]

    server = start(recorder, scope=account)
    assert server.send(headers=[("Authorization", "alice-token1")]).body == b"run 1"
    assert server.send(headers=[("Authorization", "alice-token2")]).replayed
    assert server.send(headers=[("Authorization", "bob-token1")]).body == b"run 2"


def test_an_empty_scope_is_an_error_and_nothing_runs(start: Any) -> None:
    recorder = Recorder(lambda n, r: (201, [], [b"x"]))
    server = start(recorder, scope=lambda request: "")
    assert server.send().status == 500
    assert recorder.runs == 0
