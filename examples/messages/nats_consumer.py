"""A NATS JetStream consumer: acknowledged after the effect, so every message comes at least once.

SHOP=sqlite:///shop.db NATS=nats://127.0.0.1:4222 python nats_consumer.py
"""

import asyncio
import json
import os
from datetime import timedelta

import nats
from nats.errors import TimeoutError as NothingNew

from semel import Idempotency, Policy, current_async_operation, idempotent
from semel.functions import CallRefused

# A worker does not wait for another that has the same message: it gives it back. A short lease:
# what a dead worker had begun is run again soon.
rules = Policy(guarantee="atomic", wait=timedelta(), lease=timedelta(seconds=5))
idempotency = Idempotency(os.environ["SHOP"], policy=rules)


@idempotent(idempotency, key="order")
async def ship(order: str, item: str) -> str:
    db = await current_async_operation().connection()
    await db.execute("insert into shipped values (?, ?)", (order, item))
    return f"{item} for {order}"


async def consume() -> None:
    connection = await nats.connect(os.environ["NATS"])
    orders = await connection.jetstream().pull_subscribe("orders", durable="shipping")
    while True:
        try:
            messages = await orders.fetch(1, timeout=1)
        except NothingNew:
            continue
        for message in messages:
            try:
                await ship(**json.loads(message.data))
            except CallRefused as refused:
                if refused.retry_after is not None:
                    await message.nak(delay=refused.retry_after)  # later, by whoever is free
                else:
                    await message.term()  # no repeat will help: look at it
                continue
            await message.ack()


if __name__ == "__main__":
    asyncio.run(consume())
