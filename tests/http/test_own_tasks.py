"""What an operation's own task has set is seen by the middleware around, and closed by it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)

from semel import ASGIMiddleware, Idempotency

SET_INSIDE: ContextVar[str] = ContextVar("set_inside", default="outside")
SET_OUTSIDE: ContextVar[str] = ContextVar("set_outside")
SCOPE: ContextVar[int] = ContextVar("scope")
_scopes = itertools.count()


class Around:
    """A middleware outside of Semel."""

    def __init__(self, app: Any, before: Any = None, after: Any = None) -> None:
        self.app = app
        self.before = before
        self.after = after

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.before is not None:
            await self.before()
        try:
            await self.app(scope, receive, send)
        finally:
            if self.after is not None:
                await self.after()


def served(app: Any, before: Any = None, after: Any = None) -> Around:
    return Around(ASGIMiddleware(app, Idempotency("memory://")), before, after)


async def post(app: Any, key: str | None = "k") -> int:
    headers = {"Idempotency-Key": key} if key is not None else {}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as http:
        return (await http.post("/", headers=headers)).status_code


async def respond(send: Any, status: int = 201) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("fails", [False, True])
def test_context_variables_that_are_set_inside_are_seen_outside(
    key: str | None, fails: bool
) -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert SET_OUTSIDE.get() == "by the middleware"
        SET_INSIDE.set("inside")
        await asyncio.sleep(0)
        if fails:
            raise ValueError
        await respond(send)

    async def before() -> None:
        SET_OUTSIDE.set("by the middleware")

    async def after() -> None:
        seen.append(SET_INSIDE.get())

    asyncio.run(post(served(app, before, after), key))
    assert seen == ["inside"]


def test_a_variable_that_was_set_back_is_as_before() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        token = SET_INSIDE.set("inside")
        await respond(send)
        SET_INSIDE.reset(token)

    async def after() -> None:
        seen.append(SET_INSIDE.get())

    asyncio.run(post(served(app, None, after)))
    assert seen == ["outside"]


# --- sessions by task ---------------------------------------------------------------------------


def by_task() -> Any:
    return asyncio.current_task()


def by_id() -> int:
    return id(asyncio.current_task())


def by_variable() -> int:
    return SCOPE.get()


SCOPES = [asyncio.current_task, by_task, by_id, by_variable]


def engine_of(tmp_path: Path) -> AsyncEngine:
    return create_async_engine(
        f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}",
        pool_size=3,
        max_overflow=0,
        pool_timeout=2,
    )


def checked_out(engine: AsyncEngine) -> int:
    return int(engine.pool.checkedout())  # type: ignore[attr-defined]


@pytest.mark.parametrize("scope_of", SCOPES)
def test_a_session_kept_by_task_is_removed_outside(
    scope_of: Callable[[], Any], tmp_path: Path
) -> None:
    async def main() -> list[int]:
        engine = engine_of(tmp_path)
        session = async_scoped_session(async_sessionmaker(engine), scopefunc=scope_of)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await session.execute(text("select 1"))
            await respond(send)

        async def before() -> None:
            SCOPE.set(next(_scopes))

        service = served(app, before, session.remove)
        told = [await post(service, f"k{n}") for n in range(8)]
        assert checked_out(engine) == 0
        assert not session.registry.registry
        await engine.dispose()
        return told

    assert asyncio.run(main()) == [201] * 8


@pytest.mark.parametrize("scope_of", SCOPES[:3])
def test_a_session_that_the_middleware_has_opened_is_that_of_the_handler(
    scope_of: Callable[[], Any], tmp_path: Path
) -> None:
    async def main() -> None:
        engine = engine_of(tmp_path)
        session = async_scoped_session(async_sessionmaker(engine), scopefunc=scope_of)
        opened: list[Any] = []
        used: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            used.append(session())
            await respond(send)

        async def before() -> None:
            opened.append(session())
            await session.execute(text("select 1"))

        assert await post(served(app, before, session.remove)) == 201
        assert opened == used
        assert checked_out(engine) == 0
        assert not session.registry.registry
        await engine.dispose()

    asyncio.run(main())


def test_what_was_removed_inside_is_gone_outside(tmp_path: Path) -> None:
    async def main() -> None:
        engine = engine_of(tmp_path)
        session = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
        left: list[bool] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await session.remove()
            await respond(send)

        async def before() -> None:
            await session.execute(text("select 1"))

        async def after() -> None:
            left.append(session.registry.has())

        assert await post(served(app, before, after)) == 201
        assert left == [False]
        assert checked_out(engine) == 0
        await engine.dispose()

    asyncio.run(main())


@pytest.mark.parametrize("opened_outside", [False, True])
def test_where_the_client_has_gone_the_operation_closes_it_itself(
    opened_outside: bool, tmp_path: Path
) -> None:
    async def main() -> None:
        engine = engine_of(tmp_path)
        session = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
        entered, goes_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await session.execute(text("select 1"))
            mine = session()
            entered.set()
            await goes_on.wait()
            assert mine.in_transaction()  # nobody has closed it meanwhile
            assert session() is mine
            await respond(send)
            done.set()

        async def before() -> None:
            if opened_outside:
                await session.execute(text("select 1"))

        service = served(app, before, session.remove)
        request = asyncio.create_task(post(service))
        await entered.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        goes_on.set()
        await asyncio.wait_for(done.wait(), 10)
        for _ in range(200):
            if not checked_out(engine):
                break
            await asyncio.sleep(0.01)
        assert checked_out(engine) == 0
        assert not session.registry.registry
        assert await post(service) == 201  # the replay
        await engine.dispose()

    asyncio.run(main())
