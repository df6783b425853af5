"""FastAPI applications as they are written, with Semel in them."""

from __future__ import annotations

import httpx

from tests.examples.applications import Application, ApplicationTests, Ask, bearer

SQLMODEL = Application(
    folder="as_it_is_sqlmodel",
    server="uvicorn",
    drivers={"sqlite": "sqlite", "postgresql": "postgresql+psycopg"},
    login=bearer(),
    suite=[
        Ask("GET", "/items"),
        Ask("POST", "/items", 201, {"title": "a lamp"}),
        Ask("POST", "/items", 201, {"title": "a chair"}, who="bob"),
        Ask("POST", "/items", 422, {"title": ""}),
        Ask("POST", "/items", 401, {"title": "a lamp"}, who=None),
        Ask("GET", "/items"),
        Ask("POST", "/transfers", 201, {"to": "bob", "amount": 900}),
        Ask("POST", "/transfers", 402, {"to": "bob", "amount": 900}),
        Ask("POST", "/transfers", 404, {"to": "carol", "amount": 1}),
        Ask("POST", "/transfers", 201, {"to": "alice", "amount": 1900}, who="bob"),
    ],
    once=Ask("POST", "/transfers", 201, {"to": "bob", "amount": 10}),
    table="transfers",
    refused=Ask("POST", "/transfers", 402, {"to": "bob", "amount": 2000}),
    written="transfers",
    tables=("items", "users"),
)

ASYNC_SQLALCHEMY = Application(
    folder="as_it_is_async_sqlalchemy",
    server="uvicorn",
    drivers={"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"},
    login=bearer(),
    suite=[
        Ask("POST", "/bookings", 201, {"film": "Stalker", "seats": 3}),
        Ask("POST", "/bookings", 410, {"film": "Stalker", "seats": 3}),
        Ask("POST", "/bookings", 201, {"film": "Stalker", "seats": 2}, who="bob"),
        Ask("POST", "/bookings", 422, {"film": "Stalker", "seats": 0}),
        Ask("POST", "/bookings", 401, {"film": "Solaris"}, who=None),
        Ask("POST", "/bookings", 201, {"film": "Solaris"}),
        Ask("GET", "/bookings"),
    ],
    once=Ask("POST", "/bookings", 201, {"film": "Mirror", "seats": 2}),
    table="bookings",
    refused=Ask("POST", "/bookings", 410, {"film": "Mirror", "seats": 6}),
    written="bookings",
)


def _cookie(client: httpx.Client, name: str) -> None:
    answer = client.post("/login", json={"name": name, "password": "secret"})
    assert answer.status_code == 200, answer.text


ASYNCPG = Application(
    folder="as_it_is_asyncpg",
    server="uvicorn",
    drivers={"postgresql": "postgresql"},
    login=_cookie,
    suite=[
        Ask("POST", "/payments", 201, {"payee": "the landlord", "amount": 900}),
        Ask("POST", "/payments", 402, {"payee": "the landlord", "amount": 900}),
        Ask("POST", "/payments", 422, {"payee": "", "amount": 1}),
        Ask("POST", "/payments", 401, {"payee": "the landlord", "amount": 1}, who=None),
        Ask("POST", "/payments", 201, {"payee": "the landlord", "amount": 1000}, who="bob"),
        Ask("GET", "/payments"),
    ],
    once=Ask("POST", "/payments", 201, {"payee": "the baker", "amount": 5}),
    table="payments",
    refused=Ask("POST", "/payments", 402, {"payee": "the jeweller", "amount": 1001}),
    written="payments",
    tables=("users",),
)


def _api_key(client: httpx.Client, name: str) -> None:
    client.headers["X-API-Key"] = f"key-of-{name}"


UNIT_OF_WORK = Application(
    folder="as_it_is_unit_of_work",
    server="uvicorn",
    drivers={"sqlite": "sqlite", "postgresql": "postgresql+psycopg"},
    login=_api_key,
    suite=[
        Ask("POST", "/batches", 201, {"sku": "CHAIR", "quantity": 4}),
        Ask("POST", "/allocations", 201, {"sku": "CHAIR", "quantity": 3}),
        Ask("POST", "/allocations", 400, {"sku": "CHAIR", "quantity": 2}),
        Ask("POST", "/allocations", 201, {"sku": "CHAIR", "quantity": 1}, who="bob"),
        Ask("POST", "/allocations", 401, {"sku": "LAMP", "quantity": 1}, who=None),
        Ask("POST", "/allocations", 422, {"sku": "LAMP", "quantity": 0}),
        Ask("GET", "/allocations"),
    ],
    once=Ask("POST", "/allocations", 201, {"sku": "LAMP", "quantity": 2}),
    table="allocations",
    refused=Ask("POST", "/allocations", 400, {"sku": "LAMP", "quantity": 21}),
    written="allocations",
    tables=("batches", "customers"),
)


class TestFastAPI(ApplicationTests):
    APPLICATIONS = (SQLMODEL, ASYNC_SQLALCHEMY, ASYNCPG, UNIT_OF_WORK)
