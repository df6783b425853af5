"""FastAPI: which dependencies commit when the response is out, read from their source."""

from __future__ import annotations

import functools
import inspect
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from semel import Idempotency
from semel.core.policy import Policy
from semel.core.routes import Routes
from semel.web.fastapi import init_app, joined
from semel.web.fastapi.exits import late_commits

engine = create_engine("sqlite://")
Sessions = sessionmaker(engine)
AsyncSessions = async_sessionmaker(create_async_engine("sqlite+aiosqlite://"))


def commits_at_the_end() -> Iterator[Session]:
    with Sessions() as session:
        yield session
        session.commit()


def commits_in_else() -> Iterator[Session]:
    session = Sessions()
    try:
        yield session
    except Exception:
        session.rollback()
        raise
    else:
        session.commit()
    finally:
        session.close()


async def commits_asynchronously() -> AsyncIterator[AsyncSession]:
    async with AsyncSessions() as session:
        yield session
        await session.commit()


async def holds_a_transaction() -> AsyncIterator[AsyncSession]:
    async with AsyncSessions.begin() as session:
        yield session


def holds_two() -> Iterator[Session]:
    with Session(engine) as session, session.begin():
        yield session


@contextmanager
def session_scope() -> Iterator[Session]:
    session = Sessions()
    yield session
    session.commit()


@asynccontextmanager
async def async_scope() -> AsyncIterator[AsyncSession]:
    async with AsyncSessions() as session:
        yield session
        await session.commit()


def by_a_helper() -> Iterator[Session]:
    with session_scope() as session:
        yield session


async def by_an_async_helper() -> AsyncIterator[AsyncSession]:
    async with async_scope() as session:
        yield session


def finish(session: Session) -> None:
    session.commit()


def by_a_function() -> Iterator[Session]:
    session = Sessions()
    yield session
    finish(session)


def delegates() -> Iterator[Session]:
    yield from commits_at_the_end()


async def iterates() -> AsyncIterator[AsyncSession]:
    async for session in commits_asynchronously():
        yield session


class UnitOfWork:
    def __enter__(self) -> UnitOfWork:
        self.session = Sessions()
        return self

    def __exit__(self, *error: object) -> None:
        self.session.commit()


def by_a_class() -> Iterator[UnitOfWork]:
    with UnitOfWork() as work:
        yield work


class Database:
    def __call__(self) -> Iterator[Session]:
        session = Sessions()
        yield session
        session.commit()

    def session(self) -> Iterator[Session]:
        yield from self()


def of_a_driver() -> Iterator[sqlite3.Connection]:
    with sqlite3.connect(":memory:") as connection:
        yield connection


def takes_a_parameter(factory: Any) -> Iterator[Session]:
    session = factory()
    yield session
    session.commit()


def only_closes() -> Iterator[Session]:
    with Sessions() as session:
        yield session


def commits_before() -> Iterator[Session]:
    with Sessions() as session:
        session.commit()
        yield session
        session.rollback()


def closes_a_driver() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as connection:
        yield connection


def nested_function() -> Iterator[Callable[[Session], None]]:
    def later(session: Session) -> None:
        session.commit()

    yield later
    print("done")


def returns() -> Session:
    return Sessions()


def repository(db: Annotated[Session, Depends(commits_at_the_end)]) -> Session:
    return db


LATE = [
    commits_at_the_end,
    commits_in_else,
    commits_asynchronously,
    holds_a_transaction,
    holds_two,
    by_a_helper,
    by_an_async_helper,
    by_a_function,
    delegates,
    iterates,
    by_a_class,
    Database(),
    of_a_driver,
    functools.partial(takes_a_parameter, Sessions),
]
HARMLESS = [only_closes, commits_before, closes_a_driver, nested_function, returns]


def told(dependency: Any, policy: Policy | None = None) -> list[str]:
    app = FastAPI()

    @app.post("/things")
    async def make(db: object = Depends(dependency)) -> None: ...

    return late_commits(app, Routes(policy or Policy(), {}))


@pytest.mark.parametrize(
    "dependency", LATE, ids=lambda one: getattr(one, "__name__", type(one).__name__)
)
def test_a_commit_after_the_yield_is_told_of(dependency: Any) -> None:
    (sentence,) = told(dependency)
    assert sentence.startswith("POST /things: ")
    assert "joined(idempotency" in sentence


@pytest.mark.parametrize("dependency", HARMLESS, ids=lambda one: one.__name__)
def test_a_dependency_that_only_closes_is_not(dependency: Any) -> None:
    assert told(dependency) == []


def test_source_that_cannot_be_had_says_nothing() -> None:
    names: dict[str, Any] = {}
    exec("def made():\n    yield 1\n    session.commit()\n", names)
    assert told(names["made"]) == []


def test_a_joined_dependency_and_one_that_ends_with_its_handler_are_in_order() -> None:
    idempotency = Idempotency("memory://")
    assert told(joined(idempotency, commits_at_the_end)) == []
    if "scope" not in inspect.signature(Depends).parameters:
        return  # before FastAPI 0.121
    app = FastAPI()

    @app.post("/things")
    async def make(
        db: object = Depends(commits_at_the_end, scope="function"),
    ) -> None: ...

    assert late_commits(app, Routes(Policy(), {})) == []


def test_routers_mounts_and_nested_dependencies_are_looked_at_and_uncovered_routes_are_not() -> (
    None
):
    inner, router, app = FastAPI(), APIRouter(prefix="/shop"), FastAPI()

    @inner.post("/inside")
    async def inside(db: object = Depends(repository)) -> None: ...

    @router.post("/orders/{number}")
    async def order(number: int, db: object = Depends(repository)) -> None: ...

    @router.get("/orders")
    async def orders(db: object = Depends(repository)) -> None: ...

    @app.post("/left")
    async def left(db: object = Depends(repository)) -> None: ...

    app.include_router(router)
    app.mount("/mounted", inner)
    routes = Routes(Policy(), {"/left": None})
    assert [sentence.split(":")[0] for sentence in late_commits(app, routes)] == [
        "POST /shop/orders/{number}",
        "POST /mounted/inside",
    ]


def test_the_start_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()

    @app.post("/things")
    async def make(db: object = Depends(commits_at_the_end)) -> None: ...

    init_app(app, Idempotency(f"sqlite:///{tmp_path}/x.db"))
    with caplog.at_level(logging.WARNING, "semel"), TestClient(app):
        assert "test_exits.commits_at_the_end commits after its yield" in caplog.text
