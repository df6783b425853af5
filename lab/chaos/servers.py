"""Whole servers over HTTP, killed: `python -m lab.chaos.servers --kills 200`.

As `chaos`, but through everything: sockets, uvicorn, the ASGI middleware, the store. Clients in a
process of their own retry each key until they have a definite answer; as soon as a server is dead
the next one takes over the listening socket. Needs uvicorn.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import http.client
import json
import logging
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

from lab.chaos.databases import DatabaseUnderTest, PostgreSQLUnderTest, SQLiteUnderTest
from lab.chaos.forks import fork
from lab.chaos.kills import FINGERPRINT, SCOPE, Rig, append
from lab.judge.checker import check
from lab.judge.findings import HistoryReport, summary
from lab.judge.history import KIND_OF_PROBLEM, Kind, ResponseSeen, Sent
from lab.judge.history_file import load
from semel import failpoints
from semel.core.policy import Guarantee, Policy
from semel.idempotency import Idempotency
from semel.operation import current_async_operation
from semel.stores.sqlite import checkpoints as sqlite_checkpoints
from semel.testing.servers import PostgreSQL, running
from semel.web.asgi import ASGIMiddleware

POINTS = (
    "before_claim",
    "after_claim",
    "after_begin",
    "before_complete",
    "before_commit",
    "after_commit",
    "after_complete",
    "before_answer",
    "after_answer",
    "before_takeover",
    "after_takeover",
)
"""Failpoints on the way of a request; the two of an answer exist only in an adapter."""
IN_SQLITE = ("in_commit", "before_checkpoint")
LEASE = timedelta(milliseconds=200)
CLIENTS = 4
PATIENCE = 20.0
"""Seconds that a client waits for one answer."""


class ServerRig(Rig):
    """ServerRig that are real processes on a real port, and the clients that never give up."""

    def __init__(self, folder: Path, guarantee: Guarantee, database: DatabaseUnderTest) -> None:
        super().__init__(folder, guarantee, database)
        self._enough = folder / "enough"
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]

    def run(self, kills: int, rng: random.Random, points: Sequence[str]) -> Counter[str]:
        """Kill that many servers under traffic, then let the clients finish."""
        killed: Counter[str] = Counter()
        clients = fork(self._ask_on)
        while os.waitpid(clients, os.WNOHANG) == (0, 0):
            if sum(killed.values()) >= kills:
                self._enough.touch()
            point = "" if self._enough.exists() else rng.choice(points)
            if self._serve_until_dead(clients, point, rng):
                killed[point] += 1
        self._listener.close()
        with open(self._log, encoding="utf-8") as file:
            self._keys = sorted({event.key for event in load(file) if isinstance(event, Sent)})
        return killed

    def _serve_until_dead(self, clients: int, point: str, rng: random.Random) -> bool:
        """Run one server until it is killed, or the clients are done. True: killed."""
        named = point not in ("", "random")
        arm = f"{point}:{rng.choice([1, 2, 3, 7])}=kill" if named else ""
        server = fork(lambda: self._listen(arm))
        deadline = time.monotonic() + (rng.uniform(0.02, 0.3) if point == "random" else 1.5)
        while time.monotonic() < deadline or point == "":
            if os.waitid(os.P_PID, server, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return self.join(server)
            if os.waitid(os.P_PID, clients, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(0.002)
        os.kill(server, signal.SIGKILL)
        self.join(server)
        return point == "random"

    # --- the server -------------------------------------------------------------------------

    def _listen(self, arm: str) -> None:
        import uvicorn

        failpoints.arm(arm)
        sqlite_checkpoints.CHECKPOINT_CHANGES = 20
        logging.disable(logging.WARNING)
        idempotency = Idempotency(
            self.database.store(),
            policy=Policy(guarantee=self.guarantee, lease=LEASE),
            scope=lambda request: SCOPE,
        )
        config = uvicorn.Config(
            ASGIMiddleware(self._app, idempotency), lifespan="off", log_config=None
        )
        uvicorn.Server(config).run(sockets=[self._listener])

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name: value.decode() for name, value in scope["headers"]}
        attempt, key = headers[b"x-attempt"], headers[b"idempotency-key"]
        op = current_async_operation()
        if self.guarantee == "atomic":
            db = await op.connection()
            await db.execute(
                self.database.insert, {"attempt": attempt, "key": key, "token": op.token}
            )
        else:
            append(self._far_side, f"{attempt} {key} {op.token}\n")
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": f"charged by {attempt}".encode()})

    # --- the clients ------------------------------------------------------------------------

    def _ask_on(self) -> None:
        self._listener.close()
        threads = [threading.Thread(target=self._client, args=(n,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, number: int) -> None:
        asked = 0
        while not self._enough.exists():
            # Two clients share each key: the double-click.
            self._until_definite(number, f"{self.folder.name}-{number // 2}-{asked}")
            asked += 1

    def _until_definite(self, number: int, key: str) -> None:
        for again in range(200):
            attempt = f"{key}.{number}.{again}"
            self._note(Sent(time.time(), attempt, SCOPE, key, FINGERPRINT))
            try:
                kind, status, body, replayed = self._ask(attempt, key)
            except (OSError, http.client.HTTPException):
                continue  # unknown
            self._note(ResponseSeen(time.time(), attempt, kind, status, body, (), replayed))
            if kind == "ok" or body == b"outcome-unknown":
                return
            time.sleep(0.02)
        raise RuntimeError(f"{key}: no definite answer after 200 attempts")

    def _ask(self, attempt: str, key: str) -> tuple[Kind, int, bytes, bool]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            headers = {"Idempotency-Key": key, "X-Attempt": attempt}
            connection.request("POST", "/charges", body=b"{}", headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if "problem+json" in (answer.headers.get("content-type") or ""):
            slug = json.loads(body)["type"].rpartition("/")[2]
            return KIND_OF_PROBLEM[slug], answer.status, slug.encode(), False
        replayed = answer.headers.get("idempotent-replayed") == "true"
        return ("ok" if answer.status == 201 else "released"), answer.status, body, replayed


def whole_servers(
    guarantee: Guarantee,
    kills: int,
    *,
    seed: int = 1,
    point: str | None = None,
    database: Callable[[Path], DatabaseUnderTest] = SQLiteUnderTest,
) -> tuple[HistoryReport, Counter[str]]:
    """Kill that many whole servers; return the verdict and the kills by failpoint."""
    folder = Path(tempfile.mkdtemp(prefix="semel-servers-"))
    try:
        rig = ServerRig(folder, guarantee, database(folder))
        own = IN_SQLITE if isinstance(rig.database, SQLiteUnderTest) else ()
        points = [*POINTS, *own, *["random"] * 4] if point is None else [point]
        killed = rig.run(kills, random.Random(seed), points)
        return check(rig.history()), killed
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill servers from the command line; return 0 only without a violation."""
    parser = argparse.ArgumentParser(prog="python -m lab.chaos.servers")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--guarantee", choices=get_args(Guarantee), default="atomic")
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--failpoint", default=None, help='one of them, or "random"; default: all')
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    run = functools.partial(
        whole_servers,
        options.guarantee,
        options.kills,
        seed=options.seed,
        point=options.failpoint,
    )
    if options.store == "sqlite":
        report, killed = run()
    else:
        with running(lambda: PostgreSQL(fsync=True)) as server:
            report, killed = run(database=lambda folder: PostgreSQLUnderTest(server))
    rate = sum(killed.values()) / (time.monotonic() - started)
    print(
        f"{sum(killed.values()):,} whole servers killed, {options.guarantee},"
        f" {options.store}, {rate:.1f} a second"
    )
    for point, number in killed.most_common():
        print(f"  {point:20} {number:,}")
    print(summary(report))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
