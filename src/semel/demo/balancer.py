"""A round-robin balancer over TCP, which the demo puts in front of its servers.

It does what a real one does with servers that die: whoever refuses the connection is passed over;
what has been sent to a server is never sent to another, so a server that dies in mid-request cuts
its client off.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

CONNECT_TIMEOUT = 2.0
"""Seconds that a server has to take a connection before the next is tried."""


class Balancer:
    """Hands each connection of its clients to the next of the servers on these loopback ports."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.port = 0
        """Where it listens, once it is open."""
        self._ports = list(ports)
        self._turn = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Balancer]:
        """Listen on a free loopback port; in the end every connection is cut."""
        connections: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                await self._serve(reader, writer)
            except asyncio.CancelledError:
                pass  # the balancer closes: this is the connection's own end, nobody awaits it
            finally:
                connections.discard(task)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=2048)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for connection in connections:
                connection.cancel()
            if connections:
                await asyncio.wait(connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection through. Where no server takes it, it is cut."""
        behind = await self._connect()
        if behind is None:
            writer.transport.abort()
            return
        server_reader, server_writer = behind
        asking = asyncio.ensure_future(_pump(reader, server_writer))
        try:
            await _pump(server_reader, writer)
        finally:  # the server has said all it had to say, or the client cannot hear it
            asking.cancel()
            writer.close()
            server_writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in self._ports:
            port = self._ports[self._turn % len(self._ports)]
            self._turn += 1
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    return await asyncio.open_connection("127.0.0.1", port)
            except OSError:  # TimeoutError is one
                continue
        return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what one side says, its end included. Ends quietly where a side is cut off."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()
