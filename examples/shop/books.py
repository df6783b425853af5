"""The shop's tables, and what is read from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import Depends

from shop.database import DATABASE

Table = Literal["charges", "payments", "orders", "subscriptions", "mails", "accounts", "files"]

_ID = f"id {DATABASE.identity}"
_MADE_AT = f"made_at text not null default ({DATABASE.now})"

SCHEMA = {
    # Nothing here stops a second charge for the same order, or a second payment: that is left to
    # whoever handles retries.
    "charges": f"""create table charges (
        {_ID}, order_id text not null, amount bigint not null, {_MADE_AT}
    )""",
    "charges_by_order": "create index charges_by_order on charges (order_id)",
    "payments": f"""create table payments (
        {_ID}, customer text not null, purpose text not null, amount bigint not null, {_MADE_AT}
    )""",
    # `born` is drawn at creation, so that an order that was deleted and created again is not taken
    # for the first one.
    "orders": f"""create table orders (
        {_ID}, number text not null unique, customer text not null, item text not null,
        quantity integer not null, born text not null, version integer not null default 1,
        {_MADE_AT}
    )""",
    # The natural key, for ever: what the key's record says for a day, this says always.
    "subscriptions": f"""create table subscriptions (
        {_ID}, customer text not null, plan text not null, follows bigint not null,
        ended_at text, {_MADE_AT},
        unique (customer, plan, follows)
    )""",
    "mails": f"""create table mails (
        {_ID}, customer text not null, text text not null, {_MADE_AT}
    )""",
    "accounts": f"""create table accounts (
        {_ID}, email text not null unique, customer text not null, {_MADE_AT}
    )""",
    "files": f"""create table files (
        {_ID}, customer text not null, digest text not null, name text not null,
        size bigint not null, {_MADE_AT},
        unique (customer, digest)
    )""",
}


class Books:
    """Reads the shop's tables, for one page."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def latest(self, table: Table, limit: int) -> list[dict[str, Any]]:
        """Return the newest rows first."""
        # One of a few names:
        return self.rows(f"select * from {table} order by id desc limit ?", limit)

    def of(self, customer: str, table: Table, limit: int) -> list[dict[str, Any]]:
        """Return a customer's newest rows first."""
        query = f"select * from {table} where customer = ? order by id desc limit ?"
        return self.rows(query, customer, limit)

    def count(self, table: Table) -> int:
        return self._number(f"select count(*) as number from {table}")

    def count_of(self, customer: str, table: Table) -> int:
        query = f"select count(*) as number from {table} where customer = ?"
        return self._number(query, customer)

    def order(self, customer: str, number: str) -> dict[str, Any] | None:
        """Return a customer's order."""
        query = "select * from orders where customer = ? and number = ?"
        return next(iter(self.rows(query, customer, number)), None)

    def last_subscription(self, customer: str, plan: str) -> dict[str, Any] | None:
        """Return the customer's latest subscription to a plan, running or ended."""
        query = "select * from subscriptions where customer = ? and plan = ? order by id desc"
        return next(iter(self.rows(query + " limit 1", customer, plan)), None)

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
        return {row["order_id"] for row in self.rows(query, *order_ids)}

    def rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        """Return the rows that a query gives."""
        return DATABASE.query(self._connection, query, parameters)

    def _number(self, query: str, *parameters: Any) -> int:
        return int(self.rows(query, *parameters)[0]["number"])


_MORE_THAN_ONE = " group by order_id having count(*) > 1"


def books() -> Iterator[Books]:
    """A dependency: the books, opened for one request."""
    with DATABASE.opened() as connection:
        yield Books(connection)


Read = Annotated[Books, Depends(books)]
