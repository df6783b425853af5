"""The same little service as ASGI and as WSGI, run by real servers with two worker processes.

`PROBE_DB` names its database. A request's body says what the handler does: `{"do": "charge"}`.
"""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import timedelta
from typing import Any

from semel import (
    ASGIMiddleware,
    Idempotency,
    Policy,
    WSGIMiddleware,
    current_operation,
    current_sync_operation,
    failpoints,
)
from semel.operation import current

MIB = 1024 * 1024
idempotency = Idempotency(
    f"sqlite:///{os.environ.get('PROBE_DB', 'probe.db')}",
    policy=Policy(required=True, lease=timedelta(seconds=1)),
    routes={
        "/large": Policy(
            required=True,
            max_request_body=1100 * MIB,
            lease=timedelta(seconds=1),
            body_timeout=timedelta(seconds=120),
        )
    },
)


def first_attempt() -> bool:
    driver = current.get()
    return driver is not None and driver.claim is not None and driver.claim.attempt == 1


def before_effect(do: str) -> None:
    if do == "kill-before-effect" and first_attempt():
        os.kill(os.getpid(), signal.SIGKILL)
    if do.startswith("kill-at-") and first_attempt():
        failpoints.arm(f"{do.removeprefix('kill-at-')}=kill")


def after_effect(do: str, flag: str) -> tuple[int, bytes]:
    if do == "slow":
        time.sleep(3.5)  # more than three leases
    if do == "raise" and not os.path.exists(flag):
        open(flag, "w").close()
        raise RuntimeError("after the effect")
    if do == "503" and not os.path.exists(flag):
        open(flag, "w").close()
        return 503, b"busy"
    return 201, json.dumps({"charged": do, "n": 12345678901234567, "one": 1.0, "e": []}).encode()


HEADERS = [("Content-Type", "application/json"), ("X-Charge-Id", "ch_1"), ("Location", "/c/1")]
INSERT = "insert into charges (name) values (?)"


async def service(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    size, small, more = 0, b"", True
    while more:
        message = await receive()
        chunk = message.get("body", b"")
        size += len(chunk)
        small = (small + chunk)[:1000]
        more = message.get("more_body", False)
    if scope["path"] == "/large":
        status, body, do = 201, b"%d" % size, "large"
    else:
        asked = json.loads(small)
        do = asked["do"]
        before_effect(do)
        db = await current_operation().connection()
        await db.execute(INSERT, (asked.get("name", do),))
        status, body = after_effect(do, os.environ["PROBE_DB"] + asked.get("name", do) + ".flag")
    headers = [(n.lower().encode(), v.encode()) for n, v in HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if do == "download":
        for _ in range(1600):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    await send({"type": "http.response.body", "body": body})


def wsgi_service(environ: Any, start_response: Any) -> Any:
    if environ["PATH_INFO"] == "/large":
        size = 0
        while chunk := environ["wsgi.input"].read(65536):
            size += len(chunk)
        start_response("201 Created", HEADERS)
        return [b"%d" % size]
    asked = json.loads(environ["wsgi.input"].read())
    do = asked["do"]
    before_effect(do)
    db = current_sync_operation().connection()
    db.execute(INSERT, (asked.get("name", do),))
    status, body = after_effect(do, os.environ["PROBE_DB"] + asked.get("name", do) + ".flag")
    start_response(f"{status} Whatever", HEADERS)
    if do == "download":
        return (b"x" * 65536 for _ in range(1600))
    return [body]


asgi = ASGIMiddleware(service, idempotency)
wsgi = WSGIMiddleware(wsgi_service, idempotency)
