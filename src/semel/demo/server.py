"""The shop's servers, in processes that can be killed as often as one likes.

A supervisor loads the shop once and forks its servers; when one is killed it forks the next, so
that what is measured is the crash and not the time Python takes to start.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn

READY = "serving"
START_TIMEOUT = 30.0
"""Seconds in which every server has to be there."""


def shop_folder() -> Path:
    """Return the folder that holds the `shop` package: in the wheel, or in a checkout."""
    here = Path(__file__).parent
    for folder in (here, here.parents[2] / "examples"):
        if (folder / "shop" / "app.py").exists():
            return folder
    raise FileNotFoundError("the example shop is neither in the package nor in a checkout")


class ShopServers:
    """The server processes of a shop, as their supervisor reports them."""

    def __init__(self, process: asyncio.subprocess.Process, said: IO[bytes]) -> None:
        self.kills = 0
        self._process = process
        self._said = said  # what they write to stderr
        self._serving: dict[int, int] = {}  # by their place: who serves there now
        self._turn = 0
        self._listener = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        while line := (await self._process.stdout.readline()).decode():
            name, *numbers = line.split()
            if name == READY:
                place, process = map(int, numbers)
                self._serving[place] = process

    async def started(self, count: int) -> None:
        """Wait for the first `count` servers. Raises `RuntimeError` where they do not come."""
        end = time.monotonic() + START_TIMEOUT
        while len(self._serving) < count:
            if self._process.returncode is not None or time.monotonic() > end:
                self._said.seek(0)
                said = self._said.read().decode(errors="replace")
                raise RuntimeError(f"the shop did not start: {said[-2000:]}")
            await asyncio.sleep(0.02)

    def kill(self) -> bool:
        """`kill -9` the next of those that serve, in turn. False: there is none right now."""
        if not self._serving:
            return False
        places = sorted(self._serving)
        place = places[self._turn % len(places)]
        self._turn += 1
        try:
            os.kill(self._serving.pop(place), signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.kills += 1
        return True


class Shop:
    """A running shop: its address, its servers, and the truth in its table.

    `charges` returns how often each order was charged. `crash` crashes its database and has it come
    back; None where the database is a file, which has no process of its own.
    """

    def __init__(
        self,
        port: int,
        servers: ShopServers,
        charges: Callable[[], dict[str, int]],
        crash: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.port = port
        self.servers = servers
        self.charges = charges
        self.crash = crash

    @property
    def url(self) -> str:
        """Where its page is."""
        return f"http://127.0.0.1:{self.port}/"


@asynccontextmanager
async def supervised(
    database: str, *, protected: bool, sockets: Sequence[socket.socket], shared: bool
) -> AsyncIterator[ShopServers]:
    """Run a server for each of the sockets, with Semel or without.

    `shared`: they listen already, and outlive the servers that take connections from them; else
    each server listens on that port by itself, and nobody does while it is dead.
    """
    numbers = [one.fileno() if shared else one.getsockname()[1] for one in sockets]
    with tempfile.TemporaryFile() as said, throwaway() as files:
        environment = {
            **os.environ,
            "SHOP_DB": database,
            "SHOP_FILES": files,
            "SHOP_SEMEL": "on" if protected else "off",
            "PYTHONPATH": os.pathsep.join([str(shop_folder()), *sys.path]),
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "semel.demo.server", "sockets" if shared else "ports"),
            *map(str, numbers),
            env=environment,
            pass_fds=[one.fileno() for one in sockets] if shared else [],
            stdout=asyncio.subprocess.PIPE,
            stderr=said,
            start_new_session=True,
        )
        servers = ShopServers(process, said)
        try:
            await servers.started(len(sockets))
            yield servers
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            await process.wait()
            servers._listener.cancel()


def supervise(listeners: Sequence[Callable[[], socket.socket]]) -> None:
    """Fork a server for each place, again and again."""
    import uvicorn  # noqa: F401  # once, before the forks

    from shop.app import app  # type: ignore[import-not-found]  # found at run time: shop_folder()

    places: dict[int, int] = {}

    def fork(place: int) -> None:
        child = os.fork()
        if child == 0:
            _serve(app, place, listeners[place])
        places[child] = place

    for place in range(len(listeners)):
        fork(place)
    while True:
        child, status = os.wait()
        if not os.WIFSIGNALED(status):
            time.sleep(0.1)  # it ended by itself: what it needs, its database, is away just now
        fork(places.pop(child))


def _serve(app: Any, place: int, listener: Callable[[], socket.socket]) -> NoReturn:
    import uvicorn

    try:
        config = uvicorn.Config(app, lifespan="on", log_level="error", access_log=False)
        sockets = [listener()]
        os.write(1, f"{READY} {place} {os.getpid()}\n".encode())  # in one piece, beside the others
        uvicorn.Server(config).run(sockets=sockets)
    finally:
        os._exit(1)


def shared_socket(number: int) -> socket.socket:
    """Return a socket that listens already, by its file descriptor."""
    return socket.socket(fileno=os.dup(number))


def bound_socket(port: int = 0) -> socket.socket:
    """Return a socket that has a loopback port, beside others that have it, and listens not yet."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    return made


def throwaway() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that goes when it is done with."""
    return tempfile.TemporaryDirectory(prefix="semel-demo-", ignore_cleanup_errors=True)


if __name__ == "__main__":
    make = shared_socket if sys.argv[1] == "sockets" else bound_socket
    supervise([partial(make, int(number)) for number in sys.argv[2:]])
