"""`pytest --semel-twice` on real small applications of each framework, safe ones and others."""

from __future__ import annotations

from typing import Final

import pytest

pytest_plugins = ["pytester"]

# What each suite does: `client` sends, and `effects` counts what the application has done.

HANDLERS: Final = """
import itertools
from semel import Idempotency, Policy, current_async_operation, current_operation

effects = []
numbers = itertools.count()
COUNT = "select count(*) from charges"

def idempotency(tmp_path, **more):
    import sqlite3
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table if not exists charges (n)")
    return Idempotency(f"sqlite:///{tmp_path}/shop.db", sweep_every=None, **more)
"""

SUITE: Final = """
def test_a_safe_route(client):
    told = client.post("/charges", json={"amount": 5})
    assert told.status_code == 201
    assert len(effects) == 1

def test_a_route_that_says_no(client):
    assert client.post("/no", json={}).status_code == 403
    assert len(effects) == 2          # it ran twice, and said that nothing was done

def test_what_carries_a_key_is_left_alone(client):
    for _ in range(2):
        assert client.post("/open", headers={"Idempotency-Key": "k"}).status_code == 201
    assert len(effects) == 2

@pytest.mark.semel_once
def test_marked(client):
    assert client.post("/open").status_code == 201
    assert len(effects) == 1

def test_get(client):
    assert client.get("/open").status_code == 405

def test_a_route_not_covered(client):                    # fails
    assert client.post("/open").status_code == 201

def test_a_key_given_back(client):                       # fails
    assert client.post("/released").status_code == 201
"""

STARLETTE: Final = """
from fastapi import FastAPI, HTTPException
from semel.web.fastapi import AsyncOp, init_app

def make_app(tmp_path):
    app = FastAPI()

    @app.post("/charges", status_code=201)
    async def charge(body: dict):
        effects.append(body)
        return {"number": next(numbers)}

    @app.post("/no", status_code=201)
    async def no(body: dict):
        effects.append(body)
        raise HTTPException(403)

    @app.post("/open", status_code=201)
    async def uncovered():
        effects.append(1)
        return {"number": next(numbers)}

    @app.post("/released", status_code=201)
    async def released(op: AsyncOp):
        effects.append(1)
        op.release()

    @app.post("/atomic", status_code=201)
    async def atomic(op: AsyncOp):
        db = await op.connection()
        await db.execute("insert into charges values (1)")
        raise ValueError("after the write")

    @app.post("/raises", status_code=201)
    async def raises():
        effects.append(1)
        raise ValueError("after the effect")

    init_app(app, idempotency(tmp_path, routes={"/open": None}))
    return app
"""

FLASK: Final = """
from flask import Flask, abort, request
from semel.web.flask import init_app

def make_app(tmp_path):
    app = Flask("shop")
    app.testing = True

    @app.post("/charges")
    def charge():
        effects.append(request.get_json())
        return {"number": next(numbers)}, 201

    @app.post("/no")
    def no():
        effects.append(request.get_json())
        abort(403)

    @app.post("/open")
    def uncovered():
        effects.append(1)
        return {"number": next(numbers)}, 201

    @app.post("/released")
    def released():
        effects.append(1)
        current_operation().release()
        return {}, 201

    init_app(app, idempotency(tmp_path, routes={"/open": None}))
    return app
"""

LITESTAR: Final = """
from litestar import Litestar, post
from litestar.exceptions import PermissionDeniedException
from semel import ASGIMiddleware

def make_app(tmp_path):
    @post("/charges")
    async def charge(data: dict) -> dict:
        effects.append(data)
        return {"number": next(numbers)}

    @post("/no")
    async def no(data: dict) -> dict:
        effects.append(data)
        raise PermissionDeniedException()

    @post("/open")
    async def uncovered() -> dict:
        effects.append(1)
        return {"number": next(numbers)}

    @post("/released")
    async def released() -> None:
        effects.append(1)
        current_async_operation().release()

    keys = idempotency(tmp_path, routes={"/open": None})
    return Litestar([charge, no, uncovered, released],
                    middleware=[lambda app: ASGIMiddleware(app, keys)])
"""

QUART: Final = """
import asyncio
from quart import Quart, abort, request
from semel import ASGIMiddleware

def make_app(tmp_path):
    app = Quart("shop")

    @app.post("/charges")
    async def charge():
        effects.append(await request.get_json())
        return {"number": next(numbers)}, 201

    @app.post("/no")
    async def no():
        effects.append(await request.get_json())
        abort(403)

    @app.post("/open")
    async def uncovered():
        effects.append(1)
        return {"number": next(numbers)}, 201

    @app.post("/released")
    async def released():
        effects.append(1)
        current_async_operation().release()
        return {}, 201

    app.asgi_app = ASGIMiddleware(app.asgi_app, idempotency(tmp_path, routes={"/open": None}))
    return app

class Client:
    def __init__(self, app):
        self.client = app.test_client()

    def post(self, path, **more):
        return asyncio.run(self.client.post(path, **more))

    def get(self, path):
        return asyncio.run(self.client.get(path))
"""

