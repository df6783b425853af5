"""The shop's server, in a process that can be killed as often as one likes.

A supervisor loads the shop once, opens the port, and forks a server; when that is killed it forks
the next, so that what is measured is the crash and not the time Python takes to start.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

READY = "serving"


def shop_folder() -> Path:
    """Return the folder that holds the `shop` package: in the wheel, or in a checkout."""
    here = Path(__file__).parent
    for folder in (here, here.parents[2] / "examples"):
        if (folder / "shop" / "app.py").exists():
            return folder
    raise FileNotFoundError("the example shop is neither in the package nor in a checkout")


class Server:
    """A running shop: its address, and the process that serves now."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, database: Path) -> None:
        self.port = port
        self.database = database
        self.kills = 0
        self._process = process
        self._serving: int | None = None
        self._listener = asyncio.ensure_future(self._listen())

    @property
    def url(self) -> str:
        """Where its page is."""
        return f"http://127.0.0.1:{self.port}/"

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        while line := (await self._process.stdout.readline()).decode():
            name, _, number = line.partition(" ")
            if name == READY:
                self._serving = int(number)

    def kill(self) -> bool:
        """`kill -9` the process that serves. False: there is none right now."""
        serving, self._serving = self._serving, None
        if serving is None:
            return False
        try:
            os.kill(serving, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.kills += 1
        return True


@asynccontextmanager
async def serve(folder: Path, *, protected: bool) -> AsyncIterator[Server]:
    """Run the shop in `folder` on a free port, with Semel or without."""
    database = folder / "shop.db"
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        environment = {
            **os.environ,
            "SHOP_DB": str(database),
            "SHOP_SEMEL": "on" if protected else "off",
            "PYTHONPATH": os.pathsep.join([str(shop_folder()), *sys.path]),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "semel.demo.server",
            str(listening.fileno()),
            env=environment,
            pass_fds=[listening.fileno()],
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        server = Server(process, listening.getsockname()[1], database)
        try:
            while server._serving is None:
                if process.returncode is not None:
                    raise RuntimeError("the shop did not start")
                await asyncio.sleep(0.02)
            yield server
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            await process.wait()
            server._listener.cancel()


def supervise(listening: int) -> None:
    """Fork a server on this socket, again and again."""
    import uvicorn

    from shop.app import app  # type: ignore[import-not-found]  # found at run time: shop_folder()

    while True:
        child = os.fork()
        if child == 0:
            config = uvicorn.Config(app, fd=listening, log_level="critical", access_log=False)
            server = uvicorn.Server(config)
            sockets = [socket.socket(fileno=os.dup(listening))]
            print(READY, os.getpid(), flush=True)
            try:
                server.run(sockets=sockets)
            finally:
                os._exit(1)
        os.waitpid(child, 0)


def throwaway() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that goes when it is done with."""
    return tempfile.TemporaryDirectory(prefix="semel-demo-", ignore_cleanup_errors=True)


if __name__ == "__main__":
    supervise(int(sys.argv[1]))
