"""A service of documents with all its methods, on FastAPI and Flask, on SQLite and PostgreSQL.

Every write is guarded the same way: read (and lock, on PostgreSQL), ask the preconditions, then one
statement that finds no row where another was faster. `pauses` lets a test stop a handler between
the check and the write.
"""

from __future__ import annotations

import contextlib
import inspect
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Any

import psycopg
from fastapi import Depends, FastAPI, Request
from flask import Flask
from flask import request as flask_request

from semel import Idempotency
from semel.web import fastapi as for_fastapi
from semel.web import flask as for_flask
from semel.web.conditional import (
    Preconditions,
    delete_answer,
    get_answer,
    patch_answer,
    put_answer,
    version_etag,
)

TABLES = {
    "sqlite": "create table documents (name text primary key, content text,"
    " born text default (lower(hex(randomblob(8)))), version integer default 1)",
    "postgresql": "create table documents (name text primary key, content text,"
    " born uuid default gen_random_uuid(), version integer default 1)",
}
SELECT = "select born, version, content from documents where name = ?"
UPSERT = """
    insert into documents (name, content) values (?, ?)
    on conflict (name) do update set content = excluded.content, version = documents.version + 1
    where ? or documents.version = ?
    returning born, version
"""
APPEND = """
    update documents set content = content || ?, version = version + 1
    where name = ? and version = ? returning born, version
"""
DELETE = "delete from documents where name = ?"
TEXT = {"Content-Type": "text/plain", "Cache-Control": "private"}

Op = for_fastapi.AsyncOp
When = Annotated[Preconditions, Depends(for_fastapi.preconditions)]
Pause = Callable[[Request], Awaitable[None]]


class Statements:
    """The statements as the database wants them written."""

    def __init__(self, url: str) -> None:
        self.kind = url.partition(":")[0]
        locked = SELECT + (" for update" if self.kind == "postgresql" else "")
        self.select, self.read, self.upsert, self.append, self.delete = (
            text.replace("?", "?" if self.kind == "sqlite" else "%s")
            for text in (locked, SELECT, UPSERT, APPEND, DELETE)
        )


@contextlib.contextmanager
def database(url: str) -> Iterator[Any]:
    """A connection of one's own, each statement by itself."""
    if url.startswith("sqlite"):
        own: Any = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=20, isolation_level=None)
    else:
        own = psycopg.connect(url, autocommit=True)
    try:
        yield own
    finally:
        own.close()


async def first_row(cursor: Any) -> Any:
    row = cursor.fetchone()
    return await row if inspect.isawaitable(row) else row


def tag(row: Any) -> str | None:
    return version_etag(str(row[0]), row[1]) if row else None


def make_fastapi(url: str, pause: Pause | None = None) -> FastAPI:
    app = FastAPI()
    idempotency = Idempotency(url)
    said = Statements(url)

    async def checked(request: Request) -> None:
        if pause is not None:
            await pause(request)

    @app.put("/documents/{name}")
    @idempotency.route(guarantee="atomic")
    async def put(name: str, request: Request, op: Op, when: When, must: bool = False) -> Any:
        content = (await request.body()).decode()
        db = await op.connection()
        seen = await first_row(await db.execute(said.select, (name,)))
        when.require(tag(seen), require_match=must)
        await checked(request)
        version = seen[1] if seen else None
        row = await first_row(
            await db.execute(said.upsert, (name, content, not when.given, version))
        )
        if row is None:
            when.overtaken()
        created = row[1] == 1
        return for_fastapi.respond(
            put_answer(
                created=created,
                location=f"/documents/{name}",
                body=b"created" if created else b"replaced",
                etag=tag(row),
                as_sent=True,
            )
        )

    @app.patch("/documents/{name}")
    @idempotency.route(guarantee="atomic")
    async def patch(name: str, request: Request, op: Op, when: When) -> Any:
        db = await op.connection()
        seen = await first_row(await db.execute(said.select, (name,)))
        if seen is None:
            return for_fastapi.respond(delete_answer(existed=False, when_missing=404))
        when.require(tag(seen), require_match=True)
        await checked(request)
        content = (await request.body()).decode()
        row = await first_row(await db.execute(said.append, (content, name, seen[1])))
        if row is None:
            when.overtaken()
        return for_fastapi.respond(patch_answer(etag=tag(row)))

    @app.delete("/documents/{name}")
    @idempotency.route(guarantee="atomic")
    async def delete(name: str, request: Request, op: Op, when: When, strict: bool = False) -> Any:
        db = await op.connection()
        seen = await first_row(await db.execute(said.select, (name,)))
        if seen is not None:
            when.require(tag(seen))
            await checked(request)
            await db.execute(said.delete, (name,))
        return for_fastapi.respond(
            delete_answer(existed=seen is not None, when_missing=404 if strict else 204)
        )

    @app.get("/documents/{name}")
    @app.head("/documents/{name}")
    def get(name: str, when: When) -> Any:
        with database(url) as db:
            row = db.execute(said.read, (name,)).fetchone()
        if row is None:
            return for_fastapi.respond(delete_answer(existed=False, when_missing=404))
        return for_fastapi.respond(get_answer(when, row[2].encode(), etag=tag(row), headers=TEXT))

    @app.put("/plain/{name}")
    @idempotency.route()
    async def plain(name: str, request: Request, when: When, naive: bool = False) -> Any:
        """Takes no operation, so it can be asked without a key. `naive` forgets the guard."""
        content = (await request.body()).decode()
        with database(url) as db:
            seen = db.execute(said.read, (name,)).fetchone()
            when.require(tag(seen))
            await checked(request)
            free = naive or not when.given
            version = seen[1] if seen else None
            row = db.execute(said.upsert, (name, content, free, version)).fetchone()
        if row is None:
            when.overtaken()
        return for_fastapi.respond(put_answer(created=row[1] == 1, etag=tag(row), as_sent=True))

    for_fastapi.init_app(app, idempotency)
    return app


