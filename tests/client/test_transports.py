"""The transports of httpx and the adapter of requests, against a server that loses and cuts."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

from semel import Idempotency, Issuer, Policy
from semel.client import (
    AsyncRetryTransport,
    Budget,
    Journal,
    JournalError,
    KeyPool,
    KeysNotIssued,
    RequestTooLarge,
    Retry,
    RetryTransport,
    Unsettled,
)
from semel.core.keys import InvalidKey
from semel.stores.memory import MemoryStore
from semel.web.asgi import ASGIMiddleware
from tests.client.wire import HALF_A_BODY, RESET_AFTER_HEADERS, SWALLOW, Wire, answer
from tests.http.harness import asgi_server

PROBLEM = "Content-Type: application/problem+json"


def problem(status: int, slug: str, *headers: str) -> bytes:
    body = json.dumps({"type": f"https://shop.example/problems/{slug}"}).encode()
    return answer(status, body, PROBLEM, *headers)


@pytest.fixture
def journal(tmp_path: Path) -> Any:
    with Journal(tmp_path / "shop.journal") as journal:
        yield journal


def nobody() -> str:
    """Return an address at which nobody listens."""
    wire = Wire([])
    wire.close()
    return wire.url


LOSSES = {
    "the reply is swallowed": SWALLOW,
    "reset after the headers": RESET_AFTER_HEADERS,
    "half a body": HALF_A_BODY,
    "unavailable": answer(503),
    "in flight": problem(409, "in-flight", "Retry-After: 1"),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_lost_answer_is_asked_for_again_under_the_same_key(
    call: Any, serve: Any, journal: Journal, loss: bytes
) -> None:
    wire = serve(loss, loss, answer())
    got = call(journal=journal).send(wire.url, body=b'{"amount": 5}')
    assert (got.status, got.body) == (201, b"charged")
    assert [seen.body for seen in wire.seen] == [b'{"amount": 5}'] * 3
    assert {seen.key for seen in wire.seen} == {got.key}
    assert uuid.UUID(got.key).version == 7
    assert journal.unfinished() == []


def test_each_logical_request_has_a_key_of_its_own_and_a_set_one_is_kept(
    call: Any, serve: Any
) -> None:
    wire = serve(answer())
    caller = call()
    drawn = [caller.send(wire.url).key for _ in range(3)]
    assert len(set(drawn)) == 3
    assert caller.send(wire.url, headers={"Idempotency-Key": '"mine"'}).key == '"mine"'
    assert wire.seen[-1].key == '"mine"'
    with pytest.raises(InvalidKey):
        caller.send(wire.url, headers={"Idempotency-Key": "two words"})


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "PUT", "DELETE"])
def test_idempotent_methods_are_retried_without_a_key(call: Any, serve: Any, method: str) -> None:
    wire = serve(SWALLOW, answer(503), answer(200))
    got = call().send(wire.url, method=method, body=None if method == "GET" else b"x")
    assert (got.status, got.key, len(wire.seen)) == (200, None, 3)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_without_keys_other_methods_are_sent_once(call: Any, serve: Any, method: str) -> None:
    wire = serve(answer(503), answer(201))
    got = call(keys=None).send(wire.url, method=method)
    assert (got.status, got.key, len(wire.seen)) == (503, None, 1)


def test_a_key_makes_any_method_one_that_may_be_unsettled(call: Any, serve: Any) -> None:
    wire = serve(SWALLOW)
    with pytest.raises(Unsettled, match="under the key mine"):
        call(retry=Retry(attempts=2)).send(
            wire.url, method="DELETE", headers={"Idempotency-Key": "mine"}
        )


def test_what_stays_unknown_says_so_and_is_resumed_under_the_same_key(
    call: Any, serve: Any, journal: Journal
) -> None:
    wire = serve(SWALLOW, SWALLOW, answer(401), SWALLOW, answer())
    caller = call(journal=journal, retry=Retry(attempts=2))
    with pytest.raises(Unsettled) as told:
        caller.send(wire.url, body=b"5", headers={"X-Order": "o1", "Authorization": "secret"})
    unknown = told.value
    assert (unknown.method, unknown.url, unknown.journaled) == ("POST", wire.url, True)
    assert (len(unknown.tries), unknown.response) == (2, None)
    (left,) = journal.unfinished()
    assert left.key == unknown.key

    (refused,) = caller.resume(journal)  # 401: nothing was said of what came before
    assert isinstance(refused.error, Unsettled)
    assert refused.error.response is not None
    assert [one.key for one in journal.unfinished()] == [unknown.key]

    (settled,) = caller.resume(journal)
    assert (settled.response.status_code, settled.request.key) == (201, unknown.key)
    assert journal.unfinished() == []
    assert caller.resume(journal) == []
    assert {(seen.key, seen.body, seen.headers["x-order"]) for seen in wire.seen} == {
        (unknown.key, b"5", "o1")
    }
    assert ["authorization" in seen.headers for seen in wire.seen] == [True] * 2 + [False] * 3


def test_credentials_are_journaled_where_it_is_asked_for(
    call: Any, serve: Any, tmp_path: Path
) -> None:
    wire = serve(SWALLOW, answer())
    path = tmp_path / "with.journal"
    with Journal(path, keep_credentials=True) as journal:
        caller = call(journal=journal, retry=Retry(attempts=1))
        with pytest.raises(Unsettled):
            caller.send(wire.url, headers={"Authorization": "Bearer alice"})
        assert b"Bearer alice" in path.read_bytes()
        caller.resume(journal)
    assert [seen.headers["authorization"] for seen in wire.seen] == ["Bearer alice"] * 2


def test_what_never_got_through_is_no_unknown_and_nothing_is_left(
    call: Any, journal: Journal
) -> None:
    caller = call(journal=journal, retry=Retry(attempts=3))
    with pytest.raises((httpx.ConnectError, requests.ConnectionError)):
        caller.send(nobody())
    assert (len(caller.slept), journal.unfinished()) == (2, [])


def test_a_refusal_is_handed_over_and_settles(call: Any, serve: Any, journal: Journal) -> None:
    wire = serve(problem(422, "key-reused"))
    assert call(journal=journal).send(wire.url).status == 422
    assert (len(wire.seen), journal.unfinished()) == (1, [])


def test_a_parked_request_is_unsettled_with_the_answer_that_says_so(
    call: Any, serve: Any, journal: Journal
) -> None:
    wire = serve(problem(409, "outcome-unknown"))
    with pytest.raises(Unsettled) as told:
        call(journal=journal).send(wire.url)
    assert told.value.response.status_code == 409  # type: ignore[attr-defined]
    assert len(journal.unfinished()) == len(wire.seen) == 1


def test_the_same_request_under_its_key_settles_it_too(
    call: Any, serve: Any, journal: Journal
) -> None:
    wire = serve(SWALLOW, answer())
    caller = call(journal=journal, retry=Retry(attempts=1))
    with pytest.raises(Unsettled) as told:
        caller.send(wire.url)
    key = {"Idempotency-Key": told.value.key}
    with pytest.raises(JournalError, match="with another request"):
        caller.send(wire.url, body=b"another", headers=key)
    assert caller.send(wire.url, headers=key).status == 201
    assert journal.unfinished() == []


def test_where_the_journal_cannot_be_written_nothing_is_sent(
    call: Any, serve: Any, journal: Journal
) -> None:
    wire = serve(answer())
    journal.close()
    with pytest.raises(JournalError, match="nothing was sent"):
        call(journal=journal).send(wire.url)
    assert wire.seen == []


def test_a_client_without_the_journal_cannot_resume_it(
    call: Any, serve: Any, journal: Journal
) -> None:
    wire = serve(SWALLOW, answer())
    with pytest.raises(Unsettled):
        call(journal=journal, retry=Retry(attempts=1)).send(wire.url)
    with pytest.raises(JournalError, match="does not go through this journal"):
        call().resume(journal)
    assert len(journal.unfinished()) == 1


def test_a_body_that_can_be_read_once_is_held_for_the_next_attempt(call: Any, serve: Any) -> None:
    wire = serve(SWALLOW, answer())
    call().send(wire.url, body=iter([b"a" * 10, b"b" * 10]))
    assert [seen.body for seen in wire.seen] == [b"a" * 10 + b"b" * 10] * 2
    assert "transfer-encoding" not in wire.seen[0].headers


@pytest.mark.parametrize("body", [b"x" * 101, [b"x" * 60, b"x" * 60]])
def test_a_body_too_long_to_hold_is_refused_before_anything_is_sent(
    call: Any, serve: Any, body: Any
) -> None:
    wire = serve(answer())
    caller = call(retry=Retry(max_body=100))
    with pytest.raises(RequestTooLarge, match="max_body"):
        caller.send(wire.url, body=body if isinstance(body, bytes) else iter(body))
    assert wire.seen == []


def test_the_budget_is_shared_by_the_requests_of_a_client(call: Any, serve: Any) -> None:
    wire = serve(answer(503))
    caller = call(budget=Budget(0.0, 3))
    for _ in range(4):
        with pytest.raises(Unsettled):
            caller.send(wire.url)
    assert len(wire.seen) == 4 + 3


def test_retry_after_is_waited(call: Any, serve: Any) -> None:
    wire = serve(answer(429, b"slow down", "Retry-After: 7"), answer())
    caller = call(jitter=lambda: 0.5)
    caller.send(wire.url)
    assert caller.slept == [7.1]


def test_an_answer_that_drips_past_the_deadline_is_cut(call: Any, serve: Any) -> None:
    wire = serve(answer())
    now = iter(range(0, 1000, 4))  # each look at the clock is 4 s after the last
    caller = call(clock=lambda: float(next(now)), retry=Retry(deadline=6))
    with pytest.raises(Unsettled, match="deadline passed"):
        caller.send(wire.url)


def test_events_are_handed_over_as_they_come(serve: Any, journal: Journal) -> None:
    events = b"HTTP/1.1 200 x\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"
    wire = serve(events)
    with (
        httpx.Client(transport=RetryTransport(journal=journal)) as client,
        client.stream("POST", wire.url) as response,
    ):
        assert not response.is_stream_consumed
        assert journal.unfinished() == []
        assert response.read() == b"data: 1\n\n"


async def test_a_cancelled_request_is_unfinished(journal: Journal) -> None:
    reached = asyncio.Event()

    class Hangs(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            reached.set()
            await asyncio.Event().wait()
            raise AssertionError

    transport = AsyncRetryTransport(Hangs(), journal=journal)
    async with httpx.AsyncClient(transport=transport) as client:
        task = asyncio.create_task(client.post("http://shop.example/charges"))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(journal.unfinished()) == 1


async def test_a_request_cancelled_while_it_is_journaled_is_not_held_for_ever(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, leave = threading.Event(), threading.Event()
    begin = journal.begin

    def slow(request: Any) -> bool:
        entered.set()
        assert leave.wait(10)
        return begin(request)

    monkeypatch.setattr(journal, "begin", slow)
    transport = AsyncRetryTransport(httpx.AsyncHTTPTransport(), journal=journal)
    async with httpx.AsyncClient(transport=transport) as client:
        task = asyncio.create_task(client.post(nobody()))
        await asyncio.to_thread(entered.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with asyncio.timeout(10):
        while not journal.unfinished():  # noqa: ASYNC110  # a thread ends, which tells nobody
            await asyncio.sleep(0.01)


@pytest.fixture
def issuing() -> Any:
    """A real server that takes only keys that it issued."""
    asked: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(dict(scope["headers"])[b"idempotency-key"].decode())
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"charged"})

    idempotency = Idempotency(
        MemoryStore(), issuer=Issuer(bytes(range(32))), policy=Policy(required="issued")
    )
    with asgi_server(ASGIMiddleware(app, idempotency=idempotency)) as port:
        yield f"http://127.0.0.1:{port}", asked


def test_keys_come_from_a_pool_that_is_filled_as_the_caller(call: Any, issuing: Any) -> None:
    url, asked = issuing
    caller = call(keys=KeyPool(f"{url}/idempotency-keys", count=4, low=1))
    for _ in range(10):
        got = caller.send(f"{url}/charges", headers={"Authorization": "Bearer alice"})
        assert (got.status, got.key[:3]) == (201, "ik.")
    assert len(set(asked)) == 10


def test_a_pool_that_gets_no_keys_says_so_and_nothing_is_sent(
    call: Any, serve: Any, journal: Journal
) -> None:
    wire = serve(answer(404, b"what keys?"))
    issuer = wire.url.replace("/charges", "/idempotency-keys")
    caller = call(keys=KeyPool(issuer), journal=journal)
    with pytest.raises(KeysNotIssued, match="404"):
        caller.send(wire.url)
    with pytest.raises(KeysNotIssued, match="no keys"):
        call(keys=KeyPool(nobody()), retry=Retry(attempts=2)).send(wire.url)
    assert [seen.path for seen in wire.seen] == ["/idempotency-keys"]
    assert journal.unfinished() == []


def test_a_malformed_request_leaves_nothing_in_the_journal(call: Any, journal: Journal) -> None:
    caller = call(journal=journal)
    with pytest.raises((httpx.UnsupportedProtocol, ValueError)):
        caller.send("shop://nowhere/charges")
    assert (caller.slept, journal.unfinished()) == ([], [])
