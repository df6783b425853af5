"""Where `init_app` puts Semel: inside all middleware, once, and no rule is lost on the way."""

from __future__ import annotations

import functools
import gzip
import logging
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI, Header, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    SimpleUser,
)
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Host, Mount, Route, Router

from semel import ASGIMiddleware, Idempotency, Issuer, Policy
from semel.core.policy import PolicyError
from semel.web.fastapi import AsyncOp, init_app

LET_IN = {"ann", "bob"}


class Backend(AuthenticationBackend):
    async def authenticate(self, conn: Any) -> Any:
        if conn.headers.get("x-user") not in LET_IN:
            raise AuthenticationError("not let in")
        return AuthCredentials(), SimpleUser(conn.headers["x-user"])


def key(value: str = "k", **more: str) -> dict[str, str]:
    return {"Idempotency-Key": value, **{name.replace("_", "-"): v for name, v in more.items()}}


CORS = Middleware(CORSMiddleware, allow_origins=["*"])
AUTHENTICATION = Middleware(AuthenticationMiddleware, backend=Backend())


def in_the_list(app: Any, semel: Callable[[], None]) -> None:
    app.user_middleware[:] = [CORS, AUTHENTICATION]
    semel()


def added_before(app: Any, semel: Callable[[], None]) -> None:
    app.add_middleware(AuthenticationMiddleware, backend=Backend())
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    semel()


def added_after(app: Any, semel: Callable[[], None]) -> None:
    semel()
    app.add_middleware(AuthenticationMiddleware, backend=Backend())
    app.add_middleware(CORSMiddleware, allow_origins=["*"])


def one_on_each_side(app: Any, semel: Callable[[], None]) -> None:
    app.add_middleware(AuthenticationMiddleware, backend=Backend())
    semel()
    app.add_middleware(CORSMiddleware, allow_origins=["*"])


@pytest.mark.parametrize("kind", [FastAPI, Starlette])
@pytest.mark.parametrize("put", [in_the_list, added_before, added_after, one_on_each_side])
def test_semel_stands_inside_whatever_the_order(kind: Any, put: Any) -> None:
    runs: list[str] = []

    async def handler(request: Request) -> PlainTextResponse:
        runs.append(request.user.display_name)
        return PlainTextResponse(f"of {request.user.display_name}")

    app = kind()
    app.add_route("/x", handler, methods=["POST"])
    put(app, lambda: init_app(app, Idempotency("memory://")))
    with TestClient(app) as client:

        def ask(user: str) -> Any:
            return client.post("/x", headers=key(x_user=user, origin="https://a.example"))

        try:
            assert ask("ann").text == "of ann"
            again = ask("ann")
            assert (again.text, again.headers["idempotent-replayed"]) == ("of ann", "true")
            assert again.headers["access-control-allow-origin"] == "*"
            assert ask("bob").text == "of bob"
            LET_IN.discard("ann")
            assert (ask("ann").status_code, runs) == (400, ["ann", "bob"])
        finally:
            LET_IN.add("ann")


