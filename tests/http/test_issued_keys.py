"""Keys that the service issues: handed out, required, bound, and refused once they are old."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from semel import Idempotency, Issuer, Policy, StoreSetupError, current_operation
from semel.core.record import Response
from semel.core.remembered import RememberedRequest
from semel.stores.memory import MemoryStore
from semel.web.http import completer
from semel.web.http.body import Body
from tests.http.harness import Answer, Recorder, Request, Server
from tests.http.test_answers import created

SECRET = bytes(range(32))
DAY = 86400.0


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder(created)


@pytest.fixture
def server(start: Any, recorder: Recorder, clock: Clock) -> Server:
    made: Server = start(
        recorder,
        MemoryStore(clock=clock),
        policy=Policy(required="issued"),
        issuer=Issuer(SECRET, clock=clock),
        sweep_every=None,
    )
    return made


ALICE, BOB = [("Authorization", "Bearer alice")], [("Authorization", "Bearer bob")]


def ask(server: Server, body: Any = None, headers: Any = ALICE, method: str = "POST") -> Answer:
    data = b"" if body is None else json.dumps(body).encode()
    return server.send("/idempotency-keys", None, data, method, headers)


def keys(server: Server, count: int = 1, **wanted: Any) -> list[str]:
    answer = ask(server, {"count": count, **wanted})
    assert answer.status == 201, answer.body
    issued: list[str] = json.loads(answer.body)["keys"]
    return issued


@pytest.mark.parametrize("count", [1, 50, 1000, 3.0])
def test_keys_are_handed_out_by_the_dozen(server: Server, count: float) -> None:
    answer = ask(server, {"count": count})
    assert (answer.status, answer.header("Cache-Control")) == (201, "no-store")
    told = json.loads(answer.body)
    assert len(set(told["keys"])) == count
    assert told["not_after"] == "2027-01-16T08:00:00Z"


def test_an_empty_request_gets_one(server: Server) -> None:
    assert len(json.loads(ask(server).body)["keys"]) == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"count": 0}, "count has to be a whole number from 1 to 1000"),
        ({"count": 1001}, "count has to be"),
        ({"count": True}, "count has to be"),
        ({"count": 1.5}, "count has to be"),
        ({"count": float("inf")}, "count has to be"),
        ({"count": "5"}, "count has to be"),
        ({"route": "charges"}, "route has to be"),
        ({"route": 5}, "route has to be"),
        ({"number": 5}, "send"),
        ([5], "send"),
    ],
)
def test_a_request_for_keys_that_is_not_understood_is_told_why(
    server: Server, body: Any, says: str
) -> None:
    answer = ask(server, body)
    assert (answer.status, answer.problem) == (400, "keys-not-issued")
    assert says in json.loads(answer.body)["detail"]


def test_a_request_for_keys_that_is_too_large_is_refused(server: Server) -> None:
    answer = ask(server, {"route": "/" + "x" * 5000})
    assert (answer.status, answer.problem) == (413, "request-too-large")


def test_keys_are_asked_for_by_post(server: Server) -> None:
    answer = ask(server, method="GET")
    assert (answer.status, answer.header("Allow")) == (405, "POST")


def test_an_issued_key_runs_once_and_replays(server: Server, recorder: Recorder) -> None:
    (key,) = keys(server)
    first = server.send(key=key, headers=ALICE)
    again = server.send(key=f'"{key}"', headers=ALICE)
    assert (first.status, again.body, again.replayed) == (201, first.body, True)
    assert recorder.runs == 1


@pytest.mark.parametrize("forged", ["k", "ik.", "ik." + "A" * 48, "ik.{}x"])
def test_what_was_not_issued_is_refused_in_one_shape(
    server: Server, recorder: Recorder, forged: str
) -> None:
    (key,) = keys(server)
    answers = [
        server.send(key=forged.format(key), headers=ALICE),
        server.send(key=key, headers=BOB),  # somebody else's
        server.send(key=keys(server, route="/elsewhere")[0], headers=ALICE),  # another route's
    ]
    assert {(a.status, a.problem, a.body) for a in answers} == {
        (400, "key-invalid", answers[0].body)
    }
    assert recorder.runs == 0


def test_another_callers_answer_is_not_to_be_had_with_their_key(
    server: Server, recorder: Recorder
) -> None:
    (key,) = keys(server)
    assert server.send(key=key, headers=ALICE).status == 201
    refused = server.send(key=key, headers=BOB)
    assert (refused.status, refused.problem) == (400, "key-invalid")


def test_a_key_for_one_route_is_good_there(server: Server) -> None:
    (key,) = keys(server, route="POST /run")
    assert server.send("/run", key=key, headers=ALICE).status == 201


@pytest.mark.parametrize("used", [True, False])
def test_a_key_is_refused_after_its_not_after_for_ever(
    server: Server, recorder: Recorder, clock: Clock, used: bool
) -> None:
    (key,) = keys(server)
    if used:
        server.send(key=key, headers=ALICE)
        clock.now += DAY - 2
        for _ in range(3):  # from this process's last answers too
            assert server.send(key=key, headers=ALICE).replayed
    for seconds in (DAY, 1, DAY, 400 * DAY):
        clock.now += seconds
        server.idempotency.sweep()
        answer = server.send(key=key, headers=ALICE)
        assert (answer.status, answer.problem) == (410, "key-expired")
    assert recorder.runs == int(used)


def test_a_record_goes_only_after_its_key(server: Server, recorder: Recorder, clock: Clock) -> None:
    """Bounded storage: nothing is left a day after the not-after, and nothing is lost before."""
    (key,) = keys(server)
    clock.now += DAY / 2  # used late in its life
    server.send(key=key, headers=ALICE)
    table = server.idempotency.store._table  # type: ignore[attr-defined]
    clock.now += DAY / 2 - 1
    server.idempotency.sweep()
    (record,) = table.records.values()
    assert record.response is not None
    clock.now += DAY - 1
    server.idempotency.sweep()
    assert len(table.records) == 1
    clock.now += 4
    server.idempotency.sweep()
    server.idempotency.sweep()
    assert not table.records


def test_where_issued_keys_are_not_required_the_clients_own_are_taken(
    start: Any, recorder: Recorder, clock: Clock
) -> None:
    server = start(
        recorder, MemoryStore(clock=clock), issuer=Issuer(SECRET, clock=clock), sweep_every=None
    )
    assert server.send(key="mine", headers=ALICE).status == 201
    assert server.send(key="ik.mine", headers=ALICE).problem == "key-invalid"
    (key,) = keys(server)
    assert server.send(key=key, headers=ALICE).status == 201
    assert recorder.runs == 2


def test_every_answer_can_hand_out_the_next_key(
    start: Any, recorder: Recorder, clock: Clock
) -> None:
    server = start(
        recorder,
        MemoryStore(clock=clock),
        policy=Policy(required="issued", next_key=True),
        issuer=Issuer(SECRET, clock=clock, prefix="order_", readable=True),
    )
    key = server.send(key=None, headers=ALICE).header("Idempotency-Key")  # 400 key-missing
    seen = {key}
    for _ in range(3):
        answers = [server.send(key=key, headers=ALICE) for _ in range(2)]
        assert [answer.status for answer in answers] == [201, 201]
        assert [answer.replayed for answer in answers] == [False, True]
        handed = {answer.header("Idempotency-Key") for answer in answers}
        assert len(handed) == 2
        assert not handed & seen
        seen |= handed
        key = answers[1].header("Idempotency-Key")
        assert str(key).startswith("order_")
    assert recorder.runs == 3


def test_issued_keys_without_an_issuer_are_refused_at_the_start() -> None:
    for policy in (Policy(required="issued"), Policy(next_key=True)):
        with pytest.raises(StoreSetupError, match=r"issuer=Issuer\(secret\)"):
            Idempotency("memory://", policy=policy)


def test_a_route_can_reuse_keys_but_not_issued_ones(
    start: Any, recorder: Recorder, clock: Clock
) -> None:
    server = start(
        recorder,
        MemoryStore(clock=clock),
        policy=Policy(after_expiry="run", expires=timedelta(seconds=5)),
        issuer=Issuer(SECRET, clock=clock),
        sweep_every=None,
    )
    (key,) = keys(server)
    server.send(key=key, headers=ALICE)
    clock.now += 100
    assert server.send(key=key, headers=ALICE).replayed
    clock.now += DAY
    assert server.send(key=key, headers=ALICE).problem == "key-expired"
    assert recorder.runs == 1


def test_a_parked_operation_that_is_settled_outlasts_its_key(start: Any, clock: Clock) -> None:
    """Or the key, still good, would run again once its answer had gone."""

    def parks(number: int, request: Request) -> Any:
        if number == 1:
            current_operation().park("nobody knows")
        return 201, [], [b"ran again"]

    recorder = Recorder(parks)
    short = Policy(expires=timedelta(seconds=1), tombstone=timedelta(seconds=1))
    server = start(
        recorder,
        MemoryStore(clock=clock),
        policy=short,
        issuer=Issuer(SECRET, clock=clock, lifetime=timedelta(days=90)),
        sweep_every=None,
    )
    (key,) = keys(server)
    assert server.send(key=key, headers=ALICE).problem == "outcome-unknown"
    (name,) = server.idempotency.store._table.records
    assert server.idempotency.settle(name, Response(201, (), b"settled"))
    for _ in range(3):
        clock.now += 29 * DAY
        server.idempotency.sweep()
        answer = server.send(key=key, headers=ALICE)
        assert (answer.body, answer.replayed) == (b"settled", True)
    assert recorder.runs == 1


def test_a_completer_that_lacks_a_secret_keeps_the_record_as_long_as_any_key() -> None:
    (key,) = Issuer({2: SECRET}, lifetime=timedelta(days=90)).issue("alice").keys
    behind = Idempotency("memory://", issuer=Issuer({1: SECRET}, lifetime=timedelta(days=90)))
    asked = RememberedRequest(
        "POST", "/run", b"/run", "", b"", ((b"idempotency-key", key.encode()),), "alice", "", b""
    )
    rules = completer._rules(behind, Policy(), asked, Body(1, ("POST", b"/run", b"", b"", b"")))
    assert rules.seconds.expires == 90 * DAY


def test_a_key_for_a_route_with_other_letters_is_good_there(server: Server) -> None:
    (key,) = keys(server, route="/caf\u00e9")
    assert server.send("/caf%C3%A9", key=key, headers=ALICE).status == 201
