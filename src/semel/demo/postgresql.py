"""The shop on PostgreSQL: four servers behind a balancer, and a database that crashes too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

try:
    import psycopg
except ImportError as error:
    raise ImportError(
        "semel demo --store postgresql needs psycopg: pip install 'semel[demo]'"
    ) from error

from semel.demo.balancer import Balancer
from semel.demo.server import START_TIMEOUT, Shop, bound_socket, supervised
from semel.testing.servers import PostgreSQL

SERVERS = 4


@asynccontextmanager
async def serve(*, protected: bool) -> AsyncIterator[Shop]:
    """Run a PostgreSQL of its own, four servers and the balancer, with Semel or without.

    Raises `ProgramMissing` where there are no PostgreSQL programs here.
    """
    async with _cluster() as cluster:
        with ExitStack() as reserved:
            # Bound here too, so that a port stays its server's while that is dead.
            sockets = [reserved.enter_context(bound_socket()) for _ in range(SERVERS)]
            balancer = Balancer([one.getsockname()[1] for one in sockets])
            async with (
                supervised(
                    cluster.server.url, protected=protected, sockets=sockets, shared=False
                ) as servers,
                balancer.open(),
            ):
                await _taken([one.getsockname()[1] for one in sockets])
                yield Shop(balancer.port, servers, cluster.charges, cluster.crash)


async def _taken(ports: list[int]) -> None:
    """Wait until every server takes connections."""
    async with asyncio.timeout(START_TIMEOUT):
        for port in ports:
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break


class _Cluster:
    """A PostgreSQL server that writes as a real one does (fsync on), until it is crashed."""

    def __init__(self) -> None:
        self.server = PostgreSQL(fsync=True)
        self._work: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Start it and wait until it responds."""
        await self._do(self.server.start)

    async def crash(self) -> None:
        """Stop it as `pg_ctl stop -m immediate` does, and start it again; it recovers."""
        await self._do(self.server.immediate)
        await self._do(self.server.start)

    async def _do(self, what: Callable[[], None]) -> None:
        self._work = asyncio.ensure_future(asyncio.to_thread(what))
        await asyncio.shield(self._work)

    def charges(self) -> dict[str, int]:
        """Read from the shop's own table how often each order was charged."""
        with psycopg.connect(self.server.url) as connection:
            rows = connection.execute("select order_id, count(*) from charges group by 1")
            return dict(rows.fetchall())

    async def close(self) -> None:
        """End it and throw its data away."""
        if self._work is not None:  # a thread that starts it must not outlive this
            await asyncio.wait([self._work])
        await asyncio.to_thread(self.server.close)


@asynccontextmanager
async def _cluster() -> AsyncIterator[_Cluster]:
    cluster = await asyncio.to_thread(_Cluster)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.close()
