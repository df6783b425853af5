"""A storm of well-meaning clients on a bad network, and the tally of what happened."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable

from semel.demo.server import Shop
from semel.demo.shops import ShopStore, open_shop

LAST_WORD = 30.0
"""Seconds after the storm in which every purchase still has to get its response."""


@dataclasses.dataclass
class Purchase:
    """One thing somebody wants to buy once."""

    order_id: str
    amount: int
    key: str
    acknowledged: bool = False


@dataclasses.dataclass
class Tally:
    """The counts of one storm."""

    protected: bool
    seconds: float
    store: ShopStore = ShopStore.SQLITE
    started: float = dataclasses.field(default_factory=time.monotonic)
    answers: Counter[str] = dataclasses.field(default_factory=Counter)
    purchases: list[Purchase] = dataclasses.field(default_factory=list)
    kills: int = 0
    """Of servers."""
    crashes: int = 0
    """Of the database."""
    charged: int = 0
    doubled: int = 0
    lost: int = 0
    wrong: int = 0
    """Responses that were none of this request's business."""

    @property
    def requests(self) -> int:
        """How many requests were sent."""
        return sum(self.answers.values())

    @property
    def acknowledged(self) -> int:
        """How many purchases got their response."""
        return sum(purchase.acknowledged for purchase in self.purchases)

    @property
    def clean(self) -> bool:
        """Whether everything happened once, and everything that was asked for happened."""
        everything = self.acknowledged == len(self.purchases)
        return everything and not (self.doubled or self.lost or self.wrong)

    def count(self, charges: dict[str, int]) -> None:
        """Take in how often the shop's own table says that each order was charged."""
        self.charged = sum(charges.values())
        self.doubled = sum(number - 1 for number in charges.values())
        self.lost = sum(p.acknowledged and p.order_id not in charges for p in self.purchases)


class Shopper:
    """Somebody who buys, loses responses, clicks twice, and tries again."""

    def __init__(self, port: int, tally: Tally, rng: random.Random) -> None:
        self._port = port
        self._tally = tally
        self._rng = rng

    async def shop_until(self, end: float) -> None:
        """Make purchases until `end` (monotonic seconds)."""
        rng = self._rng
        while time.monotonic() < end:
            purchase = Purchase(
                uuid.uuid4().hex[:12], rng.randrange(100, 100_000), uuid.uuid4().hex
            )
            self._tally.purchases.append(purchase)
            await self._buy(purchase, end + LAST_WORD)
            await asyncio.sleep(rng.uniform(0, 0.3))

    async def _buy(self, purchase: Purchase, end: float) -> None:
        rng = self._rng
        pause = 0.05
        while not purchase.acknowledged and time.monotonic() < end:
            fault = rng.random()
            if fault < 0.15:
                await self._send(purchase, lose_answer=True)  # and then try again
            elif fault < 0.3:
                await asyncio.gather(self._send(purchase), self._send(purchase))  # double-click
            else:
                await self._send(purchase)
            if not purchase.acknowledged:
                await asyncio.sleep(rng.uniform(0, pause))
                pause = min(pause * 2, 1.0)
        if purchase.acknowledged and rng.random() < 0.2:
            await self._send(purchase)  # "did it really go through?"
        if purchase.acknowledged and rng.random() < 0.1:
            await self._send(purchase, amount=purchase.amount + 1)  # the same key, another request

    async def _send(
        self, purchase: Purchase, *, lose_answer: bool = False, amount: int | None = None
    ) -> None:
        asked = {"order_id": purchase.order_id, "amount": amount or purchase.amount}
        body = json.dumps(asked).encode()
        request = (
            b"POST /charges HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nIdempotency-Key: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (purchase.key.encode(), len(body), body)
        )
        try:
            async with asyncio.timeout(15):
                answer = await self._exchange(request, lose_answer=lose_answer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            answer = b""
        self._note(purchase, answer, other=amount is not None, lost=lose_answer)

    async def _exchange(self, request: bytes, *, lose_answer: bool) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(request)
            await writer.drain()
            if lose_answer:
                await asyncio.sleep(self._rng.uniform(0, 0.05))
                writer.transport.abort()
                return b""
            return await reader.read()
        finally:
            writer.close()

    def _note(self, purchase: Purchase, answer: bytes, *, other: bool, lost: bool) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        whole = length is not None and len(body) == int(length[1])
        status = head[9:12].decode() if whole else ""  # killed in mid-response is no response
        answers = self._tally.answers
        if not status:
            answers["response lost" if lost else "connection cut"] += 1
        elif status == "201":
            replayed = b"idempotent-replayed: true" in head.lower()
            answers["replayed" if replayed else "charged"] += 1
            charged = json.loads(body)
            if other:
                self._tally.wrong += self._tally.protected
            elif charged["order_id"] != purchase.order_id or charged["amount"] != purchase.amount:
                self._tally.wrong += 1
            else:
                purchase.acknowledged = True
        elif status == "422":
            answers["refused: other request"] += 1
            self._tally.wrong += not other
        elif status == "409":
            answers["refused: in flight"] += 1
        elif status == "503":
            answers["refused: try again"] += 1
        else:
            answers[f"status {status}"] += 1


async def storm(
    *,
    protected: bool,
    clients: int,
    seconds: float,
    kill_every: float,
    store: ShopStore = ShopStore.SQLITE,
    crash_every: float = 5.0,
    seed: int = 1,
    progress: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Open a storm against a fresh shop and return what came of it.

    Every `kill_every` seconds a server is killed, every `crash_every` seconds the database, where
    it is one that can crash. Raises as `open_shop` does.
    """
    rng = random.Random(seed)
    async with open_shop(store, protected=protected) as shop:
        tally = Tally(protected, seconds, store)
        end = tally.started + seconds
        people = [Shopper(shop.port, tally, random.Random(rng.random())) for _ in range(clients)]
        tasks = [asyncio.ensure_future(person.shop_until(end)) for person in people]
        tasks.append(asyncio.ensure_future(_kill(shop, tally, kill_every, end)))
        tasks.append(asyncio.ensure_future(_crash(shop, tally, crash_every, end)))
        try:
            going_on = set(tasks)
            while going_on:
                over, going_on = await asyncio.wait(going_on, timeout=0.2)
                for task in over:
                    task.result()
                progress(tally)
        finally:
            for task in tasks:
                task.cancel()
        tally.count(await asyncio.to_thread(shop.charges))
    return tally


async def _kill(shop: Shop, tally: Tally, every: float, end: float) -> None:
    while time.monotonic() + every < end:
        await asyncio.sleep(every)
        shop.servers.kill()
        tally.kills = shop.servers.kills


async def _crash(shop: Shop, tally: Tally, every: float, end: float) -> None:
    while shop.crash is not None and time.monotonic() + every < end:
        await asyncio.sleep(every)
        await shop.crash()
        tally.crashes += 1