def make_flask(url: str) -> Flask:
    app = Flask(__name__)
    idempotency = Idempotency(url)
    said = Statements(url)
    preconditions, respond = for_flask.preconditions, for_flask.respond

    @app.put("/documents/<name>")
    @idempotency.route(guarantee="atomic")
    def put(name: str) -> Any:
        when = preconditions()
        db = for_flask.operation().connection()
        seen = db.execute(said.select, (name,)).fetchone()
        when.require(tag(seen), require_match="must" in flask_request.args)
        version = seen[1] if seen else None
        values = (name, flask_request.get_data(as_text=True), not when.given, version)
        row = db.execute(said.upsert, values).fetchone()
        if row is None:
            when.overtaken()
        created = row[1] == 1
        return respond(
            put_answer(
                created=created,
                location=f"/documents/{name}",
                body=b"created" if created else b"replaced",
                etag=tag(row),
                as_sent=True,
            )
        )

    @app.patch("/documents/<name>")
    @idempotency.route(guarantee="atomic")
    def patch(name: str) -> Any:
        when = preconditions()
        db = for_flask.operation().connection()
        seen = db.execute(said.select, (name,)).fetchone()
        if seen is None:
            return respond(delete_answer(existed=False, when_missing=404))
        when.require(tag(seen), require_match=True)
        row = db.execute(
            said.append, (flask_request.get_data(as_text=True), name, seen[1])
        ).fetchone()
        if row is None:
            when.overtaken()
        return respond(patch_answer(etag=tag(row)))

    @app.delete("/documents/<name>")
    @idempotency.route(guarantee="atomic")
    def delete(name: str) -> Any:
        when = preconditions()
        db = for_flask.operation().connection()
        seen = db.execute(said.select, (name,)).fetchone()
        if seen is not None:
            when.require(tag(seen))
            db.execute(said.delete, (name,))
        strict = "strict" in flask_request.args
        return respond(delete_answer(existed=seen is not None, when_missing=404 if strict else 204))

    @app.get("/documents/<name>")
    def get(name: str) -> Any:
        with database(url) as db:
            row = db.execute(said.read, (name,)).fetchone()
        if row is None:
            return respond(delete_answer(existed=False, when_missing=404))
        return respond(get_answer(preconditions(), row[2].encode(), etag=tag(row), headers=TEXT))

    @app.put("/plain/<name>")
    @idempotency.route()
    def plain(name: str) -> Any:
        when = preconditions()
        with database(url) as db:
            seen = db.execute(said.read, (name,)).fetchone()
            when.require(tag(seen))
            version = seen[1] if seen else None
            values = (name, flask_request.get_data(as_text=True), not when.given, version)
            row = db.execute(said.upsert, values).fetchone()
        if row is None:
            when.overtaken()
        return respond(put_answer(created=row[1] == 1, etag=tag(row), as_sent=True))

    for_flask.init_app(app, idempotency)
    return app
