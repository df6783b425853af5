"""The shops that the demo can run, by their database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path

from semel.demo import sqlite
from semel.demo.server import Shop, throwaway


class ShopStore(StrEnum):
    """The database that the shop uses."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


@asynccontextmanager
async def open_shop(store: ShopStore, *, protected: bool) -> AsyncIterator[Shop]:
    """Run a fresh shop, with Semel or without, and throw it away in the end.

    Raises `ImportError` and `ProgramMissing`, which say what to install, where PostgreSQL or its
    driver is not here.
    """
    if store is ShopStore.POSTGRESQL:
        from semel.demo import postgresql

        async with postgresql.serve(protected=protected) as shop:
            yield shop
    else:
        with throwaway() as folder:
            async with sqlite.serve(Path(folder), protected=protected) as shop:
                yield shop
