"""Takes uploads of any size and gives a large answer, in an atomic operation: ASGI and WSGI."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from semel import (
    ASGIMiddleware,
    Idempotency,
    Policy,
    WSGIMiddleware,
    current_async_operation,
    current_operation,
)

CHUNK, CHUNKS = 65536, 1600  # 100 MiB
idempotency = Idempotency(
    f"sqlite:///{os.environ['LARGE_DB']}",
    policy=Policy(
        required=True, max_request_body=1100 * 1024 * 1024, body_timeout=timedelta(seconds=120)
    ),
)
INSERT = "insert into charges (name) values ('large')"


async def service(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    db = await current_async_operation().connection()
    await db.execute(INSERT)
    await send({"type": "http.response.start", "status": 201, "headers": []})
    if scope["path"] == "/download":
        for _ in range(CHUNKS):
            await send({"type": "http.response.body", "body": b"x" * CHUNK, "more_body": True})
        await send({"type": "http.response.body"})
    else:
        await send({"type": "http.response.body", "body": b"%d" % size})


def wsgi_service(environ: Any, start_response: Any) -> Any:
    size = 0
    while chunk := environ["wsgi.input"].read(CHUNK):
        size += len(chunk)
    current_operation().connection().execute(INSERT)
    start_response("201 Created", [])
    if environ["PATH_INFO"] == "/download":
        return (b"x" * CHUNK for _ in range(CHUNKS))
    return [b"%d" % size]


asgi = ASGIMiddleware(service, idempotency)
wsgi = WSGIMiddleware(wsgi_service, idempotency)
