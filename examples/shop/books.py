"""The shop's tables, and what is read from them."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any, Literal

DATABASE = Path(os.environ.get("SHOP_DB", "shop.db")).absolute()

Table = Literal["charges", "orders", "accounts"]

# Nothing here stops a second charge for the same order: that is left to whoever handles retries.
SCHEMA = """
create table if not exists charges (
    id integer primary key,
    order_id text not null,
    amount integer not null,
    made_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ'))
);
create index if not exists charges_by_order on charges (order_id);
create table if not exists orders (
    id integer primary key,
    item text not null,
    quantity integer not null,
    made_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ'))
);
create table if not exists accounts (
    id integer primary key,
    email text not null unique,
    made_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ'))
);
"""


def connect(path: Path = DATABASE) -> sqlite3.Connection:
    """Return a connection of its own to the shop's file: each statement commits by itself."""
    connection = sqlite3.connect(path, timeout=10, isolation_level=None)
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    connection.row_factory = sqlite3.Row
    return connection


class Books:
    """Reads the shop's tables."""

    def __init__(self, path: Path = DATABASE) -> None:
        self.path = path

    def open(self) -> None:
        """Create the tables where there are none."""
        self._connection = connect(self.path)
        self._connection.executescript(SCHEMA)
        self._connection.execute("pragma query_only = on")

    def close(self) -> None:
        self._connection.close()

    def latest(self, table: Table, limit: int) -> list[dict[str, Any]]:
        """Return the newest rows first."""
        rows = self._connection.execute(
            f"select * from {table} order by id desc limit ?",  # one of three names
            (limit,),
        )
        return [dict(row) for row in rows]

    def count(self, table: Table) -> int:
        return int(self._one(f"select count(*) from {table}"))

    def taken(self) -> int:
        """Return what all charges come to, in cents."""
        return int(self._one("select coalesce(sum(amount), 0) from charges"))

    def charged_again(self) -> int:
        """Return how many orders have more than one charge."""
        return int(self._one("select count(*) from (" + _AGAIN + ")"))

    def again(self, order_ids: list[str]) -> set[str]:
        """Return those of these orders that have more than one charge."""
        marks = ",".join("?" * len(order_ids))
        query = f"select order_id from charges where order_id in ({marks})"
        rows = self._connection.execute(query + _MORE_THAN_ONE, order_ids)
        return {row["order_id"] for row in rows}

    def _one(self, query: str) -> Any:
        return self._connection.execute(query).fetchone()[0]


_MORE_THAN_ONE = " group by order_id having count(*) > 1"
_AGAIN = "select 1 from charges" + _MORE_THAN_ONE