HTTPX: Final = """
import asyncio
import httpx

class Client:
    def __init__(self, app):
        self.app = app

    def send(self, method, path, **more):
        async def sent():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
                return await client.request(method, path, **more)
        return asyncio.run(sent())

    def post(self, path, **more):
        return self.send("POST", path, **more)

    def get(self, path):
        return self.send("GET", path)
"""

DJANGO: Final = """
import json
import django
from django.conf import settings

settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["semel.web.django"],
    MIDDLEWARE=["semel.web.django.middleware.IdempotencyMiddleware"],
    SEMEL={"store": "memory://", "routes": {"/open": None}},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
django.setup()

from django.http import HttpResponseForbidden, JsonResponse
from django.test import AsyncClient, Client as DjangoClient
from django.urls import path
from django.views.decorators.http import require_POST

@require_POST
def charge(request):
    effects.append(json.loads(request.body))
    return JsonResponse({"number": next(numbers)}, status=201)

@require_POST
def no(request):
    effects.append(json.loads(request.body))
    return HttpResponseForbidden()

@require_POST
def uncovered(request):
    effects.append(1)
    return JsonResponse({"number": next(numbers)}, status=201)

@require_POST
def released(request):
    effects.append(1)
    current_operation().release()
    return JsonResponse({}, status=201)

urlpatterns = [path("charges", charge), path("no", no), path("open", uncovered),
               path("released", released)]

class Client:
    def __init__(self, app):
        self.client = DjangoClient()

    def post(self, path, json=None, **more):
        return self.client.post(path, json, content_type="application/json", **more)

    def get(self, path):
        return self.client.get(path)

class Awaited(Client):
    def __init__(self, app):
        self.client = AsyncClient()

    def post(self, *args, **more):
        import asyncio
        return asyncio.run(super().post(*args, **more))

    def get(self, path):
        import asyncio
        return asyncio.run(super().get(path))

make_app = lambda tmp_path: None
"""

CLIENTS: Final = {
    "fastapi": (STARLETTE, "from fastapi.testclient import TestClient\n", "TestClient(app)"),
    "httpx": (STARLETTE, HTTPX, "Client(app)"),
    "flask": (FLASK, "", "app.test_client()"),
    "wsgi-httpx": (
        FLASK,
        "import httpx\n",
        "httpx.Client(transport=httpx.WSGITransport(app), base_url='http://shop')",
    ),
    "litestar": (LITESTAR, "from litestar.testing import TestClient\n", "TestClient(app)"),
    "quart": (QUART, "", "Client(app)"),
    "django": (DJANGO, "", "Client(app)"),
    "django-async": (DJANGO, "", "Awaited(app)"),
}


def suite(kind: str, tests: str) -> str:
    app, imports, client = CLIENTS[kind]
    fixture = f"""
import pytest

@pytest.fixture
def client(tmp_path):
    effects.clear()
    app = make_app(tmp_path)
    made = {client}
    if hasattr(made, "__enter__") and not hasattr(made, "test_client"):
        with made:
            yield made
    else:
        yield made
"""
    return HANDLERS + app + imports + fixture + tests


def run(pytester: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(source)
    plugins = ("-p", "no:cacheprovider")  # the plugin comes by its entry point
    if "django" in source:  # it is set up once a process
        return pytester.runpytest_subprocess(*plugins, *options)
    return pytester.runpytest_inprocess(*plugins, *options)


@pytest.mark.parametrize("kind", CLIENTS)
def test_what_is_not_safe_to_send_twice_fails(pytester: pytest.Pytester, kind: str) -> None:
    result = run(pytester, suite(kind, SUITE), "--semel-twice", "--strict-markers")
    result.assert_outcomes(passed=5, failed=2)
    result.stdout.fnmatch_lines_random(
        [
            "POST /open was sent twice with one Idempotency-Key: 201, then 201: the second was*",
            "POST /released was sent twice with one Idempotency-Key: 201, then 201: the second*",
            "semel: 4 requests sent twice, 2 without protection",
        ]
    )


def test_without_the_option_nothing_is_sent_twice(pytester: pytest.Pytester) -> None:
    tests = """
def test_open(client):
    assert client.post("/open").status_code == 201
    assert len(effects) == 1
    import sys
    assert "semel.testing.clients" not in sys.modules
"""
    result = run(pytester, suite("fastapi", tests))
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("semel:*")


FAILURES: Final = """
def test_atomic(client):
    with pytest.raises(ValueError, match="after the write"):
        client.post("/atomic")

def test_no_such_route(client):
    assert client.post("/nowhere").status_code == 404

def test_raises(client):                                        # fails
    with pytest.raises(ValueError, match="after the effect"):
        client.post("/raises")

def test_its_own_failure_is_shown_beside(client):               # fails
    client.post("/open")
    assert len(effects) == 1
"""


def test_handlers_that_raise(pytester: pytest.Pytester) -> None:
    result = run(pytester, suite("fastapi", FAILURES), "--semel-twice")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        [
            "POST /raises was sent twice*: ValueError raised, then ValueError raised: it failed,*",
            "*Captured semel call*",
            "POST /open was sent twice with*",
            "semel: 4 requests sent twice, 2 without protection",
        ]
    )


