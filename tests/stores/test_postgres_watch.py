"""The event loop's watch over a connection's socket: it ends before the socket does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg
import pytest
import uvloop

from semel.core.commands import Complete, Open, StoreError
from semel.core.record import Response
from semel.stores.postgres import PostgreSQLStore
from semel.stores.postgres.watch import Watch
from tests import servers

_names = itertools.count()
Work = Callable[[PostgreSQLStore], Coroutine[Any, Any, None]]
Run = Callable[[Work], None]


@pytest.fixture
def url() -> str:
    return servers.postgresql().database(f"w{os.getpid()}_{next(_names)}")


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest, url: str) -> Run:
    def run(work: Work) -> None:
        async def main() -> None:
            async with asyncio.timeout(60):
                await work(store)

        store = PostgreSQLStore(url, pool_size=4, timeout=5)
        store.start()
        try:
            with asyncio.Runner(loop_factory=request.param) as runner:
                runner.run(main())
        finally:
            store.stop()

    return run


class Order:
    """One operation's transaction."""

    def __init__(self, transaction: Any, key: bytes) -> None:
        self.transaction = transaction
        self.db: psycopg.AsyncConnection[Any] = transaction.async_connection
        self._key = key

    @classmethod
    async def begin(cls, store: PostgreSQLStore) -> Order:
        key = os.urandom(16)
        opened = Open(key, b"\x01" + bytes(32), os.urandom(14))
        return cls(await store.aopen(opened), key)

    async def commit(self) -> bool:
        answer = Response(201, (), b"done")
        token = self.transaction.token
        done: bool = await self.transaction.acomplete(
            Complete(self._key, token, answer, 3600.0, 3600.0)
        )
        return done


def watched() -> int:
    """How many sockets the running loop watches, its own not counted."""
    return len(asyncio.get_running_loop()._selector.get_map()) - 1  # type: ignore[attr-defined]


async def _settled() -> None:
    async with asyncio.timeout(20):
        while watched():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def _committed(order: Order) -> None:
    await order.db.execute("select 1")
    assert watched() == 1
    assert await order.commit()


async def _rolled_back(order: Order) -> None:
    await order.db.execute("select 1")
    order.transaction.rollback()


async def _closed_by_its_handler(order: Order) -> None:
    await order.db.execute("select 1")
    await order.db.close()  # does nothing
    await order.db.execute("select 1")
    assert watched() == 1
    order.db.finish()
    assert watched() == 0
    with pytest.raises(StoreError):
        await order.commit()


async def _ended_by_the_server(order: Order) -> None:
    pid = order.db.info.backend_pid
    await order.db.execute("select 1")
    with contextlib.suppress(psycopg.OperationalError):
        await order.db.execute("select pg_terminate_backend(%s)", (pid,))
    assert watched() == 0
    with pytest.raises(StoreError):
        await order.commit()


async def _ended_while_it_was_idle(order: Order) -> None:
    pid = order.db.info.backend_pid
    url = servers.postgresql().url
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as sql:
        await sql.execute("select pg_terminate_backend(%s, 5000)", (pid,))
    await asyncio.sleep(0.1)
    with pytest.raises(StoreError):
        await order.commit()


async def _cancelled(order: Order) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await order.db.execute("select pg_sleep(30)")
    order.transaction.rollback()


@pytest.mark.parametrize(
    "end",
    [
        _committed,
        _rolled_back,
        _closed_by_its_handler,
        _ended_by_the_server,
        _ended_while_it_was_idle,
        _cancelled,
    ],
)
@pytest.mark.parametrize("run", [asyncio.new_event_loop], ids=["asyncio"], indirect=True)
def test_nothing_is_watched_when_an_operation_is_over(
    run: Run, end: Callable[[Order], Coroutine[Any, Any, None]]
) -> None:
    async def main(store: PostgreSQLStore) -> None:
        for _ in range(2):
            await end(await Order.begin(store))
            await _settled()
        order = await Order.begin(store)
        assert await order.commit()
        await _settled()

    run(main)


def test_a_statement_that_is_given_up_leaves_a_transaction_that_goes_on(run: Run) -> None:
    async def main(store: PostgreSQLStore) -> None:
        order = await Order.begin(store)
        with contextlib.suppress(TimeoutError):
            async with order.db.transaction(), asyncio.timeout(0.2):
                await order.db.execute("select pg_sleep(30)")
        told = await (await order.db.execute("select 7")).fetchone()
        assert told == (7,)
        assert await order.commit()

    run(main)


def test_what_does_not_fit_into_the_socket_is_sent_all_the_same(run: Run) -> None:
    async def main(store: PostgreSQLStore) -> None:
        order = await Order.begin(store)
        for length in (10, 30_000_000, 10):
            told = await order.db.execute("select length(%s)", ("x" * length,))
            assert await told.fetchone() == (length,)
        assert await order.commit()

    run(main)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_comes_as_fast_as_it_is_read_leaves_the_loop_to_others(
    factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """As a large answer does, of a server that is fast."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        theirs.send(b"x")
        watch = Watch(ours.fileno())
        watch.stays = True
        assert await watch.readable(None)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                end = time.monotonic() + 20
                while time.monotonic() < end:
                    assert await watch.readable(None)
        assert not await watch.readable(asyncio.get_running_loop().time() - 1)
        watch.end()
        ours.close()
        theirs.close()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def test_a_thread_that_is_lent_the_connection_may_close_its_socket(run: Run) -> None:
    async def main(store: PostgreSQLStore) -> None:
        order = await Order.begin(store)
        await order.db.execute("select 1")
        closed = threading.Event()

        def plain() -> None:
            connection = order.transaction.connection
            closed.wait()
            with contextlib.suppress(psycopg.OperationalError):
                connection.execute("select pg_terminate_backend(pg_backend_pid())")

        handler = asyncio.create_task(asyncio.to_thread(plain))
        await asyncio.sleep(0.1)
        closed.set()
        time.sleep(0.3)  # noqa: ASYNC251  # the loop does not see that the server has gone
        ours, theirs = socket.socketpair()  # one has the number that the connection had
        await handler
        reader, writer = await asyncio.open_connection(sock=ours)
        order.transaction.rollback()
        theirs.send(b"x")
        assert await reader.read(1) == b"x"
        writer.close()
        theirs.close()
        again = [await Order.begin(store) for _ in range(4)]  # its place in the pool is free
        for each in again:
            assert await each.commit()

    run(main)


def test_sessions_that_are_ended_all_the_time_keep_nobody_waiting(run: Run, url: str) -> None:
    """The sockets' numbers come again at once: a watch that had not ended would be another's."""

    async def main(store: PostgreSQLStore) -> None:
        done = 0

        async def customer() -> None:
            nonlocal done
            for _ in range(150):
                with contextlib.suppress(StoreError, psycopg.Error):
                    order = await Order.begin(store)
                    try:
                        await order.db.execute("select pg_sleep(0.001)")
                        done += await order.commit()
                    finally:
                        order.transaction.rollback()

        async def reaper() -> None:
            query = "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s"
            database = url.rsplit("/", 1)[1]
            sql = await psycopg.AsyncConnection.connect(servers.postgresql().url, autocommit=True)
            async with sql:
                while True:
                    await sql.execute(query, (database,))
                    await asyncio.sleep(0.02)

        reaping = asyncio.create_task(reaper())
        await asyncio.gather(*(customer() for _ in range(8)))
        reaping.cancel()
        await asyncio.gather(reaping, return_exceptions=True)
        assert done
        await asyncio.sleep(1)  # until those that were told to have ended
        assert await (await Order.begin(store)).commit()

    run(main)
