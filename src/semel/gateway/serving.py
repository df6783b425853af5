"""Serves a gateway with uvicorn: one process, or several that share the listening socket."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any, Final

try:
    import uvicorn
    from uvicorn.supervisors import Multiprocess
except ImportError as missing:  # pragma: no cover
    raise ImportError(
        f"the gateway needs its extra: pip install 'semel[gateway]' ({missing})"
    ) from missing

from semel.gateway.app import Gateway
from semel.gateway.protocol import GatewayProtocol
from semel.gateway.settings import GatewaySettings
from semel.gateway.values import SettingsError

BACKLOG = 2048
COLLECTIONS: Final = (20_000, 50, 50)
"""Requests leave little that only the collector finds, and it took up to 8 % of a worker's time."""


def listen(settings: GatewaySettings) -> socket.socket:
    """Open the listening socket. Raises `SettingsError` where the address cannot be had."""
    host, _ = settings.address
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server(settings.address, family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(f"listen: {settings.listen}: {error.strerror or error}") from error


def worker(settings: GatewaySettings) -> Gateway:
    """Make the gateway of a process that does nothing else."""
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        threading.Thread(target=_outlive_briefly, args=(supervisor,), daemon=True).start()
    gateway = Gateway(settings)
    gc.collect()
    gc.freeze()  # what has been imported is not looked through again and again
    gc.set_threshold(*COLLECTIONS)
    return gateway


def _outlive_briefly(supervisor: BaseProcess) -> None:
    """Drain and end once the supervisor has been killed: its workers would go on for ever, and keep
    the port from the gateway that is started in its place."""
    supervisor.join()
    os.kill(os.getpid(), signal.SIGTERM)


def config(
    settings: GatewaySettings, make: Callable[[GatewaySettings], Gateway] = Gateway, **more: Any
) -> uvicorn.Config:
    """Return how uvicorn serves it. The heads of responses are the service's own, Date included."""
    return uvicorn.Config(
        functools.partial(make, settings),
        factory=True,
        interface="asgi3",
        http=GatewayProtocol,
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        date_header=False,
        access_log=False,
        log_level="warning",
        workers=settings.workers,
        timeout_graceful_shutdown=max(1, round(settings.grace.total_seconds())),
        **more,
    )


def serve(settings: GatewaySettings, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; what is in flight then ends within the grace."""
    configured = config(settings, worker)
    if settings.workers > 1:
        Multiprocess(configured, [listening]).run()
    else:
        uvicorn.Server(configured).run([listening])
