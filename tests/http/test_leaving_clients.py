"""Endless streams whose clients leave, and what is left of them: real servers, real shutdowns."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from semel import ASGIMiddleware, Idempotency, Policy, current_async_operation
from tests.http.processes import (
    HYPERCORN,
    UVICORN,
    ask,
    gunicorn,
    leave_after_a_chunk,
    noted,
    serving,
    until_noted,
)

COMMON = """
import asyncio, os, pathlib, time
from datetime import timedelta
from semel import Idempotency, Policy

here = pathlib.Path(os.environ["HERE"])
store = f"sqlite:///{here}/records.db"
policy = dict(wait=timedelta(), max_response_body=10_000)
def note(what):
    with open(here / "notes", "a") as notes:
        notes.write(what + "\\n")
def endless(size):
    note("began")
    try:
        while True:
            yield b"token" + b"." * size
            time.sleep(0.02)
    finally:
        note("ended")
async def aendless(size):
    note("began")
    try:
        while True:
            yield b"token" + b"." * size
            await asyncio.sleep(0.02)
    finally:
        note("ended")
finish = dict(policy)
cancel = dict(policy, on_disconnect="cancel")
once = dict(cancel, guarantee="at-most-once")
"""

FASTAPI = (
    COMMON
    + """
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from semel.web.fastapi import init_app

app = FastAPI()

@app.post("/{kind}/{size}")
async def stream(kind: str, size: int):
    return StreamingResponse(aendless(size))

@app.post("/asks")
async def asks(request: Request):
    async def chunks():
        note("began")
        try:
            while not await request.is_disconnected():
                yield b"token"
                await asyncio.sleep(0.02)
        finally:
            note("ended")
    return StreamingResponse(chunks())

@app.get("/health")
async def health():
    return "ok"

routes = {
    "/cancel/{size}": Policy(**cancel), "/once/{size}": Policy(**once), "/asks": Policy(**cancel),
}
init_app(app, Idempotency(store, policy=Policy(**finish), routes=routes))
"""
)

BARE = (
    COMMON
    + """
from semel import ASGIMiddleware

async def application(scope, receive, send):
    '''Never listens: only `send` can end it.'''
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/health":
        return await send({"type": "http.response.body"})
    async for chunk in aendless(int(scope["path"].split("/")[2])):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})

routes = {"/cancel/{size}": Policy(**cancel), "/once/{size}": Policy(**once)}
app = ASGIMiddleware(application, Idempotency(store, policy=Policy(**finish), routes=routes))
"""
)

FLASK = (
    COMMON
    + """
from flask import Flask
from semel.web.flask import init_app

app = Flask(__name__)

@app.post("/<kind>/<int:size>")
def stream(kind, size):
    return app.response_class(endless(size))

@app.get("/health")
def health():
    return "ok"

routes = {"/cancel/{size}": Policy(**cancel), "/once/{size}": Policy(**once)}
init_app(app, Idempotency(store, policy=Policy(**finish), routes=routes))
"""
)

DJANGO = (
    COMMON
    + """
import django
from django.conf import settings