def test_a_function_as_middleware_sees_replays_too() -> None:
    app, seen = FastAPI(), []
    init_app(app, Idempotency("memory://"))

    @app.middleware("http")
    async def watch(request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        seen.append(response.headers.get("idempotent-replayed"))
        return response

    @app.post("/x")
    async def x() -> None: ...

    with TestClient(app) as client:
        for _ in range(2):
            client.post("/x", headers=key())
    assert seen == [None, "true"]


def test_a_body_is_compressed_once_for_whoever_takes_it() -> None:
    app = FastAPI()
    init_app(app, Idempotency("memory://"))
    app.add_middleware(GZipMiddleware, minimum_size=10)

    @app.post("/x")
    async def x() -> str:
        return "long " * 100

    with TestClient(app) as client:
        packed = [client.post("/x", headers=key(accept_encoding="gzip")) for _ in range(2)]
        assert [each.headers["content-encoding"] for each in packed] == ["gzip", "gzip"]
        assert packed[0].json() == packed[1].json() == "long " * 100
        plain = client.post("/x", headers=key(accept_encoding="identity"))
        assert ("content-encoding" in plain.headers, plain.json()) == (False, "long " * 100)
        raw = client.stream("POST", "/x", headers=key(accept_encoding="gzip"))
        with raw as response:
            assert gzip.decompress(b"".join(response.iter_raw())) == plain.content


# --- marks -----------------------------------------------------------------------------------


def before(app: Any, keys: Idempotency, declare: Callable[[], None]) -> None:
    init_app(app, keys)
    declare()


def after(app: Any, keys: Idempotency, declare: Callable[[], None]) -> None:
    declare()
    init_app(app, keys)


def by_hand(app: Any, keys: Idempotency, declare: Callable[[], None]) -> None:
    app.add_middleware(ASGIMiddleware, idempotency=keys)
    declare()


def twice(app: Any, keys: Idempotency, declare: Callable[[], None]) -> None:
    init_app(app, keys)
    declare()
    init_app(app, keys)


def both(app: Any, keys: Idempotency, declare: Callable[[], None]) -> None:
    app.add_middleware(ASGIMiddleware, idempotency=keys)
    declare()
    init_app(app, keys)


@pytest.mark.parametrize("lifespan", [True, False])
@pytest.mark.parametrize("how", [before, after, by_hand, twice, both])
def test_rules_beside_a_handler_hold_wherever_its_route_is(how: Any, lifespan: bool) -> None:
    app, keys = FastAPI(), Idempotency("memory://")
    mark = keys.route(required=True)

    async def plain() -> dict[str, str]:
        return {}

    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse("")

    def handler() -> Any:
        return mark(_copy(plain))

    @mark
    class OfClass(HTTPEndpoint):
        async def put(self, request: Request) -> PlainTextResponse:
            return PlainTextResponse("")

    class OfMethod(HTTPEndpoint):
        @mark
        async def patch(self, request: Request) -> PlainTextResponse:
            return PlainTextResponse("")

    def wrapped() -> Any:
        inner = handler()

        @functools.wraps(inner)
        async def outer() -> Any:
            return await inner()

        outer.__dict__.clear()
        outer.__wrapped__ = inner  # type: ignore[attr-defined]
        return outer

    def declare() -> None:
        app.post("/plain")(handler())
        app.put("/settings/{name}")(handler())
        app.post("/wrapped")(wrapped())
        router, inner = APIRouter(prefix="/inner"), APIRouter()
        inner.post("/deep/{id:int}")(handler())
        router.include_router(inner, prefix="/v1")
        app.include_router(router, prefix="/api")
        sub = FastAPI()
        sub.post("/orders")(handler())
        app.mount("/sub", sub)
        app.mount("/star/{tenant}", Router([Route("/x", mark(_copy(endpoint)), methods=["POST"])]))
        app.router.routes.append(Route("/class", OfClass))
        app.router.routes.append(Route("/method", OfMethod))
        hosted = Starlette(routes=[Route("/hosted", mark(_copy(endpoint)), methods=["POST"])])
        app.router.routes.append(Host("{name}.example.org", hosted))

    how(app, keys, declare)
    client = TestClient(app)
    if lifespan:
        client.__enter__()
    try:
        for method, path in (
            ("POST", "/plain"),
            ("PUT", "/settings/a"),
            ("POST", "/wrapped"),
            ("POST", "/api/inner/v1/deep/7"),
            ("POST", "/sub/orders"),
            ("POST", "/star/a/x"),
            ("PUT", "/class"),
            ("PATCH", "/method"),
            ("POST", "/hosted"),
        ):
            host = {"host": "shop.example.org"} if path == "/hosted" else {}
            missing = client.request(method, path, headers=host)
            assert (missing.status_code, path) == (400, path), missing.text
            first = client.request(method, path, headers={**key(path), **host})
            assert (first.status_code, path) == (200, path), first.text
            again = client.request(method, path, headers={**key(path), **host})
            assert (again.headers.get("idempotent-replayed"), path) == ("true", path)
    finally:
        if lifespan:
            client.__exit__(None, None, None)
        keys.stop()


def _copy(function: Any) -> Any:
    """A handler of its own: a mark is on one function."""
    if function.__code__.co_argcount:

        async def taking(request: Request) -> Any:
            return await function(request)

        return taking

    async def copy() -> Any:
        return await function()

    return copy


def test_a_mark_that_met_no_route_keeps_the_service_from_starting() -> None:
    app, keys = FastAPI(), Idempotency("memory://")

    @keys.route(required=True)  # above the route: what is registered is the bare handler
    @app.post("/x")
    async def found() -> None: ...

    @keys.route(required=True)
    async def forgotten() -> None: ...

    init_app(app, keys)
    with pytest.raises(PolicyError, match="forgotten is the handler of no route"), TestClient(app):
        pass
    with pytest.raises(PolicyError, match="forgotten"):
        TestClient(app).post("/x")


def test_a_mark_on_what_changes_nothing_is_refused_and_one_beside_get_is_not() -> None:
    app, keys = FastAPI(), Idempotency("memory://")
    app.api_route("/both", methods=["GET", "PUT"])(keys.route(required=True)(_copy(_nothing)))
    init_app(app, keys)
    with TestClient(app) as client:
        assert [client.put("/both").status_code, client.get("/both").status_code] == [400, 200]
    app.get("/only")(keys.route(required=True)(_copy(_nothing)))
    with pytest.raises(PolicyError, match="on GET /only: it changes nothing"):
        TestClient(app).put("/both")


async def _nothing() -> None: ...


def test_a_mark_goes_before_every_pattern() -> None:
    keys = Idempotency("memory://", routes={"/admin/{rest:path}": None})
    app = FastAPI()
    app.post("/admin/{id}/run")(keys.route(required=True)(_copy(_nothing)))
    init_app(app, keys)
    with TestClient(app) as client:
        assert client.post("/admin/7/run").status_code == 400


def test_routes_added_while_the_service_runs_have_their_rules_too() -> None:
    app, keys = FastAPI(), Idempotency("memory://")
    init_app(app, keys)
    with TestClient(app) as client:
        assert client.post("/late").status_code == 404
        app.post("/late")(keys.route(required=True)(_copy(_nothing)))
        assert client.post("/late").status_code == 400


def test_patterns_that_meet_no_route_are_told_at_the_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    routes = {
        "POST /order/{id}": Policy(),
        "POST /orders/{number:int}": Policy(),
        "/files/{rest:path}": None,
        "PUT /orders/{id}": Policy(methods=("PUT",)),
        "POST /static/a": Policy(),
    }
    app = FastAPI()
    app.post("/orders/{id}")(_copy(_nothing))
    app.post("/files/a/b")(_copy(_nothing))

    async def opaque(scope: Any, receive: Any, send: Any) -> None: ...

    app.mount("/static", opaque)
    init_app(app, Idempotency("memory://", routes=routes))
    with caplog.at_level(logging.WARNING, "semel"), TestClient(app):
        pass
    lost = [record.getMessage() for record in caplog.records if "routes=" in record.getMessage()]
    assert [line.split("'")[1] for line in lost] == ["POST /order/{id}", "PUT /orders/{id}"]
    assert "'POST /orders/x' is" in lost[0]


@pytest.mark.parametrize(
    ("pattern", "fix"),
    [
        ("POST /orders/<int:id>", r"\{id:int\} in place of <int:id>"),
        ("/<name>", r"\{name\} in place of <name>"),
        ("/d/<any(a, b):d>", r"\{d\} in place of"),
        ("/<slug:page>/", r"\{page\} in place of <slug:page>"),
    ],
)
def test_patterns_in_the_way_of_other_frameworks_are_refused(pattern: str, fix: str) -> None:
    with pytest.raises(PolicyError, match=fix):
        Idempotency("memory://", routes={pattern: Policy()})


# --- twice, and within each other ------------------------------------------------------------


def test_another_idempotency_on_one_application_is_refused() -> None:
    app, keys = FastAPI(), Idempotency("memory://")
    init_app(app, keys, caller=_one)
    init_app(app, keys)
    init_app(app, keys, caller=_one)
    with pytest.raises(PolicyError, match="an Idempotency already"):
        init_app(app, Idempotency("memory://"))
    with pytest.raises(PolicyError, match="a caller= already"):
        init_app(app, keys, caller=_two)


async def _one() -> str:
    return "one"


async def _two() -> str:
    return "two"


@pytest.mark.parametrize("same", [True, False])
def test_mounted_applications_with_their_own_semel_wait_for_nobody(same: bool) -> None:
    keys = Idempotency("memory://", policy=Policy(required=True))
    others = keys if same else Idempotency("memory://")
    app, sub, runs = FastAPI(), FastAPI(), []

    @sub.post("/orders")
    async def order(op: AsyncOp) -> int:
        runs.append(op.key_hash)
        return len(runs)

    init_app(sub, others)
    app.mount("/sub", sub)
    init_app(app, keys)
    with TestClient(app) as client:
        assert [client.post("/sub/orders", headers=key()).json() for _ in range(3)] == [1, 1, 1]
        assert client.post("/sub/orders").status_code == 400
    others.stop()


def test_two_services_within_each_other_may_share_a_database(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/keys.db"
    app, sub, inner = FastAPI(), FastAPI(), Idempotency(url)
    sub.post("/orders")(_copy(_nothing))
    init_app(sub, inner)
    app.mount("/sub", sub)
    init_app(app, Idempotency(url))
    with TestClient(app) as client:
        assert client.post("/sub/orders", headers=key()).status_code == 200
        assert "idempotent-replayed" in client.post("/sub/orders", headers=key()).headers
    inner.stop()


def test_a_middleware_around_the_application_leaves_it_to_the_one_inside() -> None:
    keys, runs = Idempotency("memory://"), []
    app = FastAPI()

    @app.post("/x")
    async def x() -> int:
        runs.append(1)
        return len(runs)

    async def caller(x_user: Annotated[str, Header()]) -> str:
        return x_user

    init_app(app, keys, caller=caller)
    with TestClient(ASGIMiddleware(app, keys)) as client:
        ask = ["ann", "ann", "bob", "ann"]
        assert [client.post("/x", headers=key(x_user=u)).json() for u in ask] == [1, 1, 2, 1]
        assert client.post("/x", headers=key()).status_code == 422


def test_a_mounted_applications_own_authentication_comes_before_its_replays() -> None:
    app, keys = FastAPI(), Idempotency("memory://")
    sub = FastAPI(middleware=[AUTHENTICATION])

    @sub.post("/x")
    @keys.route(required=True)
    async def x(request: Request) -> str:
        return str(request.user.display_name)

    @app.post("/x")
    async def of_parent() -> str:
        return "parent"

    init_app(app, keys)
    app.mount("/sub", sub)
    with TestClient(app) as client:
        assert client.post("/x").json() == "parent"  # the mark is of /sub/x alone
        assert client.post("/sub/x", headers=key(x_user="ann")).json() == "ann"
        again = client.post("/sub/x", headers=key(x_user="ann"))
        assert (again.json(), again.headers["idempotent-replayed"]) == ("ann", "true")
        assert client.post("/sub/x", headers=key(x_user="bob")).json() == "bob"
        assert client.post("/sub/x", headers=key(x_user="eve")).status_code == 400
        assert client.post("/sub/x", headers={"x-user": "ann"}).status_code == 400


# --- paths -----------------------------------------------------------------------------------

ISSUER = Issuer("x" * 32)


@pytest.mark.parametrize(("path", "mounted"), [("/api/", False), ("/", False), ("/api/", True)])
def test_issued_keys_are_had_and_taken_below_a_root_path(path: str, mounted: bool) -> None:
    app = FastAPI()
    keys = Idempotency("memory://", issuer=ISSUER, policy=Policy(required="issued"))
    app.post("/c")(_copy(_nothing))
    init_app(app, keys)
    served: Any = app
    if mounted:
        served = Starlette(routes=[Mount("/shop", app)])
        path = "/api/shop/"
    with TestClient(served, root_path="/api") as client:
        drawn = client.post(f"{path}idempotency-keys", json={"route": "POST /c"})
        assert drawn.status_code == 201
        (bound,) = drawn.json()["keys"]
        assert client.post(f"{path}c", headers=key(bound)).status_code == 200
        (elsewhere,) = client.post(f"{path}idempotency-keys", json={"route": "/d"}).json()["keys"]
        assert client.post(f"{path}c", headers=key(elsewhere)).status_code == 400


def test_a_retry_after_the_root_path_has_changed_is_the_same_request() -> None:
    app, keys, runs = FastAPI(), Idempotency("memory://"), []

    @app.post("/c")
    async def c() -> int:
        runs.append(1)
        return len(runs)

    init_app(app, keys)
    for root in ("", "/api", "/v2/"):
        client = TestClient(app, root_path=root)
        assert client.post(f"{root.rstrip('/')}/c", headers=key()).json() == 1
    keys.stop()


def test_two_mounts_of_one_application_are_two_paths() -> None:
    sub, keys = FastAPI(), Idempotency("memory://")

    @sub.post("/c")
    async def c(request: Request) -> str:
        return str(request.url.path)

    init_app(sub, keys)
    app = Starlette(routes=[Mount("/a", sub), Mount("/b", sub)])
    client = TestClient(app)
    assert client.post("/a/c", headers=key()).json() == "/a/c"
    assert client.post("/b/c", headers=key()).status_code == 422
    keys.stop()


@pytest.mark.parametrize("store", ["memory://", "sqlite:///{}/keys.db"])
@pytest.mark.parametrize("put", [init_app, by_hand])
def test_a_retry_through_a_slash_redirect_gets_its_response(
    store: str, put: Any, tmp_path: Any
) -> None:
    app, runs = FastAPI(), []

    def count() -> int:
        runs.append(1)
        return len(runs)

    router, sub = APIRouter(prefix="/v1"), FastAPI()
    app.post("/orders")(lambda: count())
    app.post("/bills/")(lambda: count())
    router.post("/notes")(lambda: count())
    sub.post("/deep/")(lambda: count())
    app.include_router(router)
    app.mount("/sub", sub)
    app.post("/two")(lambda: "without")
    app.post("/two/")(lambda: "with")
    keys = Idempotency(store.format(tmp_path))
    put(app, keys) if put is init_app else put(app, keys, lambda: None)
    with TestClient(app) as client:
        for n, path in enumerate(("/orders/", "/bills", "/v1/notes/", "/sub/deep"), 1):
            for _ in range(3):
                answer = client.post(path, headers=key(path), json={"a": 1})
                assert (answer.status_code, answer.json(), path) == (200, n, path)
            assert "idempotent-replayed" in answer.headers
            other = client.post(path, headers=key(path), json={"a": 2})
            assert other.status_code == 422  # refused where it has been sent on to
        assert client.post("/two", headers=key("t")).json() == "without"
        assert client.post("/two/", headers=key("t")).status_code == 422


# --- a key asked for in vain -----------------------------------------------------------------


def as_it_is(app: FastAPI) -> FastAPI:
    return app


def with_a_page_for_errors(app: FastAPI) -> FastAPI:
    async def page(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"sorry": True}, 500)

    app.add_exception_handler(Exception, page)
    return app


def with_a_page_for_runtime_errors(app: FastAPI) -> FastAPI:
    def page(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"sorry": True}, 418)

    app.add_exception_handler(RuntimeError, page)
    return app


