"""A service that commits in the exit of its session dependency; killed by the tests beside it."""

# ruff: noqa: B008

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

from fastapi import Depends, FastAPI
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from semel import Idempotency
from semel.core.policy import Policy
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.web.fastapi import init_app, joined
from tests.sessions.places import Thing

url = make_url(os.environ["SHOP"])
is_async = url.drivername == "postgresql+asyncpg"
engine: Any = create_async_engine(url) if is_async else create_engine(url)
policy = Policy(shared=True, lease=timedelta(seconds=2), wait=timedelta(seconds=10))
idempotency = Idempotency(os.environ.get("STORE") or SQLAlchemyStore(engine), policy=policy)
app = FastAPI()


def get_db() -> Iterator[Session]:
    with Session(engine) as session:
        yield session
        session.commit()


async def get_async_db() -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine) as session, session.begin():
        yield session


dependency: Any = get_async_db if is_async else get_db
if os.environ.get("JOINED"):
    dependency = joined(idempotency, dependency)


@app.post("/orders", status_code=201)
async def order(db: Any = Depends(dependency)) -> dict[str, bool]:
    db.add(Thing(name="order"))
    return {"made": True}


init_app(app, idempotency)
