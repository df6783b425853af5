"""The demo's balancer: what it does with servers that live, die and are not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from semel.demo.balancer import Balancer
from semel.demo.server import bound_socket


class Server:
    """Listens on a port of its own and keeps what it was asked."""

    def __init__(self, name: str, *, dies: bool = False) -> None:
        self.name = name
        self.asked: list[bytes] = []
        self.hung_up = asyncio.Event()
        self._dies = dies

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            self.asked.append(line)
            writer.write(f"{self.name}: ".encode())
            if self._dies:
                await writer.drain()
                writer.transport.abort()
                return
            writer.write(line)
        self.hung_up.set()
        writer.close()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
        yield server.sockets[0].getsockname()[1]
        server.close()


@asynccontextmanager
async def balancer(*servers: Server) -> AsyncIterator[Balancer]:
    async with AsyncExitStack() as stack:
        ports = [await stack.enter_async_context(server.open()) for server in servers]
        yield await stack.enter_async_context(Balancer(ports).open())


async def ask(port: int, line: bytes = b"hello\n") -> bytes:
    """Ask as somebody who says goodbye, and return all that comes until the connection ends."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(line)
        writer.write_eof()
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


async def test_connections_go_to_the_servers_in_turn() -> None:
    async with balancer(Server("a"), Server("b"), Server("c")) as shared:
        answers = [await ask(shared.port) for _ in range(6)]
    assert answers == [b"a: hello\n", b"b: hello\n", b"c: hello\n"] * 2


async def test_a_server_that_refuses_is_passed_over() -> None:
    async with Server("a").open() as alive, Server("b").open() as also_alive:
        with bound_socket() as dead:  # has the port, and nobody listens
            ports = [alive, dead.getsockname()[1], also_alive]
            async with Balancer(ports).open() as shared:
                answers = [await ask(shared.port) for _ in range(4)]
    assert answers == [b"a: hello\n", b"b: hello\n"] * 2


async def test_a_server_that_comes_back_is_taken_again() -> None:
    server = Server("b")
    with bound_socket() as reserved:
        port = reserved.getsockname()[1]
        async with Server("a").open() as alive, Balancer([alive, port]).open() as shared:
            before = [await ask(shared.port) for _ in range(2)]
            back = await asyncio.start_server(server.answer, sock=bound_socket(port))
            after = [await ask(shared.port) for _ in range(2)]
            back.close()
    assert before == [b"a: hello\n"] * 2
    assert sorted(after) == [b"a: hello\n", b"b: hello\n"]


async def test_a_server_that_dies_in_mid_request_cuts_its_client_off() -> None:
    dying, other = Server("dying", dies=True), Server("other")
    async with balancer(dying, other) as shared:
        answer = await ask(shared.port)
    assert b"hello" not in answer
    assert dying.asked == [b"hello\n"]
    assert other.asked == []  # what one has been sent is never sent to another


async def test_where_no_server_is_left_the_client_is_cut_off() -> None:
    with bound_socket() as dead:
        async with Balancer([dead.getsockname()[1]]).open() as shared:
            assert await ask(shared.port) == b""


async def test_a_client_that_hangs_up_is_gone_for_the_server_too() -> None:
    server = Server("a")
    async with balancer(server) as shared:
        reader, writer = await asyncio.open_connection("127.0.0.1", shared.port)
        writer.write(b"hello\n")
        await reader.readline()
        writer.transport.abort()
        async with asyncio.timeout(10):
            await server.hung_up.wait()


async def test_large_bodies_pass_whole_both_ways() -> None:
    line = b"x" * 60_000 + b"\n"
    async with balancer(Server("a")) as shared:
        assert await ask(shared.port, line) == b"a: " + line


async def test_closing_the_balancer_cuts_who_is_still_connected() -> None:
    async with balancer(Server("a")) as shared:
        reader, writer = await asyncio.open_connection("127.0.0.1", shared.port)
        writer.write(b"hello\n")
        await reader.readline()
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()
