"""A cancel at every await, and leases that outlive a handler that blocks."""

from __future__ import annotations

import asyncio
import sqlite3
import time
import types
from collections.abc import Coroutine, Generator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from semel import ASGIMiddleware, Idempotency, Policy, current_async_operation
from semel.core.commands import Answer, Complete, Lookup
from semel.core.engine import Refuse
from semel.core.keys import hash_key
from semel.core.problems import OUTCOME_UNRECORDED
from semel.core.record import Response, State
from semel.runtime.drivers import AsyncDriver, ThreadDriver


class Cut:
    """Runs a coroutine and cancels it as it waits for the n-th time."""

    def __init__(self, nth: int) -> None:
        self.nth = nth
        self.waits = 0
        self.cut = False

    @types.coroutine
    def run(self, coroutine: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
        value: Any = None
        while True:
            try:
                waited_for = coroutine.send(value)
            except StopIteration:
                return
            self.waits += 1
            if self.waits == self.nth:
                self.cut = True
                coroutine.throw(asyncio.CancelledError)
                raise AssertionError("a cancelled request went on")
            value = yield waited_for


class Service:
    """An application that counts its effects, in the key's database or beside it."""

    def __init__(self, path: Path | None, guarantee: Any = None) -> None:
        self.path = path
        self.plain_effects = 0
        if path is not None:
            with sqlite3.connect(path) as connection:
                connection.execute("create table if not exists charges (n)")
            connection.close()
        url = "memory://" if path is None else f"sqlite:///{path}?synchronous=normal"
        policy = Policy(guarantee=guarantee, lease=timedelta(milliseconds=300))
        self.idempotency = Idempotency(url, policy=policy, sweep_every=None)
        self.middleware = ASGIMiddleware(self.app, self.idempotency)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asyncio.sleep(0)
        if self.path is not None:
            db = await current_async_operation().connection()
            await asyncio.sleep(0.001)
            await db.execute("insert into charges values (1)")
        else:
            self.plain_effects += 1
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"charged"})

    def effects(self) -> int:
        if self.path is None:
            return self.plain_effects
        connection = sqlite3.connect(self.path)
        try:
            return int(connection.execute("select count(*) from charges").fetchone()[0])
        finally:
            connection.close()

    async def ask(self, key: bytes) -> tuple[int, bytes]:
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(0)
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            await asyncio.sleep(0)
            sent.append(message)

        headers = [(b"idempotency-key", key)]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        await self.middleware(scope, receive, send)
        return sent[0]["status"], sent[1]["body"]


def make(kind: str, tmp_path: Path) -> Service:
    return Service(tmp_path / "shop.db" if kind == "atomic" else None)


@pytest.mark.parametrize("kind", ["plain", "atomic"])
def test_a_request_cancelled_at_any_await_happens_once(kind: str, tmp_path: Path) -> None:
    service = make(kind, tmp_path)

    async def everywhere() -> int:
        nth = 0
        while True:
            nth += 1
            cut = Cut(nth)
            key = b"key-%d" % nth
            task = asyncio.ensure_future(_as_task(cut, service.ask(key)))
            await asyncio.gather(task, return_exceptions=True)
            before = nth - 1
            for _ in range(2):
                assert await service.ask(key) == (201, b"charged")
            assert service.effects() == before + 1, f"cancelled at await {nth}"
            if not cut.cut:
                return nth

    waits = asyncio.run(everywhere())
    service.idempotency.stop()
    assert waits >= 3


async def _as_task(cut: Cut, coroutine: Coroutine[Any, Any, Any]) -> None:
    await cut.run(coroutine)  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["plain", "atomic"])
