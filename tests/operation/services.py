"""Services of each store, whose handlers run on an event loop, beside it, and on plain threads.

`LEDGER` is their business table; what is in it is read past Semel.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psycopg
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from werkzeug.test import Client as WSGIClient

from semel import (
    ASGIMiddleware,
    Idempotency,
    Policy,
    WSGIMiddleware,
    current_async_operation,
    current_operation,
)
from semel.stores import Store
from semel.stores.postgres import PostgreSQLStore
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.stores.sqlite import SQLiteStore
from tests import servers

LEDGER = "create table ledger (what text)"
INSERT = "insert into ledger values ('written')"
_numbers = itertools.count()


class Told(NamedTuple):
    """What a client was told."""

    status: int
    body: str
    replayed: bool


class Database(NamedTuple):
    """A store, and a look at what is in its database."""

    store: Store
    rows: Callable[[], int]
    write: Callable[[Any], Any]
    """Writes a row through the operation; gives an awaitable where that is async."""


def sqlite(folder: Path) -> Database:
    path = folder / f"shop{next(_numbers)}.db"
    _lite(path, LEDGER)
    return Database(SQLiteStore(path, timeout=5), lambda: _lite(path, _COUNT), _through_connection)


def postgresql(folder: Path) -> Database:
    url = servers.postgresql().database(f"op{os.getpid()}_{next(_numbers)}")
    _sql(url, LEDGER)
    store = PostgreSQLStore(url, pool_size=4, timeout=5)
    return Database(store, lambda: _sql(url, _COUNT), _through_connection)


def sqlalchemy_sync(folder: Path) -> Database:
    path = folder / f"shop{next(_numbers)}.db"
    _lite(path, LEDGER)
    engine = create_engine(f"sqlite:///{path}", pool_size=4, max_overflow=0, pool_timeout=5)
    return Database(SQLAlchemyStore(engine), lambda: _lite(path, _COUNT), _through_session)


def sqlalchemy_async(folder: Path) -> Database:
    url = servers.postgresql().database(f"op{os.getpid()}_{next(_numbers)}")
    _sql(url, LEDGER)
    engine = create_async_engine(
        url.replace("postgresql:", "postgresql+asyncpg:"),
        pool_size=4,
        max_overflow=0,
        pool_timeout=5,
    )
    return Database(SQLAlchemyStore(engine), lambda: _sql(url, _COUNT), _through_session)


_COUNT = "select count(*) from ledger"


def _lite(path: Path, statement: str) -> int:
    connection = sqlite3.connect(path)
    try:
        found = connection.execute(statement).fetchall()
        connection.commit()
    finally:
        connection.close()
    return int(found[0][0]) if found else 0


def _sql(url: str, statement: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return int(cursor.fetchall()[0][0]) if cursor.description else 0


def _through_connection(op: Any) -> Any:
    return _then(op.connection(), lambda db: db.execute(INSERT))


def _through_session(op: Any) -> Any:
    return _then(op.session(), lambda db: db.execute(text(INSERT)))


def _then(had: Any, use: Callable[[Any], Any]) -> Any:
    if not inspect.isawaitable(had):
        return use(had)

    async def later() -> Any:
        return await use(await had)

    return later()


class Service:
    """One application under a policy: `handle(op)` gives the status that it responds with."""

    def __init__(self, store: Store, kind: str, handle: Callable[[Any], Any], policy: Policy):
        self.idempotency = Idempotency(store, policy=policy, sweep_every=None)
        self.runs = 0
        self._handle = handle
        self._kind = kind
        self._runner = asyncio.Runner()
        self._asgi = ASGIMiddleware(self._on_loop, self.idempotency)
        self._wsgi = WSGIClient(WSGIMiddleware(self._on_thread, self.idempotency))

    async def _on_loop(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        self.runs += 1
        body = f"run {self.runs}".encode()
        if self._kind == "loop":
            status = await self._handle(current_async_operation())
        else:
            status = await asyncio.to_thread(lambda: self._handle(current_operation()))
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    def _on_thread(self, environ: Any, start_response: Any) -> list[bytes]:
        self.runs += 1
        body = f"run {self.runs}".encode()
        status = self._handle(current_operation())
        start_response(f"{status} Said", [("Content-Length", str(len(body)))])
        return [body]

    def post(self, key: str = "k") -> Told:
        headers = {"Idempotency-Key": key}
        if self._kind == "thread":
            answer = self._wsgi.post("/", headers=headers)
            told = answer.get_data(as_text=True)
            return Told(answer.status_code, told, "Idempotent-Replayed" in answer.headers)
        return self._runner.run(self.apost(key))

    async def apost(self, key: str = "k") -> Told:
        transport = httpx.ASGITransport(self._asgi, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as http:
            answer = await http.post("/", headers={"Idempotency-Key": key})
        return Told(answer.status_code, answer.text, "Idempotent-Replayed" in answer.headers)

    def run(self, coroutine: Any) -> Any:
        return self._runner.run(coroutine)

    def close(self) -> None:
        self.idempotency.stop()
        store = self.idempotency.store
        if isinstance(store, SQLAlchemyStore):
            self._runner.run(_dispose(store))
        self._runner.close()


async def _dispose(store: SQLAlchemyStore) -> None:
    await store.astop()
    disposed = store._engine.dispose()
    if inspect.isawaitable(disposed):
        await disposed


@contextmanager
def serving(
    database: Database, kind: str, handle: Callable[[Any], Any], **rules: Any
) -> Iterator[Service]:
    service = Service(database.store, kind, handle, Policy(**rules))
    try:
        yield service
    finally:
        service.close()
