"""The shop on one machine: one server, one SQLite file."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from semel.demo.server import Shop, supervised


@asynccontextmanager
async def serve(folder: Path, *, protected: bool) -> AsyncIterator[Shop]:
    """Run the shop in `folder` on a free port, with Semel or without."""
    database = folder / "shop.db"

    def charges() -> dict[str, int]:
        connection = sqlite3.connect(database, timeout=10)
        rows = connection.execute("select order_id, count(*) from charges group by 1").fetchall()
        connection.close()
        return dict(rows)

    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        async with supervised(
            str(database), protected=protected, sockets=[listening], shared=True
        ) as servers:
            yield Shop(listening.getsockname()[1], servers, charges)