def test_an_operation_cancelled_as_at_shutdown_is_all_or_nothing(kind: str, tmp_path: Path) -> None:
    """The operation's own task is cancelled, at each tick of the loop: like a crash, but tidy."""
    service = make(kind, tmp_path)

    async def everywhere() -> None:
        for ticks in range(14):
            key = b"shutdown-%d" % ticks
            before = service.effects()
            others = asyncio.all_tasks()
            request = asyncio.ensure_future(service.ask(key))
            for _ in range(ticks):
                await asyncio.sleep(0)
            for task in asyncio.all_tasks() - others - {request}:
                task.cancel()
            await asyncio.gather(request, return_exceptions=True)
            async with asyncio.timeout(20):
                answer = await service.ask(key)
            assert answer == (201, b"charged")
            made = service.effects() - before
            assert made == 1 if kind == "atomic" else made in (1, 2)

    asyncio.run(everywhere())
    service.idempotency.stop()


def test_a_lease_is_kept_while_the_handler_blocks_the_loop() -> None:
    idempotency = Idempotency("memory://", policy=Policy(lease=timedelta(milliseconds=150)))
    key = hash_key("anonymous", "k")
    leases: list[float] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(3):
            time.sleep(0.2)  # noqa: ASYNC251  # blocks the event loop, on purpose
            found: Any = idempotency.store.execute(Lookup(key))
            assert (found.record.state, found.record.attempt) == (State.IN_FLIGHT, 1)
            leases.append(found.record.lease_until - found.now)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        return

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"idempotency-key", b"k")]}
    asyncio.run(ASGIMiddleware(app, idempotency)(scope, receive, send))  # type: ignore[arg-type]
    idempotency.stop()
    assert min(leases) > 0, leases


def test_a_handler_can_see_that_it_has_lost_its_claim() -> None:
    idempotency = Idempotency("memory://", policy=Policy(lease=timedelta(milliseconds=60)))
    key = hash_key("anonymous", "k")
    seen: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        op = current_async_operation()
        seen.append(op.lost)
        table: Any = idempotency.store._table  # type: ignore[attr-defined]
        record = table.records[key]
        table.records[key] = record._replace(token=record.token + 1)  # somebody took over
        deadline = time.monotonic() + 10
        while not op.lost and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        seen.append(op.lost)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"idempotency-key", b"k")]}
    asyncio.run(ASGIMiddleware(app, idempotency)(scope, receive, send))  # type: ignore[arg-type]
    idempotency.stop()
    assert seen == [False, True]
    assert sent[0]["status"] == 503  # outcome-unrecorded: it ran, and somebody else may have too


async def test_what_was_cut_off_while_it_was_recorded_is_not_reported_recorded() -> None:
    """A loop that shuts down cancels the recording; the adapter then says that the app raised."""
    idempotency = Idempotency("memory://")
    idempotency.start()
    entered = asyncio.Event()

    async def never(command: Any) -> Any:
        if isinstance(command, Complete):
            entered.set()
            await asyncio.Event().wait()
        return idempotency.store.execute(command)

    idempotency.store.aexecute = never  # type: ignore[method-assign]
    driver = idempotency.operations.enter(
        AsyncDriver, bytes(16), Policy(), lambda algorithm: b"\x01"
    )
    assert isinstance(driver, AsyncDriver)
    assert await driver.begin() is None
    finishing = asyncio.create_task(driver.finish(Answer(Response(201, (), b""))))
    await entered.wait()
    finishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finishing
    outcome = await driver.finish(Answer(Response(500, (), b"")))
    assert outcome == Refuse(OUTCOME_UNRECORDED)
    idempotency.stop()


def test_what_an_answer_says_stands_beside_what_the_handler_has_said() -> None:
    driver = Idempotency("memory://").operations.enter(
        ThreadDriver, bytes(16), Policy(), lambda a: b"\x01"
    )
    assert isinstance(driver, ThreadDriver)
    driver.stepped = True
    noted = driver._with_notes(Answer(Response(500, (), b""), parked="why", released=True))
    assert (noted.parked, noted.released, noted.stepped) == ("why", True, True)