def test_only_what_matches(pytester: pytest.Pytester) -> None:
    tests = """
def test_all(client):
    assert client.post("/open").status_code == 201
    assert client.post("/charges", json={}).status_code == 201
    assert client.patch("/charges", json={}).status_code == 405
    assert len(effects) == 2
"""
    only = ("--semel-only", "/no*", "--semel-only", "POST /ch*")
    result = run(pytester, suite("fastapi", tests), "--semel-twice", *only)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["semel: 1 requests sent twice, 0 without protection"])


STATE: Final = """
import io
from flask import Flask, request, session
from semel.web.flask import init_app

app = Flask("shop")
app.testing = True
app.secret_key = "s"

@app.post("/login")
def login():
    session["visits"] = session.get("visits", 0) + 1
    return {"visits": session["visits"]}

@app.post("/files")
def files():
    text = b"".join(request.files["one"].stream)
    return {"text": text.decode(), "visits": session.get("visits", 0)}

@app.post("/pieces")
def pieces():
    effects.append(1)
    return (f"{n}," for n in range(3))

def test_state(tmp_path):
    effects.clear()
    init_app(app, idempotency(tmp_path, session_cookie="session"))
    with app.test_client() as client:
        assert client.post("/login").json == {"visits": 1}
        assert session["visits"] == 1               # the context of the first
        told = client.post("/files", data={"one": (io.BytesIO(b"abc"), "a.txt")})
        assert told.json == {"text": "abc", "visits": 1}
        assert client.post("/pieces").text == "0,1,2,"
        assert client.post("/login").json == {"visits": 2}
    assert effects == [1]
"""


def test_the_test_sees_the_first_sending_and_its_cookies(pytester: pytest.Pytester) -> None:
    result = run(pytester, HANDLERS + STATE, "--semel-twice")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["semel: 4 requests sent twice, 0 without protection"])


COMPRESSED: Final = """
from fastapi import FastAPI, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from fastapi.testclient import TestClient
from starlette.middleware.gzip import GZipMiddleware
from semel import ASGIMiddleware
import unittest

class Suite(unittest.TestCase):
    def setUp(self):
        effects.clear()
        app = FastAPI()

        @app.post("/large")
        async def large(response: Response):
            response.set_cookie("seen", str(next(numbers)))
            return {"text": "x" * 5000}

        @app.post("/there/", status_code=201)
        async def there():
            effects.append(1)

        @app.post("/streamed")
        async def streamed():
            async def pieces():
                yield b"a"
                yield b"b"
            return StreamingResponse(pieces())

        app.add_middleware(ASGIMiddleware, idempotency=Idempotency("memory://"))
        app.add_middleware(GZipMiddleware)
        self.client = TestClient(app)

    def test_all(self):
        assert len(self.client.post("/large").json()["text"]) == 5000
        assert self.client.cookies["seen"] == "0"
        assert self.client.post("/there").status_code == 201      # by a 307
        assert effects == [1]
        with self.client.stream("POST", "/streamed") as told:
            assert b"".join(told.iter_bytes()) == b"ab"

    def test_twice(self):
        self.client.post("/missing")
        assert self.client.post("/large").status_code == 200
"""


def test_streams_redirects_and_compression_in_a_testcase(pytester: pytest.Pytester) -> None:
    result = run(pytester, HANDLERS + COMPRESSED, "--semel-twice")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["semel: 6 requests sent twice, 0 without protection"])


UNPROTECTED: Final = """
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient

app = FastAPI()
names = set()

@app.post("/users", status_code=201)
def sign_up(name: str):
    if name in names:
        raise HTTPException(409)
    names.add(name)

def test_it_notices_the_second(  ):                             # fails
    assert TestClient(app).post("/users?name=ann").status_code == 201

def test_invalid():
    assert TestClient(app).post("/users").status_code == 422

class TestInSetup:
    import pytest

    @pytest.fixture
    def user(self):
        assert TestClient(app).post("/users?name=bob").status_code == 201

    def test_fixture(self, user):                               # an error
        pass
"""


def test_without_semel(pytester: pytest.Pytester) -> None:
    result = run(pytester, UNPROTECTED, "--semel-twice")
    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["POST /users was sent twice with one Idempotency-Key: 201, then 409: the second was not*"]
    )
