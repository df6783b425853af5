"""Serves a gateway with uvicorn: one process, or several that share the listening socket."""

from __future__ import annotations

import functools
import socket
from typing import Any

try:
    import uvicorn
    from uvicorn.supervisors import Multiprocess
except ImportError as missing:  # pragma: no cover
    raise ImportError(
        f"the gateway needs its extra: pip install 'semel[gateway]' ({missing})"
    ) from missing

from semel.gateway.app import Gateway
from semel.gateway.protocol import GatewayProtocol
from semel.gateway.settings import Settings
from semel.gateway.values import SettingsError

BACKLOG = 2048


def listen(settings: Settings) -> socket.socket:
    """Open the listening socket. Raises `SettingsError` where the address cannot be had."""
    host, _ = settings.address
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server(settings.address, family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(f"listen: {settings.listen}: {error.strerror or error}") from error


def config(settings: Settings, **more: Any) -> uvicorn.Config:
    """Return how uvicorn serves it. The heads of answers are the service's own, Date included."""
    return uvicorn.Config(
        functools.partial(Gateway, settings),
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


def serve(settings: Settings, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; what is in flight then ends within the grace."""
    configured = config(settings)
    if settings.workers > 1:
        Multiprocess(configured, [listening]).run()
    else:
        uvicorn.Server(configured).run([listening])
