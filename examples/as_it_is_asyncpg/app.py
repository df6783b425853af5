"""FastAPI with asyncpg and no ORM: a pool, a connection for each request, sessions in a cookie.

DATABASE_URL=postgresql://user@host/bank uvicorn app:app
"""

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import asyncpg
from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.middleware.sessions import SessionMiddleware

from semel import Idempotency
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.web.fastapi import OptionalAsyncOp, init_app

URL = os.environ["DATABASE_URL"]
TABLES = """
create table if not exists users (
    id serial primary key, name text not null unique, password text not null,
    balance integer not null default 1000 check (balance >= 0));
create table if not exists payments (
    id serial primary key, user_id integer not null references users, payee text not null,
    amount integer not null);
"""


def hashed(password: str) -> str:
    return hashlib.scrypt(password.encode(), salt=b"of the example", n=2**12, r=8, p=1).hex()


# --- Semel: its records are reached by asyncpg too, and its operations give their connection ---
engine = create_async_engine(URL.replace("postgresql", "postgresql+asyncpg", 1))
idempotency = Idempotency(
    SQLAlchemyStore(engine), routes={"POST /login": None, "POST /logout": None}
)


async def get_connection(request: Request, op: OptionalAsyncOp) -> AsyncIterator[Any]:
    if op is not None:
        yield await op.driver()  # asyncpg's, in the transaction of the key
        return
    # --- that was it, with init_app below ---
    async with request.app.state.pool.acquire() as connection:
        yield connection


Connection = Annotated[asyncpg.Connection, Depends(get_connection)]


async def current_user(request: Request, db: Connection) -> asyncpg.Record:
    user = await db.fetchrow("select * from users where id = $1", request.session.get("user_id"))
    if user is None:
        raise HTTPException(401, "Log in first")
    return user


User = Annotated[Any, Depends(current_user)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(URL, min_size=1, max_size=10) as pool:
        await pool.execute(TABLES)
        await pool.executemany(
            "insert into users (name, password) values ($1, $2) on conflict do nothing",
            [(name, hashed("secret")) for name in ("alice", "bob")],
        )
        app.state.pool = pool
        yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
app.add_middleware(SessionMiddleware, secret_key=os.environ.get("SECRET_KEY", "change me"))
init_app(app, idempotency, caller=current_user)  # Semel


class Login(BaseModel):
    name: str
    password: str


class Payment(BaseModel):
    payee: str = Field(min_length=1, max_length=100)
    amount: int = Field(gt=0)


@app.post("/login")
async def login(request: Request, form: Login, db: Connection) -> dict[str, str]:
    user = await db.fetchrow("select * from users where name = $1", form.name)
    if user is None or user["password"] != hashed(form.password):
        raise HTTPException(400, "Incorrect name or password")
    request.session["user_id"] = user["id"]
    return {"name": user["name"]}


@app.post("/logout", status_code=204)
async def logout(request: Request) -> None:
    request.session.clear()


@app.get("/payments")
async def payments(db: Connection, user: User) -> list[dict[str, Any]]:
    query = "select id, payee, amount from payments where user_id = $1 order by id"
    return [dict(row) for row in await db.fetch(query, user["id"])]


@app.post("/payments", status_code=201)
async def pay(payment: Payment, db: Connection, user: User) -> dict[str, Any]:
    async with db.transaction():
        made = await db.fetchrow(
            "insert into payments (user_id, payee, amount) values ($1, $2, $3) returning *",
            *(user["id"], payment.payee, payment.amount),
        )
        try:
            left = await db.fetchval(
                "update users set balance = balance - $1 where id = $2 returning balance",
                *(payment.amount, user["id"]),
            )
        except asyncpg.CheckViolationError:
            raise HTTPException(402, f"You have {user['balance']} only") from None
    return {"id": made["id"], "payee": made["payee"], "amount": made["amount"], "left": left}