settings.configure(
    SECRET_KEY="s", ROOT_URLCONF="application", ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["semel.web.django"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": here / "django.db"}},
    MIDDLEWARE=["semel.web.django.middleware.IdempotencyMiddleware"],
    SEMEL={
        "store": store, "policy": finish,
        "routes": {"/cancel/{size}": cancel, "/once/{size}": once},
    },
)
django.setup()

from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

def stream(request, kind, size):
    return StreamingHttpResponse(endless(size))
async def astream(request, kind, size):
    return StreamingHttpResponse(aendless(size))

WSGI = os.environ["PROTOCOL"] == "wsgi"
urlpatterns = [
    path("health", lambda request: HttpResponse("ok")),
    path("<kind>/<int:size>", stream if WSGI else astream),
]
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
app = get_wsgi_application() if WSGI else get_asgi_application()
"""
)

GTHREAD = gunicorn("-k", "gthread", "--threads", "4")
SETUPS = {
    "fastapi-uvicorn": (FASTAPI, UVICORN, ""),
    "fastapi-hypercorn": (FASTAPI, HYPERCORN, ""),
    "bare-uvicorn": (BARE, UVICORN, ""),
    "flask-sync": (FLASK, gunicorn(), ""),
    "flask-gthread": (FLASK, GTHREAD, ""),
    "django-gthread": (DJANGO, GTHREAD, "wsgi"),
    "django-uvicorn": (DJANGO, UVICORN, "asgi"),
}
every_server = pytest.mark.parametrize("setup", SETUPS)


@every_server
def test_a_stream_that_nothing_is_kept_of_ends_with_its_client(setup: str, tmp_path: Path) -> None:
    """4,000 bytes a chunk, of which 10,000 are kept."""
    source, server, protocol = SETUPS[setup]
    with serving(tmp_path, source, server, PROTOCOL=protocol) as (port, _):
        leave_after_a_chunk(port, "/finish/4000", "k")
        until_noted(tmp_path, "began", "ended")
        assert ask(port, "POST", "/finish/4000", "k") == 409  # response-not-kept
    assert noted(tmp_path) == ["began", "ended"]


@every_server
def test_a_client_that_leaves_cancels_its_stream(setup: str, tmp_path: Path) -> None:
    """At least once: the key is free then. At most once: nobody knows how far it came."""
    source, server, protocol = SETUPS[setup]
    with serving(tmp_path, source, server, PROTOCOL=protocol) as (port, _):
        leave_after_a_chunk(port, "/cancel/1", "k")
        until_noted(tmp_path, "began", "ended")
        while True:  # its end is recorded just after it
            with contextlib.suppress(AssertionError):
                leave_after_a_chunk(port, "/cancel/1", "k")
                break
        until_noted(tmp_path, *["began", "ended"] * 2)
        leave_after_a_chunk(port, "/once/1", "once")
        until_noted(tmp_path, *["began", "ended"] * 3)
        assert ask(port, "POST", "/once/1", "once") == 409
        assert ask(port, "GET", "/health") == 200
    assert noted(tmp_path) == ["began", "ended"] * 3
    with contextlib.closing(sqlite3.connect(tmp_path / "records.db")) as records:
        states = records.execute("select state, reason from semel_record").fetchall()
    assert [bool(reason) for _, reason in states] == [True], states


@every_server
def test_a_shutdown_ends_a_stream_whose_client_has_left(setup: str, tmp_path: Path) -> None:
    """The server itself would wait for ten minutes, or for ever.

    Django has no lifespan: uvicorn ends the process without a word, and the lease ends by itself.
    """
    source, server, protocol = SETUPS[setup]
    with serving(tmp_path, source, server, PROTOCOL=protocol) as (port, process):
        leave_after_a_chunk(port, "/finish/1", "k")
        time.sleep(0.2)  # it goes on
        assert noted(tmp_path) == ["began"]
        process.send_signal(signal.SIGTERM)
        process.wait(50)
        assert "Traceback" not in (tmp_path / "log").read_text()
    if setup == "django-uvicorn":
        return
    assert noted(tmp_path) == ["began", "ended"]
    with serving(tmp_path, source, server, PROTOCOL=protocol) as (port, _):
        leave_after_a_chunk(port, "/cancel/1", "another")
        leave_after_a_chunk(port, "/finish/1", "k")  # free


def test_a_handler_that_asks_is_told_the_truth(tmp_path: Path) -> None:
    with serving(tmp_path, FASTAPI, UVICORN) as (port, _):
        leave_after_a_chunk(port, "/asks", "k")
        until_noted(tmp_path, "began", "ended")
        while True:
            with contextlib.suppress(AssertionError):
                leave_after_a_chunk(port, "/asks", "k")  # it ended early: nothing to replay
                break
        until_noted(tmp_path, *["began", "ended"] * 2)


@pytest.mark.parametrize("setup", ["bare-uvicorn", "flask-gthread", "django-uvicorn"])
def test_a_process_killed_as_it_cuts_a_stream_off(setup: str, tmp_path: Path) -> None:
    """At most once: what nobody knows of is parked by whoever asks next."""
    source, server, protocol = SETUPS[setup]
    with serving(tmp_path, source, server, PROTOCOL=protocol, SEMEL_FAILPOINT="cut_off=kill") as (
        port,
        process,
    ):
        leave_after_a_chunk(port, "/once/1", "k")
        if server is UVICORN:
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert process.wait(50) == -signal.SIGKILL
        else:
            while "SIGKILL" not in (tmp_path / "log").read_text():
                time.sleep(0.05)
    with serving(tmp_path, source, server, PROTOCOL=protocol) as (port, _):
        assert ask(port, "POST", "/once/1", "k") == 409
    assert noted(tmp_path).count("began") == 1


async def asked(middleware: ASGIMiddleware, left: asyncio.Event | None = None) -> list[Any]:
    """Send a request under one key, whose client leaves when `left` is set."""
    sent: list[Any] = []
    messages = [{"type": "http.request", "body": b""}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await (left or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"idempotency-key", b"k")]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    await middleware(scope, receive, send)
    return sent


class Handler:
    """Writes a row, begins to stream, and goes on until it hears that its client has left."""

    def __init__(self, path: Path, **rules: Any) -> None:
        self.path = path
        self.writing = asyncio.Event()
        self.runs = 0
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("create table charges (n)")
        policy = Policy(on_disconnect="cancel", wait=timedelta(), **rules)
        self.idempotency = Idempotency(f"sqlite:///{path}", policy=policy, sweep_every=None)
        self.middleware = ASGIMiddleware(self.app, self.idempotency)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.runs += 1
        await receive()
        if self.idempotency.routes.default.guarantee == "atomic":
            db = await current_async_operation().connection()
            await db.execute("insert into charges values (1)")
        await send({"type": "http.response.start", "status": 201, "headers": []})
        if self.runs == 1:
            await send({"type": "http.response.body", "body": b"token", "more_body": True})
            self.writing.set()
            assert (await receive())["type"] == "http.disconnect"
            return
        await send({"type": "http.response.body", "body": b"whole"})

    def rows(self) -> int:
        with contextlib.closing(sqlite3.connect(self.path)) as database:
            return int(database.execute("select count(*) from charges").fetchone()[0])


@pytest.mark.parametrize("how", ["leaves", "cancelled"])
@pytest.mark.parametrize("guarantee", ["atomic", "at-least-once", "at-most-once"])
async def test_what_a_client_that_leaves_cuts_off(guarantee: Any, how: str, tmp_path: Path) -> None:
    """Its server tells of a client that leaves, or cancels its request."""
    handler = Handler(tmp_path / "shop.db", guarantee=guarantee)
    left = asyncio.Event()
    request = asyncio.create_task(asked(handler.middleware, left))
    await handler.writing.wait()
    if how == "leaves":
        left.set()
    else:
        request.cancel()
    await asyncio.wait([request])
    for _ in range(1000):
        sent = await asked(handler.middleware)
        if b"in-flight" not in sent[1]["body"]:
            break
        await asyncio.sleep(0.01)
    once = guarantee == "at-most-once"
    assert sent[0]["status"] == (409 if once else 201), sent
    assert b"outcome-unknown" in sent[1]["body"] if once else sent[1]["body"] == b"whole"
    assert handler.runs == (1 if once else 2)
    assert handler.rows() == (1 if guarantee == "atomic" else 0)
    handler.idempotency.stop()


async def test_a_response_that_is_whole_is_kept_though_its_client_has_left(tmp_path: Path) -> None:
    """It was not cut off: its effect is there, and a retry is to hear of it."""
    handler = Handler(tmp_path / "shop.db", guarantee="atomic")
    handler.runs = 1
    left = asyncio.Event()
    left.set()
    await asked(handler.middleware, left)
    assert (await asked(handler.middleware))[1]["body"] == b"whole"
    assert (handler.runs, handler.rows()) == (2, 1)
    handler.idempotency.stop()
