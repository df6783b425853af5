"""Steps and parking through the real adapters, with a far side that counts its calls."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from flask import Flask

from semel import (
    ASGIMiddleware,
    Idempotency,
    NotDone,
    Policy,
    WSGIMiddleware,
    derive,
    hash_key,
)
from semel.codecs import typed
from semel.core.commands import Answer, Lookup, RunHandler, Steps
from semel.core.engine import Deliver, Life
from semel.core.record import Response, State
from semel.operation import AsyncOperation, Operation
from semel.runtime.drivers import AsyncDriver, ThreadDriver
from semel.stores.memory import MemoryStore
from semel.stores.postgres import PostgreSQLStore
from semel.stores.sqlite import SQLiteStore
from semel.web.fastapi import AsyncOp
from semel.web.flask import operation as flask_operation
from tests import servers

AsyncOp = AsyncOp
KEY = {"Idempotency-Key": "k"}


class FarSide:
    """A system that does each derived key's work once, and counts how often it is asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.done: dict[str, int] = {}
        self.answers_lost = 0

    def charge(self, derived: str) -> dict[str, int]:
        self.calls.append(derived)
        self.done.setdefault(derived, len(self.done) + 1)
        if self.answers_lost:
            self.answers_lost -= 1
            raise TimeoutError("no answer from the far side")
        return {"charge": self.done[derived]}