def in_debug(app: FastAPI) -> FastAPI:
    app.debug = True
    return app


def inside_a_middleware(app: FastAPI) -> FastAPI:
    async def through(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    app.add_middleware(BaseHTTPMiddleware, dispatch=through)
    return app


def mounted(app: FastAPI) -> FastAPI:
    outer = FastAPI()
    outer.mount("/", app)
    return outer


def mounted_with_middleware(app: FastAPI) -> FastAPI:
    return mounted(inside_a_middleware(with_a_page_for_errors(app)))


@pytest.mark.parametrize(
    "change",
    [
        as_it_is,
        with_a_page_for_errors,
        with_a_page_for_runtime_errors,
        in_debug,
        inside_a_middleware,
        mounted,
        mounted_with_middleware,
    ],
)
@pytest.mark.parametrize("plain", [True, False])
def test_a_handler_that_needs_a_key_is_answered_400_without_one(change: Any, plain: bool) -> None:
    from semel import current_operation

    app = FastAPI()

    @app.post("/a")
    async def asynchronous(op: AsyncOp) -> None: ...

    @app.post("/p")
    def on_a_thread() -> None:
        current_operation()

    @app.post("/may")
    async def may() -> str:
        try:
            current_operation()
        except RuntimeError:
            return "none"
        return "one"

    app = change(app)
    keys = Idempotency("memory://")
    init_app(app, keys)
    refused: list[Any] = []
    keys.outcomes.observers += (refused.append,)
    client = TestClient(app, raise_server_exceptions=False)
    answer = client.post("/p" if plain else "/a", json={"a": 1})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert answer.json()["type"].endswith("/key-missing")
    assert len(refused) == 1
    assert client.post("/may").json() == "none"
    keys.stop()


def test_a_server_error_of_another_kind_stays_one() -> None:
    from semel import current_operation

    app, keys = FastAPI(debug=True), Idempotency("memory://")
    sub = FastAPI()

    @sub.post("/x")
    async def x() -> None:
        try:
            current_operation()
        except RuntimeError:
            pass
        raise ZeroDivisionError

    app.mount("/sub", sub)
    init_app(app, keys)
    answer = TestClient(app, raise_server_exceptions=False).post("/sub/x")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    keys.stop()
