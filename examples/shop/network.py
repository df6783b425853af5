"""The network between a browser and the shop: good, or one that loses answers.

While it is bad, every second answer to a write is lost *after* the shop has done what was asked:
the connection is cut, and the browser knows nothing. What went over the wire, the lost answers too,
is written down for the pages to show. This is the stage, not the play: your own shop has none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from shop.books import Books
from shop.customers import NOBODY, cookies, customer_of
from shop.database import DATABASE
from shop.payments import KEY_FIELD

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

COOKIE = "network"
BAD = "bad"
WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
BEHIND_THE_SCENES = frozenset({"/network", "/idempotency-keys"})
KEPT = 500
"""Lines that are kept, of all customers."""
LONGEST = 2000
"""Bytes of a body that is kept, to be sent again by hand."""
FORM = b"application/x-www-form-urlencoded"

SCHEMA = {
    "wire": f"""create table wire (
        id {DATABASE.identity},
        customer text not null,
        method text not null,
        path text not null,
        key text not null,
        form text not null,
        status integer not null,
        replayed integer not null,
        lost integer not null,
        made_at text not null default ({DATABASE.now})
    )""",
    "wire_by_customer": "create index wire_by_customer on wire (customer, id)",
}
log = logging.getLogger("shop")


def lines(books: Books, customer: str, limit: int) -> list[dict[str, Any]]:
    """Return what a customer's requests came to, the latest first."""
    query = "select * from wire where customer = ? order by id desc limit ?"
    return books.rows(query, customer, limit)


class Network:
    """Stands around the whole shop. Requests without the customer's cookie pass untouched."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        said = headers.get(b"cookie", b"").decode("latin-1")
        customer = customer_of(said)
        if customer == NOBODY:
            await self._app(scope, receive, send)
            return
        closing = _closing(send)
        if scope["method"] not in WRITES or scope["path"] in BEHIND_THE_SCENES:
            await self._app(scope, receive, closing)
            return
        exchange = _Exchange(customer, scope["method"], scope["path"], headers)
        await self._app(scope, exchange.hear(receive), exchange.hold)
        bad = cookies(said).get(COOKIE) == BAD
        try:
            lost = await asyncio.to_thread(exchange.write_down, bad)
        except DATABASE.Error:
            log.warning("the wire's log cannot be written", exc_info=True)
            lost = False
        if lost:
            await _cut(receive, send)
            return
        for message in exchange.answer:
            await closing(message)


def _closing(send: Send) -> Send:
    """Close the connection after the answer. A request that is cut on a connection that was used
    before is sent a second time by browsers on their own, a POST too, which would hide what
    `semel.js` does here. (Chromium does so with plain forms all the same: it connects while the
    button is still down, and takes that for a connection in use.)"""

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        await send(message)

    return closing


async def _cut(receive: Receive, send: Send) -> None:
    """Cut the connection, with nothing sent. ASGI has no word for it: uvicorn's own is used."""
    send.__self__.transport.abort()  # type: ignore[attr-defined]
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass
class _Exchange:
    """A request and its answer, as they went over the wire."""

    customer: str
    method: str
    path: str
    headers: dict[bytes, bytes]
    answer: list[Message] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)

    def hear(self, receive: Receive) -> Receive:
        async def hearing() -> Message:
            message = await receive()
            if len(self.body) <= LONGEST:
                self.body += message.get("body", b"")
            return message

        return hearing

    async def hold(self, message: Message) -> None:
        self.answer.append(message)

    def write_down(self, bad: bool) -> bool:
        """Note what happened; return whether the answer is to be lost."""
        start = self.answer[0] if self.answer else {"status": 500, "headers": ()}
        replayed = (b"idempotent-replayed", b"true") in start["headers"]
        is_form = self.headers.get(b"content-type") == FORM and len(self.body) <= LONGEST
        form = self.body.decode("utf-8", "replace") if is_form else ""
        key = self.headers.get(b"idempotency-key", b"").decode("latin-1")
        key = key or dict(parse_qsl(form)).get(KEY_FIELD, "")
        with DATABASE.opened() as connection:
            query = "select lost from wire where customer = ? order by id desc limit 1"
            last = DATABASE.query(connection, query, (self.customer,))
            lost = bad and not (last and last[0]["lost"])
            [line] = DATABASE.query(
                connection,
                "insert into wire (customer, method, path, key, form, status, replayed, lost)"
                " values (?, ?, ?, ?, ?, ?, ?, ?) returning id",
                (
                    *(self.customer, self.method, self.path[:100], key[:255], form),
                    *(start["status"], int(replayed), int(lost)),
                ),
            )
            old = "delete from wire where id <= ? returning id"
            DATABASE.query(connection, old, (line["id"] - KEPT,))
        return lost
