"""`init_app(caller=…)`: the application's own dependency says whose requests they are."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from fastapi import (
    BackgroundTasks,
    Cookie,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Request,
    Response,
    Security,
)
from fastapi.responses import JSONResponse
from fastapi.security import (
    APIKeyCookie,
    APIKeyHeader,
    APIKeyQuery,
    HTTPBearer,
    OAuth2PasswordBearer,
    SecurityScopes,
)
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from semel import Idempotency, Issuer, Policy
from semel.core.policy import PolicyError
from semel.web.fastapi import AsyncOp, init_app


@dataclass
class User:
    id: int


TOKENS: dict[str, User] = {}
BEARER = OAuth2PasswordBearer("token")
LOG: list[str] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    TOKENS.clear()
    TOKENS.update({"one": User(1), "renewed": User(1), "two": User(2)})
    LOG.clear()


def get_db() -> Iterator[dict[str, User]]:
    LOG.append("open")
    try:
        yield TOKENS
    finally:
        LOG.append("close")


async def aget_db() -> AsyncIterator[dict[str, User]]:
    LOG.append("open")
    try:
        yield TOKENS
    finally:
        LOG.append("close")


def refused() -> HTTPException:
    return HTTPException(401, "who are you", {"WWW-Authenticate": "Bearer"})


Token = Annotated[str, Depends(BEARER)]
Database = Annotated[dict[str, User], Depends(get_db)]


async def asynchronous(token: Token, db: Annotated[Any, Depends(aget_db)]) -> User:
    if token not in db:
        raise refused()
    return db[token]


def plain(token: Token, db: Database, background: BackgroundTasks, request: Request) -> User:
    if token not in db:
        raise refused()
    request.state.user = db[token]
    background.add_task(LOG.append, "background")
    return db[token]


def generator(token: Token, db: Database) -> Iterator[User]:
    if token not in db:
        raise refused()
    yield db[token]
    LOG.append("after")


class Callable:
    def __call__(self, token: Token, db: Database) -> User:
        if token not in db:
            raise refused()
        return db[token]


class OfClass:
    def __init__(self, token: Token, db: Database) -> None:
        if token not in db:
            raise refused()
        self.id = db[token].id


def scoped(scopes: SecurityScopes, token: Token, db: Database) -> User:
    assert scopes.scopes == ["orders"]
    if token not in db:
        raise refused()
    return db[token]


def claims(token: Token, db: Database) -> dict[str, object]:
    if token not in db:
        raise refused()
    return {"sub": str(db[token].id), "exp": token}


CALLERS: list[Any] = [
    asynchronous,
    plain,
    generator,
    Callable(),
    OfClass,
    claims,
    Depends(asynchronous),
    Annotated[User, Depends(plain)],
    Security(scoped, scopes=["orders"]),
]


def bearer(token: str | None, key: str = "k") -> dict[str, str]:
    given = {} if token is None else {"Authorization": f"Bearer {token}"}
    return {"Idempotency-Key": key, **given}


def counting(app: FastAPI, path: str = "/orders", **more: Any) -> list[int]:
    runs: list[int] = []

    @app.post(path, **more)
    async def order(request: Request) -> int:
        await request.body()
        runs.append(len(runs))
        return len(runs)

    return runs


@pytest.mark.parametrize("caller", CALLERS, ids=[str(n) for n in range(len(CALLERS))])
@pytest.mark.parametrize("store", ["memory://", "sqlite:///{}/keys.db"])
def test_any_dependency_says_who_asks(caller: Any, store: str, tmp_path: Any) -> None:
    app = FastAPI()
    runs = counting(app)
    init_app(app, Idempotency(store.format(tmp_path)), caller=caller)
    with TestClient(app) as client:

        def ask(token: str | None) -> Any:
            return client.post("/orders", headers=bearer(token), json={"a": 1})

        for token in ("nobody's", None):
            answer = ask(token)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert (answer.json(), runs) == ({"detail": "Not authenticated"}, [])
        assert [ask("one").json() for _ in range(3)] == [1, 1, 1]
        assert ask("renewed").json() == 1
        assert ask("two").json() == 2
        del TOKENS["one"]
        assert ask("one").status_code == 401
        assert ask("renewed").headers["idempotent-replayed"] == "true"
    assert len(runs) == 2
    assert LOG.count("open") == LOG.count("close")


def test_what_it_raises_goes_to_the_applications_own_handlers() -> None:
    class NoSuchUser(Exception):
        pass

    app = FastAPI()
    runs = counting(app)

    @app.exception_handler(NoSuchUser)
    async def gone(request: Request, error: NoSuchUser) -> JSONResponse:
        return JSONResponse({"gone": request.url.path}, 410)

    @app.exception_handler(403)
    def forbidden(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"page": "forbidden"}, 403)

    def caller(x_user: Annotated[int, Header(gt=0)]) -> int:
        if x_user == 1:
            raise NoSuchUser
        if x_user == 2:
            raise HTTPException(403)
        if x_user == 3:
            raise ZeroDivisionError
        return x_user

    init_app(app, Idempotency("memory://"), caller=caller)
    with TestClient(app, raise_server_exceptions=False) as client:

        def ask(user: str) -> Any:
            return client.post("/orders", headers={"Idempotency-Key": "k", "X-User": user})

        assert (ask("1").status_code, ask("1").json()) == (410, {"gone": "/orders"})
        assert (ask("2").status_code, ask("2").json()) == (403, {"page": "forbidden"})
        assert ask("3").status_code == 500
        invalid = ask("0")
        assert (invalid.status_code, invalid.json()["detail"][0]["loc"]) == (
            422,
            ["header", "x-user"],
        )
        assert runs == []
        assert ask("4").json() == 1


def test_overrides_are_honoured_whenever_they_are_set() -> None:
    app = FastAPI()
    counting(app)
    init_app(app, Idempotency("memory://"), caller=plain)
    with TestClient(app) as client:
        assert client.post("/orders", headers=bearer(None)).status_code == 401
        app.dependency_overrides[plain] = lambda: User(7)
        assert client.post("/orders", headers=bearer(None)).json() == 1
        app.dependency_overrides = {get_db: lambda: {"other": User(7)}}
        assert client.post("/orders", headers=bearer("other")).json() == 1
        assert client.post("/orders", headers=bearer("one")).status_code == 401


def test_it_may_take_the_path_the_query_cookies_and_the_body() -> None:
    app = FastAPI()
    runs = counting(app, "/{tenant}/orders")

    async def caller(
        request: Request, tenant: str, v: int, sid: Annotated[str | None, Cookie()] = None
    ) -> str:
        if await request.body() == b"forged":
            raise HTTPException(400, "the signature is not good")
        return f"{tenant}/{sid}/{v}"

    init_app(app, Idempotency("memory://"), caller=caller)
    with TestClient(app) as client:

        def ask(path: str, sid: str, body: bytes = b"{}") -> Any:
            headers = {"Idempotency-Key": "k", "Cookie": f"sid={sid}"}
            return client.post(path, headers=headers, content=body)

        assert ask("/a/orders?v=1", "1", b"forged").status_code == 400
        assert [ask("/a/orders?v=1", "1").json() for _ in range(2)] == [1, 1]
        assert ask("/a/orders?v=1", "2").json() == 2
        assert ask("/b/orders?v=1", "1").json() == 3
        assert ask("/b/orders", "1").status_code == 422
    assert len(runs) == 3


def test_keys_are_issued_to_it_and_public_routes_do_not_ask() -> None:
    app = FastAPI()
    issuer = Issuer("x" * 32)
    keys = Idempotency("memory://", issuer=issuer)
    runs = counting(app)

    @app.post("/hooks/{name}")
    @keys.route(shared=True, key=lambda request: request.header("x-event"))
    async def hook(name: str) -> str:
        return name

    init_app(app, keys, caller=plain)
    with TestClient(app) as client:
        assert client.post("/idempotency-keys", headers=bearer(None)).status_code == 401
        (key,) = client.post("/idempotency-keys", headers=bearer("one")).json()["keys"]
        assert client.post("/orders", headers=bearer("two", key)).status_code == 400
        assert client.post("/orders", headers=bearer("renewed", key)).json() == 1
        event = {"X-Event": "7"}
        assert client.post("/hooks/a", headers=event).status_code == 200
        assert client.post("/hooks/a", headers=event).headers["idempotent-replayed"] == "true"
    assert len(runs) == 1


def test_nothing_that_names_a_user_is_a_server_error() -> None:
    app = FastAPI()
    runs = counting(app)
    init_app(app, Idempotency("memory://"), caller=lambda: object())
    with TestClient(app) as client, pytest.raises(TypeError, match="nothing names the user"):
        client.post("/orders", headers=bearer(None))
    assert runs == []


@pytest.mark.parametrize("is_async", [True, False])
def test_starlette_asks_a_function_of_the_request(is_async: bool) -> None:
    runs: list[int] = []

    async def order(request: Request) -> PlainTextResponse:
        runs.append(1)
        return PlainTextResponse(str(len(runs)))

    def caller(request: Request) -> User:
        user = TOKENS.get(request.headers.get("x-token", ""))
        if user is None:
            raise HTTPException(401, headers={"WWW-Authenticate": "Token"})
        return user

    async def acaller(request: Request) -> User:
        await request.body()
        return caller(request)

    app = Starlette(routes=[Route("/orders", order, methods=["POST"])])
    init_app(app, Idempotency("memory://"), caller=acaller if is_async else caller)
    with TestClient(app) as client:

        def ask(token: str) -> Any:
            return client.post("/orders", headers={"Idempotency-Key": "k", "X-Token": token})

        assert (ask("no").status_code, ask("no").headers["www-authenticate"]) == (401, "Token")
        assert [ask(token).text for token in ("one", "renewed", "two", "one")] == list("1121")
        del TOKENS["one"]
        assert ask("one").status_code == 401


def test_a_session_in_a_cookie_is_read_as_what_it_means() -> None:
    runs: list[int] = []

    async def log_in(request: Request) -> PlainTextResponse:
        request.session.clear()
        request.session["user_id"] = request.query_params["id"]
        return PlainTextResponse("")

    async def order(request: Request) -> PlainTextResponse:
        runs.append(1)
        request.session["seen"] = request.session.get("seen", 0) + 1  # another cookie each time
        return PlainTextResponse(str(len(runs)))

    app = Starlette(
        routes=[
            Route("/login", log_in, methods=["GET"]),
            Route("/orders", order, methods=["POST"]),
        ],
        middleware=[Middleware(SessionMiddleware, secret_key="s")],
    )
    keys = Idempotency(
        "memory://",
        session_cookie="session",
        policy=Policy(key="payload", window=Policy().expires),
    )
    init_app(app, keys)
    with TestClient(app) as client:
        client.get("/login?id=1")
        assert [client.post("/orders").text for _ in range(3)] == ["1", "1", "1"]
        client.get("/login?id=2")
        assert client.post("/orders").text == "2"
        client.get("/login?id=1")
        assert client.post("/orders").text == "1"
        client.cookies.clear()
        assert [client.post("/orders").text for _ in range(2)] == ["3", "4"]  # strangers


# --- callers whom nothing tells apart --------------------------------------------------------

NATURAL = {"key": lambda request: request.json()["order"]}


def start(app: FastAPI, keys: Idempotency, **more: Any) -> None:
    init_app(app, keys, **more)
    with TestClient(app):
        pass


@pytest.mark.parametrize(
    "rules", [NATURAL, {"key": "payload", "window": Policy().expires}], ids=["natural", "payload"]
)
def test_keys_from_content_are_refused_where_nothing_tells_callers_apart(rules: Any) -> None:
    def make(**settings: Any) -> tuple[FastAPI, Idempotency]:
        app, keys = FastAPI(), Idempotency("memory://", **settings)
        app.post("/orders/{id:int}")(keys.route(**rules)(lambda id: id))
        return app, keys

    with pytest.raises(PolicyError, match=r"POST /orders/\{id:int\}: its key comes from .*caller="):
        start(*make())
    start(*make(), caller=plain)
    start(*make(scope=lambda request: "all"))
    start(*make(session_cookie="sid"))
    start(*make(credentials=["X-Client-Cert"]))
    for scheme in (BEARER, HTTPBearer(), APIKeyHeader(name="X-Shop-Key")):
        app, keys = FastAPI(), Idempotency("memory://")
        app.post("/o", dependencies=[Security(scheme)])(keys.route(**rules)(lambda: 1))
        start(app, keys)
    for unseen in (APIKeyQuery(name="k"), APIKeyCookie(name="k")):
        app, keys = FastAPI(), Idempotency("memory://")
        app.post("/o", dependencies=[Security(unseen)])(keys.route(**rules)(lambda: 1))
        with pytest.raises(PolicyError, match="POST /o"):
            start(app, keys)
    app, keys = FastAPI(), Idempotency("memory://")
    app.post("/o")(keys.route(shared=True, **rules)(lambda: 1))
    start(app, keys)
    app = FastAPI()
    app.post("/by-pattern")(lambda: 1)
    with pytest.raises(PolicyError, match="POST /by-pattern"):
        start(app, Idempotency("memory://", routes={"/by-pattern": Policy(**rules)}))


def test_a_warning_names_each_route_whose_callers_look_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, keys = FastAPI(), Idempotency("memory://")
    app.post("/open")(lambda: 1)
    app.put("/marked")(keys.route(required=True)(lambda: 1))
    app.post("/secured", dependencies=[Security(BEARER)])(lambda: 1)
    app.post("/headed")(_headed)
    app.post("/public")(keys.route(shared=True)(lambda: 1))
    app.get("/read")(lambda: 1)
    sub = FastAPI()
    sub.post("/x")(lambda: 1)
    app.mount("/sub", sub)
    with caplog.at_level(logging.WARNING, "semel"):
        start(app, keys)
    (line,) = [r.getMessage() for r in caplog.records if "apart" in r.getMessage()]
    assert "callers of POST /open, PUT /marked, POST /sub/x apart" in line
    caplog.clear()
    other = FastAPI()
    other.post("/open")(lambda: 1)
    with caplog.at_level(logging.WARNING, "semel"):
        start(other, Idempotency("memory://"), caller=plain)
    assert not caplog.records


async def _headed(authorization: Annotated[str, Header()]) -> None: ...


def test_the_header_of_a_security_scheme_tells_callers_apart() -> None:
    app, keys = FastAPI(), Idempotency("memory://")
    runs = counting(app, dependencies=[Security(APIKeyHeader(name="X-Shop-Key"))])
    init_app(app, keys)
    with TestClient(app) as client:

        def ask(secret: str) -> Any:
            return client.post("/orders", headers={"Idempotency-Key": "k", "X-Shop-Key": secret})

        assert [ask(secret).json() for secret in "aba"] == [1, 2, 1]
    assert len(runs) == 2


def test_a_handler_has_the_state_that_the_dependency_has_set_and_its_own_operation() -> None:
    app = FastAPI()

    @app.post("/orders")
    async def order(request: Request, response: Response, op: AsyncOp) -> list[int]:
        return [request.state.user.id, op.attempt]

    init_app(app, Idempotency("memory://"), caller=plain)
    with TestClient(app) as client:
        assert client.post("/orders", headers=bearer("two")).json() == [2, 1]
    assert LOG == ["open", "close", "background"] or LOG == ["open", "background", "close"]
