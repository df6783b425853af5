"""Clients with a journal, killed while the shop is killed too.

`python -m lab.chaos.clients --kills 1000` forks clients (httpx, httpx async, requests)
that send one charge after the other, and kills each at a failpoint of `semel.client` or at a random
moment. The next one on the same journal resumes what it finds, and goes on. Meanwhile the shop, a
FastAPI app under uvicorn with Semel in atomic mode on SQLite, is killed and started again.

The truth is not taken from the journal: intents, keys, what had become durable, and what came to
the shop, each go to a file of their own; effects are the rows of the shop's table.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import math
import os
import random
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import requests
import uvicorn
from fastapi import FastAPI

from lab.chaos.forks import ended, fork
from lab.chaos.kills import append
from semel import failpoints
from semel.client import Budget, Journal, Retry, Unsettled, uuid7
from semel.client import journal_file as journal_files
from semel.client.httpx import AsyncRetryTransport, RetryTransport
from semel.client.requests import RetryAdapter
from semel.core.policy import Policy
from semel.failpoints import failpoint
from semel.idempotency import Idempotency
from semel.stores.sqlite import checkpoints as sqlite_checkpoints
from semel.web.fastapi import AsyncOp, init_app

POINTS = tuple(name for name in failpoints.NAMES if name.startswith("client_"))
"""Where a client is killed. `client_sent` is reached with httpx only, which tells of its steps."""
SHOP_POINTS = (
    "before_claim",
    "after_claim",
    "in_commit",
    "after_commit",
    "after_complete",
    "before_answer",
    "after_answer",
)
LEASE = timedelta(milliseconds=200)
SLOTS = 2
"""Clients at a time, each with a journal of its own."""
KINDS = ("httpx", "async", "requests")


class ClientStormResult(NamedTuple):
    """What came of a storm."""

    killed: Counter[str]
    """Clients, by where."""
    shops_killed: int
    intents: int
    durable: int
    """Intents that were durable in a journal before their client died or went on."""
    effects: int
    unknowns: int
    """How often a client was told `Unsettled`."""
    resumed: int
    """Requests that a later client, or the end, settled."""
    left: int
    """Requests that no resume could settle, and that are still in a journal."""
    faults: list[str]
    """What must not be. Empty: every intent had one effect, or is explicitly unknown."""


class Storm:
    """A shop on a port, clients in slots, and the logs."""

    def __init__(self, folder: Path, rng: random.Random, points: Sequence[str]) -> None:
        self._folder = folder
        self._rng = rng
        self._points = points
        self._log = folder / "clients.log"
        self._wire = folder / "wire.log"
        self._log.touch()
        self._wire.touch()
        self._database = folder / "shop.db"
        with contextlib.closing(sqlite3.connect(self._database)) as connection:
            connection.execute("create table charge (intent, token)")
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/charges"
        self._lives = 0
        self._shops_killed = 0
        self._running: set[int] = set()

    def run(self, kills: int) -> ClientStormResult:
        """Kill that many clients, then let what is unfinished be resumed, and judge."""
        try:
            killed = self._rage(kills)
            self._settle()
        finally:
            for child in list(self._running):
                self._kill(child)
            self._listener.close()
        return self._judge(killed)

    def _rage(self, kills: int) -> Counter[str]:
        killed: Counter[str] = Counter()
        shop, shop_dies = self._open_shop()
        slots = [self._start_client(slot) for slot in range(SLOTS)]
        while sum(killed.values()) < kills:
            if self._over(shop, shop_dies) is not None:
                self._shops_killed += 1
                shop, shop_dies = self._open_shop()
            for slot, (client, point, dies) in enumerate(slots):
                how = self._over(client, dies)
                if how is None:
                    continue
                if how != "by itself":
                    killed[point if how == "killed itself" else "random"] += 1
                slots[slot] = self._start_client(slot)
            time.sleep(0.002)
        for child in list(self._running):
            self._kill(child)
        return killed

    def _fork(self, work: Callable[[], None]) -> int:
        child = fork(work)
        self._running.add(child)
        return child

    def _over(self, child: int, dies: float) -> str | None:
        """Say how a process ended, or end it if it is time to; None: it runs on."""
        death = ended(child)
        if death is not None:
            self._running.discard(child)
            return "killed itself" if death else "by itself"
        if time.monotonic() < dies:
            return None
        self._kill(child)
        return "killed"

    def _kill(self, child: int) -> None:
        self._running.discard(child)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def _settle(self) -> None:
        """With a shop that stays, resume each journal until nothing is unfinished."""
        self._fork(lambda: self._serve(""))
        for slot in range(SLOTS):
            settler = self._fork(partial(self._resume_all, slot))
            while self._over(settler, math.inf) is None:
                time.sleep(0.005)

    # --- the shop ---------------------------------------------------------------------------

    def _open_shop(self) -> tuple[int, float]:
        arm = f"{self._rng.choice(SHOP_POINTS)}:{self._rng.choice([3, 7, 20])}=kill"
        shop = self._fork(lambda: self._serve(arm))
        return shop, time.monotonic() + self._rng.uniform(0.3, 3.0)

    def _serve(self, arm: str) -> None:
        failpoints.arm(arm)
        sqlite_checkpoints.CHECKPOINT_CHANGES = 20
        logging.disable(logging.WARNING)
        app = FastAPI()

        @app.post("/charges", status_code=201)
        async def charge(order: dict[str, str], op: AsyncOp) -> dict[str, str]:
            db = await op.connection()
            await db.execute("insert into charge values (?, ?)", (order["intent"], op.token))
            return {"charged": order["intent"]}

        init_app(
            app,
            Idempotency(
                f"sqlite:///{self._database}",
                policy=Policy(guarantee="atomic", lease=LEASE, required=True),
                scope=lambda request: "chaos",
            ),
        )

        async def logged(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                headers = dict(scope["headers"])
                key, intent = headers[b"idempotency-key"], headers[b"x-intent"]
                append(self._wire, f"{intent.decode()} {key.decode()}\n")
            await app(scope, receive, send)

        uvicorn.Server(uvicorn.Config(logged, log_config=None)).run(sockets=[self._listener])

    # --- the clients ------------------------------------------------------------------------

    def _start_client(self, slot: int) -> tuple[int, str, float]:
        self._lives += 1
        life = f"{self._folder.name}-{slot}-{self._lives}"
        point, seed = self._rng.choice(self._points), self._rng.random()
        kind = self._rng.choice(KINDS[:2] if point == "client_sent" else KINDS)
        arm = "" if point == "random" else f"{point}:{self._rng.choice([1, 2, 3])}=kill"
        child = self._fork(lambda: self._live(slot, life, kind, arm, seed))
        wait = self._rng.uniform(0.01, 0.3) if point == "random" else 20.0
        return child, point, time.monotonic() + wait

    def _live(self, slot: int, life: str, kind: str, arm: str, seed: float) -> None:
        self._listener.close()
        journal_files.ROOM = 500
        with Journal(self._folder / f"{slot}.journal") as journal:
            client = _Client(self._log, journal, kind, seed)
            failpoints.observers.append(client.observe)
            failpoints.arm(arm)
            client.run(self._url, life)

    def _resume_all(self, slot: int) -> None:
        self._listener.close()
        with Journal(self._folder / f"{slot}.journal") as journal:
            client = _Client(self._log, journal, "httpx", 0.9)
            for _ in range(20):
                client.resume()
                if not journal.unfinished():
                    return
                time.sleep(LEASE.total_seconds())
            for request in journal.unfinished():
                append(self._log, f"left {request.key}\n")

    # --- the verdict ------------------------------------------------------------------------

    def _judge(self, killed: Counter[str]) -> ClientStormResult:
        drawn: dict[str, set[str]] = defaultdict(set)
        said: dict[str, set[str]] = defaultdict(set)
        counted: Counter[str] = Counter()
        for line in self._log.read_text().splitlines():
            what, name, *key = line.split()
            counted[what] += 1
            if what == "drawn":
                drawn[name].add(key[0])
            else:
                said[what].add(name)
        durable = said["journaled"] | said["found"]
        wire = {tuple(line.split()) for line in self._wire.read_text().splitlines()}
        with contextlib.closing(sqlite3.connect(self._database)) as connection:
            effects = Counter(row[0] for row in connection.execute("select intent from charge"))
        keys = {intent: key for intent, (key, *_) in drawn.items()}
        return ClientStormResult(
            killed,
            self._shops_killed,
            len(said["intent"]),
            sum(key in durable for key in keys.values()),
            sum(effects.values()),
            counted["unknown"],
            counted["resumed"],
            len(said["left"]),
            [
                *(f"{i}: {len(k)} keys were drawn" for i, k in drawn.items() if len(k) > 1),
                *(f"{i}: {n} effects" for i, n in effects.items() if n > 1),
                *(f"{i}: an effect nobody wanted" for i in effects if i not in said["intent"]),
                *(f"{i}: sent under {k}, drawn {keys[i]}" for i, k in wire if keys[i] != k),
                *(f"{i}: sent before it was durable" for i, k in wire if k not in durable),
                *(f"{i}: told it was done, no effect" for i in said["done"] if not effects[i]),
                *(
                    f"{intent}: durable, and lost"
                    for intent, key in keys.items()
                    if key in durable and not effects[intent] and key not in said["left"]
                ),
            ],
        )


class _Client:
    """One client of one kind on one journal, which writes down what it does before it does it."""

    def __init__(self, log: Path, journal: Journal, kind: str, seed: float) -> None:
        self._log = log
        self._journal = journal
        self._kind = kind
        self._key = self._intent = ""
        retry = Retry(deadline=2.0, pause=0.01, longest_pause=0.1, longest_retry_after=0.2)
        # Some run out of retries at once: what they give up, the next one resumes.
        budget = Budget(1.0, 100) if seed > 0.3 else Budget(0.1, 1)
        self._how: dict[str, Any] = {
            "retry": retry,
            "budget": budget,
            "journal": journal,
            "keys": self._draw,
        }

    def observe(self, point: str) -> None:
        """Write down what is durable: called before the kill of the same point."""
        if point == "client_journaled" and self._key:
            append(self._log, f"journaled {self._key}\n")

    def _draw(self) -> str:
        self._key = uuid7()
        append(self._log, f"drawn {self._intent} {self._key}\n")
        return self._key

    def run(self, url: str, life: str) -> None:
        """Resume, then send charges until somebody kills this process."""
        if self._kind == "async":
            asyncio.run(self._arun(url, life))
            return
        with self._client() as client:
            self._note_found()
            self._note_resumed(self._journal.resume(client))
            for body, headers in self._intents(life):
                with self._noting_unknown():
                    self._note_answer(client.post(url, json=body, headers=headers))

    async def _arun(self, url: str, life: str) -> None:
        transport = AsyncRetryTransport(_AsyncTraced(), **self._how)
        async with httpx.AsyncClient(transport=transport) as client:
            self._note_found()
            self._note_resumed(await self._journal.aresume(client))
            for body, headers in self._intents(life):
                with self._noting_unknown():
                    self._note_answer(await client.post(url, json=body, headers=headers))

    def resume(self) -> None:
        """Resume once."""
        with self._client() as client:
            self._note_found()
            self._note_resumed(self._journal.resume(client))

    def _client(self) -> Any:
        if self._kind == "requests":
            session = requests.Session()
            session.mount("http://", RetryAdapter(**self._how))
            return session
        return httpx.Client(transport=RetryTransport(_Traced(), **self._how))

    def _intents(self, life: str) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
        for number in range(300):
            self._intent, self._key = f"{life}-{number}", ""
            append(self._log, f"intent {self._intent}\n")
            yield {"intent": self._intent}, {"X-Intent": self._intent}

    def _note_found(self) -> None:
        for request in self._journal.unfinished():
            append(self._log, f"found {request.key}\n")

    def _note_resumed(self, outcomes: Sequence[Any]) -> None:
        for outcome in outcomes:
            if outcome.response is not None:
                assert outcome.response.status_code == 201, outcome.response.text
                append(self._log, f"resumed {outcome.request.key}\n")

    def _note_answer(self, response: Any) -> None:
        assert response.status_code == 201, response.text
        assert json.loads(response.text) == {"charged": self._intent}
        append(self._log, f"done {self._intent}\n")

    @contextlib.contextmanager
    def _noting_unknown(self) -> Iterator[None]:
        try:
            yield
        except Unsettled as error:
            append(self._log, f"unknown {error.key}\n")


def _sent(event: str, info: object) -> None:
    if event == "http11.send_request_body.complete":
        failpoint("client_sent")


async def _asent(event: str, info: object) -> None:
    _sent(event, info)


class _Traced(httpx.HTTPTransport):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions = {**request.extensions, "trace": _sent}
        return super().handle_request(request)


class _AsyncTraced(httpx.AsyncHTTPTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions = {**request.extensions, "trace": _asent}
        return await super().handle_async_request(request)


def storm(kills: int, *, seed: int = 1, point: str | None = None) -> ClientStormResult:
    """Kill that many clients, at `point` or everywhere; return the verdict."""
    points = [*POINTS, "random", "random"] if point is None else [point]
    folder = Path(tempfile.mkdtemp(prefix="semel-clients-"))
    verdict = None
    try:
        verdict = Storm(folder, random.Random(seed), points).run(kills)
        return verdict
    finally:
        if verdict is None or verdict.faults:
            print(f"logs kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill clients from the command line; return 0 only without a fault."""
    parser = argparse.ArgumentParser(prog="python -m lab.chaos.clients")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument(
        "--failpoint",
        default=None,
        choices=[*POINTS, "random", "each"],
        metavar="NAME",
        help='one of them, "random", or "each": so many kills at each; default: spread over all',
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    points = POINTS if options.failpoint == "each" else (options.failpoint,)
    verdicts = []
    for number, point in enumerate(points):
        started = time.monotonic()
        verdict = storm(options.kills, seed=options.seed + number, point=point)
        _report(verdict, time.monotonic() - started)
        verdicts.append(verdict)
    if len(verdicts) > 1:
        together = [sum(part) for part in zip(*(_numbers(v) for v in verdicts), strict=True)]
        print("in all:")
        _summary(together)
    faults = [fault for verdict in verdicts for fault in verdict.faults]
    print("every intent: one effect, or none and never durable" if not faults else "FAILED")
    return 1 if faults else 0


def _numbers(verdict: ClientStormResult) -> list[int]:
    return [sum(verdict.killed.values()), *verdict[1:-1]]


def _summary(numbers: Sequence[int]) -> None:
    kills, shops, intents, durable, effects, unknowns, resumed, left = numbers
    print(f"{kills:,} clients killed and {shops:,} shops")
    print(f"{intents:,} intents, {durable:,} of them durable")
    print(f"{effects:,} effects; {resumed:,} requests settled by resume")
    print(f"{unknowns:,} times a client was told: unknown; {left:,} are left so", flush=True)


def _report(verdict: ClientStormResult, seconds: float) -> None:
    for name, number in verdict.killed.most_common():
        print(f"  {name:22} {number:,}")
    _summary(_numbers(verdict))
    print(f"{seconds:.0f} s")
    for fault in verdict.faults:
        print(f"FAULT {fault}")


if __name__ == "__main__":
    sys.exit(main())