class Shop:
    """One application, whichever framework it is written in."""

    def __init__(self, kind: str, idempotency: Idempotency) -> None:
        self.far = FarSide()
        self.fails_after = 0
        self.on_unknown: Any = "rerun"
        self.park_reason: str | None = None
        self.call: Callable[[str], Any] = self.far.charge
        self.codec: Any = None
        self._kind = kind
        self._fastapi = FastAPI()
        self._flask = Flask("shop")
        if kind == "fastapi":
            self._fastapi.add_middleware(ASGIMiddleware, idempotency=idempotency)
            self._fastapi.post("/charges", status_code=201)(self._on_loop)
        else:
            self._flask.wsgi_app = WSGIMiddleware(self._flask.wsgi_app, idempotency)  # type: ignore[method-assign]
            self._flask.post("/charges")(self._on_thread)

    async def _on_loop(self, op: AsyncOp) -> Any:
        more = {"codec": self.codec} if self.codec else {}
        told = await op.step("charge", self.call, on_unknown=self.on_unknown, **more)
        self._afterwards(op)
        return told

    def _on_thread(self) -> Any:
        op = flask_operation()
        more = {"codec": self.codec} if self.codec else {}
        told = op.step("charge", self.call, on_unknown=self.on_unknown, **more)
        self._afterwards(op)
        return told, 201

    def _afterwards(self, op: Any) -> None:
        if self.fails_after:
            self.fails_after -= 1
            raise ValueError("after the step")
        if self.park_reason:
            op.park(self.park_reason)

    def post(self) -> Any:
        if self._kind == "flask":
            answer = self._flask.test_client().post("/charges", headers=KEY)
            return answer.status_code, answer.get_json(silent=True)

        async def ask() -> Any:
            transport = httpx.ASGITransport(app=self._fastapi, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://shop") as http:
                answer = await http.post("/charges", headers=KEY)
            is_json = "json" in answer.headers["content-type"]
            return answer.status_code, answer.json() if is_json else None

        return asyncio.run(ask())


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made: Any = MemoryStore()
    if request.param == "sqlite":
        made = SQLiteStore(tmp_path / "shop.db")
    elif request.param == "postgresql":
        name = f"steps_{os.getpid()}_{tmp_path.name}".lower()[:60]
        made = PostgreSQLStore(servers.postgresql().database(name))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def idempotency(store: Any) -> Idempotency:
    return Idempotency(store, scope=lambda request: "me", sweep_every=None)


@pytest.fixture(params=["fastapi", "flask"])
def shop(request: pytest.FixtureRequest, idempotency: Idempotency) -> Shop:
    return Shop(request.param, idempotency)


NAME = hash_key("me", "k")


def test_a_recorded_step_is_not_called_again(shop: Shop, store: Any) -> None:
    shop.fails_after = 2
    assert [shop.post()[0] for _ in range(3)] == [500, 500, 201]
    assert shop.far.calls == [derive(NAME, "charge")]
    assert shop.post() == (201, {"charge": 1})


def test_the_result_is_recorded_before_the_handler_goes_on(shop: Shop, store: Any) -> None:
    shop.fails_after = 1
    shop.post()
    assert store.execute(Steps(NAME)) == {"charge": b'{"charge":1}'}


def test_a_call_without_an_answer_is_made_again_under_the_same_key(shop: Shop) -> None:
    shop.far.answers_lost = 2
    assert [shop.post()[0] for _ in range(3)] == [500, 500, 201]
    assert len(shop.far.calls) == 3
    assert shop.far.done == {derive(NAME, "charge"): 1}


def test_a_far_side_without_keys_is_never_asked_twice(
    shop: Shop, store: Any, idempotency: Idempotency
) -> None:
    shop.on_unknown = "park"
    shop.far.answers_lost = 1
    assert shop.post()[0] == 500
    status, problem = shop.post()
    assert (status, problem["type"].rsplit("/", 1)[1]) == (409, "outcome-unknown")
    assert problem["reference"] == NAME[:6].hex()
    assert shop.post()[0] == 409
    assert len(shop.far.calls) == 1
    record = store.execute(Lookup(NAME)).record
    assert (record.state, record.reason) == (
        State.PARKED,
        "step 'charge' was begun and never ended",
    )
    # Somebody has looked it up: it was not done.
    assert idempotency.settle(NAME) is True
    assert shop.post() == (201, {"charge": 1})
    assert len(shop.far.calls) == 2


def test_a_parked_operation_is_settled_with_its_answer(
    shop: Shop, idempotency: Idempotency
) -> None:
    shop.park_reason = "the books do not balance"
    assert shop.post()[0] == 409
    answer = Response(200, ((b"content-type", b"application/json"),), b'{"settled":true}')
    assert idempotency.settle(NAME, answer) is True
    assert shop.post() == (200, {"settled": True})
    assert idempotency.settle(NAME) is False


@pytest.mark.parametrize("happened", [True, False])
def test_a_probe_settles_what_is_unknown(shop: Shop, happened: bool) -> None:
    probed: list[str] = []

    def probe(derived: str) -> dict[str, int]:
        probed.append(derived)
        if not happened:
            raise NotDone
        return {"charge": shop.far.done[derived]}

    shop.on_unknown = probe
    shop.far.answers_lost = 1
    assert shop.post()[0] == 500
    assert probed == []
    assert shop.post() == (201, {"charge": 1})
    assert probed == [derive(NAME, "charge")]
    assert len(shop.far.calls) == (1 if happened else 2)


def test_a_probe_that_fails_parks(shop: Shop) -> None:
    def probe(derived: str) -> None:
        raise ConnectionError("the far side is down")

    shop.on_unknown = probe
    shop.far.answers_lost = 1
    assert shop.post()[0] == 500
    assert shop.post()[0] == 409
    assert len(shop.far.calls) == 1


def test_a_definite_no_is_asked_again(shop: Shop) -> None:
    refused: list[str] = []

    def call(derived: str) -> Any:
        if not refused:
            refused.append(derived)
            raise NotDone("declined")
        return shop.far.charge(derived)

    shop.call = call
    shop.on_unknown = "park"
    assert shop.post()[0] == 500
    assert shop.post()[0] == 201


class Unspeakable:
    def __str__(self) -> str:
        raise ValueError("no text either")

    __repr__ = __str__


class Unreadable:
    """A codec that can write and not read."""

    def encode(self, value: Any) -> bytes:
        return b"written"

    def decode(self, data: bytes) -> Any:
        raise KeyError(data)


def circle() -> list[Any]:
    turning: list[Any] = []
    turning.append(turning)
    return turning


WITHOUT_A_FORM = {
    "set": lambda: {1, 2},
    "nan": lambda: float("nan"),
    "lone surrogate": lambda: "\ud800",
    "lock": threading.Lock,
    "generator": lambda: (n for n in range(3)),
    "circle": circle,
    "no text": Unspeakable,
}


@pytest.mark.parametrize("made", WITHOUT_A_FORM.values(), ids=WITHOUT_A_FORM)
def test_a_result_without_a_form_is_not_asked_for_again(
    shop: Shop, made: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    results: list[Any] = []
    shop.call = lambda derived: results.append(made()) or results[-1]
    shop.fails_after = 1
    assert shop.post()[0] == 500
    assert "step 'charge': the result is not kept" in caplog.text
    assert shop.fails_after == 0  # it had the result
    assert [shop.post()[0] for _ in range(2)] == [500, 500]
    assert len(results) == 1


def test_a_result_that_cannot_be_read_is_not_asked_for_again(shop: Shop) -> None:
    shop.codec = Unreadable()
    assert [shop.post()[0] for _ in range(3)] == [500] * 3
    assert len(shop.far.calls) == 1


def test_its_own_attempt_has_a_result_without_a_form(shop: Shop) -> None:
    seen: list[Any] = []

    class Watched(Unreadable):
        def encode(self, value: Any) -> bytes:
            seen.append(value)
            raise RuntimeError("whatever a codec raises")

    shop.codec = Watched()
    assert shop.post() == (201, {"charge": 1})
    assert seen == [{"charge": 1}]


def test_a_typed_result(shop: Shop) -> None:
    shop.codec = typed(dict[str, int])
    assert shop.post() == (201, {"charge": 1})


async def test_an_async_call_is_awaited(idempotency: Idempotency) -> None:
    app = FastAPI()
    app.add_middleware(ASGIMiddleware, idempotency=idempotency)

    async def far(derived: str) -> str:
        await asyncio.sleep(0)
        return derived

    @app.post("/charges", status_code=201)
    async def charge(op: AsyncOp) -> list[str]:
        return list(await asyncio.gather(op.step("one", far), op.step("two", far)))

    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as http:
        answer = await http.post("/charges", headers=KEY)
    assert answer.json() == [derive(NAME, "one"), derive(NAME, "two")]


def told_to_the_engine(answers: list[Answer]) -> Life:
    answers.append((yield RunHandler(1, 1)))
    return Deliver(kept=False)


@pytest.mark.parametrize("steps", [0, 1])
def test_the_engine_is_told_whether_steps_were_taken(steps: int) -> None:
    answers: list[Answer] = []
    runtime, name = Idempotency(MemoryStore()).runtime, hash_key("scope", "k")
    driver = ThreadDriver(runtime, told_to_the_engine(answers), name, Policy())
    driver.begin()
    for number in range(steps):
        Operation(driver).step(f"step {number}", len)
    driver.finish(Answer(Response(200, (), None)))
    assert [answer.stepped for answer in answers] == [bool(steps)]


@pytest.mark.parametrize("steps", [0, 1])
async def test_it_is_told_on_an_event_loop_too(steps: int) -> None:
    answers: list[Answer] = []
    runtime, name = Idempotency(MemoryStore()).runtime, hash_key("scope", "k")
    driver = AsyncDriver(runtime, told_to_the_engine(answers), name, Policy())
    await driver.begin()
    for number in range(steps):
        await AsyncOperation(driver).step(f"step {number}", len)
    await driver.finish(Answer(Response(200, (), None)))
    assert [answer.stepped for answer in answers] == [bool(steps)]


def test_a_wrong_choice_is_told(shop: Shop) -> None:
    shop.on_unknown = "ignore"
    assert shop.post()[0] == 500
    assert shop.far.calls == []


def test_an_operation_that_takes_its_process_down_is_parked(
    store: Any, idempotency: Idempotency
) -> None:
    """The claim of a dead process is taken over so often, and no more (L3)."""
    from semel.core.commands import Claim, Claimed, Takeover
    from semel.core.engine import Refuse, Request, run

    policy = Policy(max_attempts=3)
    claimed = store.execute(Claim(NAME, b"\x01f", 0.0, b"dead"))
    for attempt in (2, 3):
        claimed = store.execute(
            Takeover(NAME, claimed.token, b"\x01f", 0.0, b"dead", expired=False)
        )
        assert claimed == Claimed(claimed.token, attempt)
    life = run(Request(NAME, b"me", lambda algorithm: b"\x01f"), policy)
    value: Any = None
    try:
        while True:
            command = life.send(value)
            value = store.execute(command)
    except StopIteration as end:
        assert isinstance(end.value, Refuse)
        assert end.value.problem.slug == "outcome-unknown"
    assert store.execute(Lookup(NAME)).record.reason == "3 processes have ended while they ran it"


def test_a_name_that_cannot_be_recorded_is_refused_before_the_call() -> None:
    calls: list[str] = []
    runtime = Idempotency(MemoryStore()).runtime
    driver = ThreadDriver(runtime, told_to_the_engine([]), hash_key("scope", "k"), Policy())
    driver.begin()
    with pytest.raises(ValueError, match="512 bytes"):
        Operation(driver).step("é" * 257, calls.append)
    assert Operation(driver).step("é" * 256, len) == len(derive(driver.key, "é" * 256))
    assert calls == []
