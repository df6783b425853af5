"""A network of half a millisecond there and back, in a process of its own beside the client.

`python -m bench.network PORT MILLISECONDS` prints the port to connect to instead, and ends with its
standard input.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from semel.testing.proxy import Proxy

PR_SET_TIMERSLACK = 29


@contextlib.contextmanager
def far_away(port: int, milliseconds: float) -> Iterator[int]:
    """Give a port that leads to `port`, whose round trips take that much longer."""
    command = [sys.executable, "-m", "bench.network", str(port), str(milliseconds)]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield int(process.stdout.readline())
        process.stdin.close()


def _echo(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        while data := connection.recv(64):
            connection.sendall(data)


def _round_trip(port: int) -> float:
    """Return the median round trip to an echo, in seconds."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        spent = []
        for _ in range(200):
            started = time.perf_counter()
            connection.sendall(b"x")
            connection.recv(64)
            spent.append(time.perf_counter() - started)
    return median(spent)


def _one_way(wanted: float) -> float:
    """Return the delay to set so that a round trip through a proxy takes `wanted` seconds longer.

    A sleep takes a little more than it is asked for, and passing on takes time too.
    """
    delay = wanted / 2
    for _ in range(4):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            for through in (False, True):
                threading.Thread(target=_echo, args=(listener,), daemon=True).start()
                if not through:
                    straight = _round_trip(port)
                    continue
                proxy = Proxy(port)
                proxy.delay = delay
                longer = _round_trip(proxy.port) - straight
                proxy.close()
        delay = max(delay - (longer - wanted) / 2, 0.0)
    return delay


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1)  # nanoseconds; 50 microseconds otherwise
    proxy = Proxy(int(sys.argv[1]))
    proxy.delay = _one_way(float(sys.argv[2]) / 1000)
    print(proxy.port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
