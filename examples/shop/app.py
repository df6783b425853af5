"""A small shop in which whatever is sent again happens once: each use by its own idea of the same.

    uvicorn shop.app:app --app-dir examples

`SHOP_DB` names its SQLite file (`shop.db`), or its PostgreSQL database (`postgresql://…`).
`SHOP_FILES` is the folder for uploads (`shop-files`), `SHOP_SECRET` signs issued keys.
`SHOP_SEMEL=off` runs the same shop without Semel, to see the difference: `semel demo` does that
under a storm of retries and kills.

`protection.py` is how it uses Semel; `payments.py`, `orders.py`, `subscriptions.py`, `accounts.py`
and `files.py` are the uses; the rest is pages.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from semel.web.conditional import NotMet
from semel.web.fastapi import async_operation, init_app, not_met
from shop import (
    accounts,
    charges,
    files,
    network,
    orders,
    payments,
    subscriptions,
    unprotected,
    uses,
)
from shop.books import SCHEMA
from shop.database import DATABASE
from shop.protection import PROTECTED, idempotency


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    DATABASE.create(SCHEMA | network.SCHEMA)
    yield


shop = FastAPI(title="Shop", lifespan=lifespan)
for use in (charges, payments, orders, subscriptions, accounts, files, uses):
    shop.include_router(use.router)
shop.mount("/uploads", files.uploads.asgi)
shop.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")


@shop.get("/health")
async def health() -> dict[str, Any]:
    return {"status": "ok", "semel": PROTECTED}


if PROTECTED:
    init_app(shop, idempotency)
else:
    shop.dependency_overrides[async_operation] = unprotected.operation
    shop.add_exception_handler(NotMet, not_met)

app = network.Network(shop)
