"""A TCP proxy that loses, delays and cuts: the network between a server and its database.

Threads and blocking sockets, so that it goes on while the code under test blocks its own loop.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

__all__ = ["Proxy"]


class Proxy:
    """Forwards a loopback port to another; what goes wrong is set on it at any time."""

    def __init__(self, port: int) -> None:
        self._behind = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.delay = 0.0
        """Seconds that each chunk takes, each way."""
        self.black_hole = False
        """Nothing passes, and nobody is told."""
        self.cut_answer_to: bytes | None = None
        """Once a chunk with these bytes has been passed on, its answer is lost, and the connection
        with it; then this is None again."""
        self.round_trips = 0
        """How often somebody was answered and asked again."""
        self.cuts = 0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._behind))
                except OSError:
                    client.close()
                    continue
                _Pair(self, client, server)

    def cut_all(self) -> None:
        """Cut every connection."""
        for one in list(self._open):
            self.close_one(one)

    def close_one(self, one: socket.socket) -> None:
        """Cut one end of a connection."""
        self._open.discard(one)
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()

    def close(self) -> None:
        """Stop listening and cut every connection."""
        self._listener.close()
        self.cut_all()


class _Pair:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._deaf = False
        self._asking = False
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            proxy._open.add(one)
        for pump in (self._requests, self._answers):
            threading.Thread(target=pump, name="proxy", daemon=True).start()

    def _chunk(self, source: socket.socket) -> bytes:
        try:
            data = source.recv(65536)
        except OSError:
            data = b""
        if not data or self._deaf:
            self._proxy.close_one(self._client)
            self._proxy.close_one(self._server)
            return b""
        if self._proxy.delay:
            time.sleep(self._proxy.delay)
        while self._proxy.black_hole:
            time.sleep(0.01)
        return data

    def _requests(self) -> None:
        while data := self._chunk(self._client):
            if not self._asking:
                self._asking = True
                self._proxy.round_trips += 1
            wanted = self._proxy.cut_answer_to
            if wanted is not None and wanted in data:
                self._proxy.cut_answer_to = None
                self._proxy.cuts += 1
                self._deaf = True
            with contextlib.suppress(OSError):
                self._server.sendall(data)

    def _answers(self) -> None:
        while data := self._chunk(self._server):
            self._asking = False
            with contextlib.suppress(OSError):
                self._client.sendall(data)
