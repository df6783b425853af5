"""The shop's tables, and what is read from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from shop.database import DATABASE

Table = Literal["charges", "orders", "accounts"]

# Nothing here stops a second charge for the same order: that is left to whoever handles retries.
SCHEMA = {
    "charges": f"""create table charges (
        id {DATABASE.identity},
        order_id text not null,
        amount bigint not null,
        made_at text not null default ({DATABASE.now})
    )""",
    "charges_by_order": "create index charges_by_order on charges (order_id)",
    "orders": f"""create table orders (
        id {DATABASE.identity},
        item text not null,
        quantity integer not null,
        made_at text not null default ({DATABASE.now})
    )""",
    "accounts": f"""create table accounts (
        id {DATABASE.identity},
        email text not null unique,
        made_at text not null default ({DATABASE.now})
    )""",
}


class Books:
    """Reads the shop's tables, for one page."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def latest(self, table: Table, limit: int) -> list[dict[str, Any]]:
        """Return the newest rows first."""
        # One of three names:
        return self._rows(f"select * from {table} order by id desc limit ?", limit)

    def count(self, table: Table) -> int:
        return self._number(f"select count(*) as number from {table}")

    def taken(self) -> int:
        """Return what all charges come to, in cents."""
        return self._number("select coalesce(sum(amount), 0) as number from charges")

    def charged_again(self) -> int:
        """Return how many orders have more than one charge."""
        again = "select order_id from charges" + _MORE_THAN_ONE
        return self._number(f"select count(*) as number from ({again}) as again")

    def again(self, order_ids: list[str]) -> set[str]:
        """Return those of these orders that have more than one charge."""
        if not order_ids:
            return set()
        marks = ",".join("?" * len(order_ids))
        query = f"select order_id from charges where order_id in ({marks})" + _MORE_THAN_ONE
        return {row["order_id"] for row in self._rows(query, *order_ids)}

    def _rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        return DATABASE.query(self._connection, query, parameters)

    def _number(self, query: str) -> int:
        return int(self._rows(query)[0]["number"])


_MORE_THAN_ONE = " group by order_id having count(*) > 1"


def books() -> Iterator[Books]:
    """A dependency: the books, opened for one request."""
    with DATABASE.reading() as connection:
        yield Books(connection)
