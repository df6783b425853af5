"""The shop's page: plain HTML made on the server, from `page.html`."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from shop.books import Books

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'self'",
    "cache-control": "no-store",
}
ROWS = 8
_PAGE = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))


def render(books: Books, *, protected: bool) -> str:
    """Return the page with what is in the books now."""
    charges = books.latest("charges", ROWS)
    again = books.again([row["order_id"] for row in charges])
    doubled = books.charged_again()
    return _PAGE.substitute(
        semel="on" if protected else "off",
        state="Semel is on" if protected else "Semel is off",
        explanation=(
            "Send anything again with the same key: it happens once, and the repeat gets the first"
            " answer."
            if protected
            else "Nobody looks at the key: whatever is sent again happens again."
        ),
        charges=_number(books.count("charges")),
        taken=money(books.taken()),
        orders=_number(books.count("orders")),
        accounts=_number(books.count("accounts")),
        doubled=_number(doubled),
        alarm="alarm" if doubled else "",
        charge_rows=_rows(
            (row["id"], _marked(row["order_id"], again), money(row["amount"]), _time(row))
            for row in charges
        ),
        order_rows=_rows(
            (row["id"], escape(row["item"]), f"× {row['quantity']}", _time(row))
            for row in books.latest("orders", ROWS)
        ),
        account_rows=_rows(
            (row["id"], escape(row["email"]), "", _time(row))
            for row in books.latest("accounts", ROWS)
        ),
    )


def money(cents: int) -> str:
    return f"€ {cents / 100:,.2f}"


def _number(count: int) -> str:
    return f"{count:,}"


def _marked(order_id: str, again: set[str]) -> str:
    mark = ' <span class="badge bad">more than once</span>' if order_id in again else ""
    return escape(order_id) + mark


def _time(row: dict[str, Any]) -> str:
    return escape(row["made_at"][11:19])


def _rows(rows: Iterable[tuple[Any, ...]]) -> str:
    """Return table rows; the cells are HTML already."""
    made = [
        f'<tr><td class="id">{number}</td><td>{what}</td><td class="amount">{much}</td>'
        f'<td class="time">{when}</td></tr>'
        for number, what, much, when in rows
    ]
    return "\n".join(made) or '<tr class="none"><td colspan="4">none yet</td></tr>'
