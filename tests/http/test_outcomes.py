"""Every outcome passes one point, once; and the caller of a request is asked for once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from semel import ASGIMiddleware, Idempotency, Issuer, Policy, current_operation
from semel.core.commands import Lookup, StoreUnavailable
from semel.core.engine import Bypass, Deliver, Refuse, Replay
from semel.core.policy import MEBIBYTE, RequestView
from semel.runtime.outcomes import Passed
from tests.http.conftest import Start
from tests.http.harness import Recorder, Request, Server

KEY = (b"idempotency-key", b"k")


def named(passed: Passed) -> str:
    match passed.outcome:
        case Deliver(kept):
            return "kept" if kept else "released"
        case Replay():
            return "replayed"
        case Refuse(problem):
            return problem.slug
        case Bypass():
            return "bypassed"


def watch(server: Server) -> list[Passed]:
    seen: list[Passed] = []
    server.idempotency.outcomes.observers += (seen.append,)
    return seen


def answer(number: int, request: Request) -> Any:
    match request.path:
        case "/raise":
            raise RuntimeError("on purpose")
        case "/busy":
            return 503, [], [b"later"]
        case "/park":
            current_operation().park("nobody knows")
    return 201, [], [b"made"]


@pytest.mark.parametrize("store", ["memory://", "sqlite"])
def test_each_outcome_is_seen_once(start: Start, store: str, tmp_path: Any) -> None:
    url = store if store == "memory://" else f"sqlite:///{tmp_path}/records.db"
    routes = {
        "/strict": Policy(required=True),
        "/once": Policy(guarantee="at-most-once"),
        "/small": Policy(max_request_body=4),
    }
    server = start(Recorder(answer), url, routes=routes)
    seen = watch(server)

    def outcome(path: str = "/run", **request: Any) -> list[tuple[str, int, bool]]:
        seen.clear()
        server.send(path, **request)
        return [(named(passed), passed.attempt, passed.key is not None) for passed in seen]

    assert outcome() == [("kept", 1, True)]
    assert outcome() == [("replayed", 0, True)], "by the record"
    assert outcome() == [("replayed", 0, True)], "by the cache of exact requests"
    assert outcome(body=b"another") == [("key-reused", 0, True)]
    assert outcome("/raise", key="r") == [("released", 1, True)]
    assert outcome("/busy", key="b") == [("released", 1, True)]
    assert outcome("/park", key="p") == [("outcome-unknown", 1, True)]
    assert outcome("/park", key="p") == [("outcome-unknown", 0, True)]
    assert outcome("/strict", key=None) == [("key-missing", 0, False)]
    assert outcome(key="two words") == [("key-invalid", 0, False)]
    assert outcome("/small", key="s") == [("request-too-large", 0, False)]
    assert outcome(key=None) == [], "without a key there is no operation"
    assert outcome(method="GET", body=b"") == []


def test_the_store_that_is_down_and_the_way_round_it_are_outcomes(start: Start) -> None:
    routes = {"/open": Policy(on_store_error="run")}
    server = start(Recorder(answer), "memory://?max_records=1", routes=routes)
    seen = watch(server)
    for path, key in (("/run", "a"), ("/run", "b"), ("/open", "c")):
        server.send(path, key=key)
    assert [named(passed) for passed in seen] == ["kept", "store-unavailable", "bypassed"]


def test_a_repeat_of_what_is_in_flight_is_an_outcome(start: Start) -> None:
    answers: list[Any] = []

    def behave(number: int, request: Request) -> Any:
        answers.append(server.send().problem)
        return 201, [], [b"made"]

    server = start(Recorder(behave), policy=Policy(wait=timedelta(0)))
    seen = watch(server)
    server.send()
    assert answers == ["in-flight"]
    assert [named(passed) for passed in seen] == ["in-flight", "kept"]


async def test_a_store_that_fails_while_a_repeat_looks_lets_it_run_where_the_policy_says_so() -> (
    None
):
    policy = Policy(on_store_error="run", wait=timedelta(seconds=5))
    idempotency = Idempotency("memory://", policy=policy)
    idempotency.start()
    seen: list[Passed] = []
    idempotency.outcomes.observers += (seen.append,)
    began, gate, runs = asyncio.Event(), asyncio.Event(), 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            began.set()
            await gate.wait()
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    middleware = ASGIMiddleware(app, idempotency)

    async def post() -> int:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/", "headers": [KEY]}
        await middleware(scope, receive, send)
        return int(sent[0]["status"])

    first = asyncio.create_task(post())
    await began.wait()
    execute = idempotency.store.aexecute

    async def down(command: Any) -> Any:
        if isinstance(command, Lookup):
            raise StoreUnavailable("on purpose")
        return await execute(command)

    idempotency.store.aexecute = down  # type: ignore[method-assign]
    assert await post() == 201
    idempotency.store.aexecute = execute  # type: ignore[method-assign]
    gate.set()
    assert await first == 201
    idempotency.stop()
    assert (runs, [named(passed) for passed in seen]) == (2, ["bypassed", "kept"])


def test_a_large_body_is_whole_where_its_fingerprint_is_taken_anew(start: Start) -> None:
    def behave(number: int, request: Request) -> Any:
        return 201, [], [str(len(request.body)).encode()]

    policy = Policy(shared=True, key=lambda request: request.header("x-order"), fingerprint="key")
    server = start(Recorder(behave), policy=policy)
    large = bytes(2 * MEBIBYTE)
    assert [server.send(body=large).body for _ in range(2)] == [b"%d" % len(large)] * 2
    assert server.send(body=b"another").problem == "key-reused"


def test_a_key_that_is_none_is_refused_before_the_body_is(start: Start, kind: str) -> None:
    server = start(Recorder(answer), policy=Policy(max_request_body=4))
    refusal = server.send(key="two words", body=b"too long").problem
    assert refusal == ("key-invalid" if kind == "wsgi" else "request-too-large")


def test_an_observer_that_fails_harms_nobody(start: Start) -> None:
    server = start(Recorder(answer))
    server.idempotency.outcomes.observers += (lambda passed: 1 // 0,)
    seen = watch(server)
    assert (server.send().status, server.send().replayed) == (201, True)
    assert len(seen) == 2


@pytest.mark.parametrize("remember", [False, True])
def test_the_caller_is_asked_for_once_a_request(start: Start, remember: bool) -> None:
    asked: list[str] = []

    def scope(request: RequestView) -> str:
        asked.append(request.path)
        return "alice"

    policy = Policy(remember_request=remember, next_key=True)
    issuer = Issuer(b"s" * 32)
    server = start(Recorder(answer), policy=policy, scope=scope, issuer=issuer)
    for _ in range(3):
        assert server.send().header("Idempotency-Key") is not None
    assert asked == ["/run"] * 3
