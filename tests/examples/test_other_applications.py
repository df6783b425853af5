"""Flask, Litestar and Django applications as they are written, with Semel in them."""

from __future__ import annotations

import httpx

from tests.examples.applications import Application, ApplicationTests, Ask


def _by_form(client: httpx.Client, name: str) -> None:
    answer = client.post("/login", data={"username": name, "password": "secret"})
    assert answer.status_code == 302, answer.text


FLASK_SQLALCHEMY = Application(
    folder="as_it_is_flask_sqlalchemy",
    server="gunicorn",
    drivers={"sqlite": "sqlite", "postgresql": "postgresql+psycopg"},
    login=_by_form,
    suite=[
        Ask("POST", "/orders", 201, {"item": "tea", "price": 30}),
        Ask("POST", "/orders", 400, {"item": "a ship", "price": 71}),
        Ask("POST", "/orders", 201, {"item": "cups", "price": 70}),
        Ask("POST", "/orders", 422, {"item": ""}),
        Ask("POST", "/orders", 201, {"item": "tea", "price": 30}, who="bob"),
        Ask("POST", "/orders", 401, {"item": "tea", "price": 30}, who=None),
        Ask("GET", "/orders", 200),
    ],
    once=Ask("POST", "/orders", 201, {"item": "a pot", "price": 5}),
    table="orders",
    refused=Ask("POST", "/orders", 400, {"item": "a ship", "price": 101}),
    written="orders",
)


def _by_token(client: httpx.Client, name: str) -> None:
    client.headers["Authorization"] = f"Token token-of-{name}"


FLASK_SCOPED_SESSION = Application(
    folder="as_it_is_flask_scoped_session",
    server="gunicorn",
    drivers={"sqlite": "sqlite", "postgresql": "postgresql+psycopg"},
    login=_by_token,
    suite=[
        Ask("POST", "/loans", 201, {"title": "Solaris"}),
        Ask("POST", "/loans", 410, {"title": "Ubik"}),
        Ask("POST", "/loans", 422, {}),
        Ask("POST", "/loans", 201, {"title": "Solaris"}, who="bob"),
        Ask("POST", "/loans", 401, {"title": "Solaris"}, who=None),
        Ask("GET", "/loans", 200),
    ],
    once=Ask("POST", "/loans", 201, {"title": "Solaris"}),
    table="loans",
    refused=Ask("POST", "/loans", 410, {"title": "Ubik"}),
    written="loans",
    tables=("books",),
)


def _bearer(client: httpx.Client, name: str) -> None:
    client.headers["Authorization"] = f"Bearer token-of-{name}"


LITESTAR = Application(
    folder="as_it_is_litestar",
    server="uvicorn",
    drivers={"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"},
    login=_bearer,
    suite=[
        Ask("POST", "/tickets", 201, {"show": "Hamlet", "seats": 2}),
        Ask("POST", "/tickets", 410, {"show": "Hamlet", "seats": 19}),
        Ask("POST", "/tickets", 404, {"show": "Othello", "seats": 1}),
        Ask("POST", "/tickets", 400, {"show": "Hamlet"}),
        Ask("POST", "/tickets", 201, {"show": "Hamlet", "seats": 18}, who="bob"),
        Ask("POST", "/tickets", 401, {"show": "Hamlet", "seats": 1}, who=None),
        Ask("GET", "/tickets", 200),
    ],
    once=Ask("POST", "/tickets", 201, {"show": "Hamlet", "seats": 1}),
    table="tickets",
    refused=Ask("POST", "/tickets", 410, {"show": "Hamlet", "seats": 21}),
    written="tickets",
    tables=("shows",),
)


class TestOthers(ApplicationTests):
    APPLICATIONS = (FLASK_SQLALCHEMY, FLASK_SCOPED_SESSION, LITESTAR)
