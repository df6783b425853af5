"""Real processes, really killed: the engine, the drivers and the stores under `kill -9`.

`python -m lab.chaos.kills --kills 2000` forks servers from a warm parent, kills each at a named
failpoint or at a random moment, lets other servers finish what was begun, and hands the history of
what the clients saw, with the rows that are really there, to the checker.

The truth is not taken from Semel's own table: effects are rows of a business table (atomic) or
lines of a file (the other guarantees), and the clients' log is a file of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, get_args

from lab.chaos.databases import (
    DATABASE,
    DatabaseUnderTest,
    PostgreSQLUnderTest,
    SQLiteUnderTest,
    ThreadsApart,
)
from lab.chaos.databases_redis import RedisUnderTest, always_written
from lab.judge.checker import check
from lab.judge.contract import Promise
from lab.judge.findings import HistoryReport, merged, summary
from lab.judge.history import (
    KIND_OF_PROBLEM,
    Effect,
    Event,
    FinalRecord,
    History,
    ResponseSeen,
    Restarted,
    Sent,
    Surveyed,
)
from lab.judge.history_file import dump, dump_event, load
from semel import failpoints
from semel.core.commands import Answer, StoreError
from semel.core.engine import Deliver, Outcome, Refuse, Replay, Request, run
from semel.core.keys import hash_key
from semel.core.policy import Guarantee, Policy
from semel.core.problems import HANDLER_FAILED
from semel.core.record import Response
from semel.idempotency import Idempotency
from semel.operation import AsyncOperation, Operation
from semel.runtime.drivers import AsyncDriver, ThreadDriver
from semel.stores.sqlite import checkpoints as sqlite_checkpoints
from semel.testing.servers import PostgreSQL, running

SCOPE = "chaos"
FINGERPRINT = "charge"
LEASE = timedelta(milliseconds=100)
RAISED, RAISES = 402, 4
"""What every fourth handler raises, once it has written, and its framework answers with."""
STATES = {1: "in_flight", 2: "completed", 3: "parked", 4: "expired"}

FIRST_RUN = SQLiteUnderTest.points
"""Failpoints that a server meets while it serves new keys."""
SECOND_RUN = {
    "atomic": ("before_takeover", "after_takeover"),
    "at-least-once": ("before_takeover", "after_takeover"),
    "at-most-once": ("before_park", "after_park"),
}
"""Failpoints met by the server that comes after a crash."""
NOTHING_TO_LOSE = frozenset({"before_claim", "in_migration", "in_sweep"})
"""Where a kill proves least, because nothing of the operation is under way; counted apart."""


class Killed(NamedTuple):
    """How one server ended."""

    point: str
    died: bool


class Rig:
    """A database, the clients' log and the far side's log; servers are forked here."""

    def __init__(self, folder: Path, guarantee: Guarantee, database: DatabaseUnderTest) -> None:
        self.folder = folder
        self.guarantee: Guarantee = guarantee
        self.database = database
        self._log = folder / "clients.jsonl"
        self._far_side = folder / "far-side.log"
        self._attempts = 0
        self._keys: list[str] = []

    # --- what a test or the command line does -----------------------------------------------

    def new_keys(self, count: int) -> list[str]:
        """Draw keys for new operations."""
        first = len(self._keys)
        keys = [f"{self.folder.name}-{number}" for number in range(first, first + count)]
        self._keys += keys
        return keys

    def fork(self, keys: Sequence[str], *, arm: str = "", threads: bool = False) -> int:
        """Start a server that is asked once for each of `keys`; return its process id."""
        attempts = range(self._attempts, self._attempts + len(keys))
        self._attempts += len(keys)
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            failpoints.arm(arm)
            sqlite_checkpoints.CHECKPOINT_CHANGES = 20
            asked = [(str(a), key) for a, key in zip(attempts, keys, strict=True)]
            self._serve(asked, threads=threads)
            status = 0
        except BaseException:  # noqa: BLE001  # said, and shown by the exit status
            traceback.print_exc()
        finally:
            os._exit(status)

    def join(self, child: int) -> bool:
        """Wait for a server's end. True: it was killed. Raises if it failed by itself."""
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            self._note(Restarted(time.time(), f"server {child}"))
            return True
        if status:
            raise RuntimeError(f"a server failed by itself, with status {status}")
        return False

    def judge(self) -> HistoryReport:
        """Survey what is there and have the history checked."""
        return check(self.history())

    def history(self) -> History:
        """Return everything that was seen and everything that is there."""
        now = time.time()
        promise = Promise(self.guarantee, effects_in_order=False, clock_error=5.0, raised=RAISED)
        with open(self._log, encoding="utf-8") as file:
            events: History = [promise, *load(file)]
        stored = self.database.states()
        events += [Effect(now, a, SCOPE, k, t, "database") for a, k, t in self.database.effects()]
        if self._far_side.exists():
            for line in self._far_side.read_text().splitlines():
                attempt, key, token = line.split()
                events.append(Effect(now, attempt, SCOPE, key, int(token), "elsewhere"))
        events.append(Surveyed(now))
        for key in self._keys:
            state = stored.get(hash_key(SCOPE, key))
            if state is not None:
                events.append(FinalRecord(now, SCOPE, key, STATES[state]))  # type: ignore[arg-type]
        return events

    # --- what a server does -----------------------------------------------------------------

    def _serve(self, asked: Sequence[tuple[str, str]], *, threads: bool) -> None:
        apart = threads and isinstance(self.database, ThreadsApart)
        store = self.database.thread_store() if apart else self.database.store()  # type: ignore[attr-defined]
        idempotency = Idempotency(store, sweep_every=None)
        while not idempotency.ready():  # its database may just be starting
            time.sleep(0.05)
        if threads:
            for attempt, key in asked:
                self._on_thread(idempotency, attempt, key)
        else:
            asyncio.run(self._on_loop(idempotency, asked))
        with contextlib.suppress(StoreError):
            idempotency.sweep()
        idempotency.stop()

    def policy(self) -> Policy:
        """Return the rules that every operation is run by."""
        return Policy(guarantee=self.guarantee, lease=LEASE)

    def fingerprint(self, algorithm: int) -> bytes:
        """Return the fingerprint of what is asked for, the same every time."""
        return b"\x01" + bytes(32)

    def _life(self, idempotency: Idempotency, attempt: str, key: str) -> tuple[Any, ...]:
        policy = self.policy()
        name = hash_key(SCOPE, key)
        request = Request(name, idempotency.operations.owner(), self.fingerprint)
        # Where a transaction can be the claim, some claims are records all the same: as while a
        # policy is being changed, server by server.
        opens = idempotency.operations.opens(policy) and not _unlucky(attempt, 3)
        life = run(request, policy, idempotency.operations.look_up(name), opens=opens)
        return idempotency.runtime, life, name, policy

    async def _on_loop(self, idempotency: Idempotency, asked: Sequence[tuple[str, str]]) -> None:
        await asyncio.gather(*(self._one(idempotency, *each) for each in asked))

    async def _one(self, idempotency: Idempotency, attempt: str, key: str) -> None:
        self._sent(attempt, key)
        driver = AsyncDriver(*self._life(idempotency, attempt, key))
        outcome = await driver.begin()
        answer, raised = HANDLER_FAILED.response(), False
        if outcome is None:
            if _unlucky(attempt, 7):
                outcome = await driver.finish(Answer(answer))  # the handler raised
            else:
                await asyncio.sleep(0.06 if _unlucky(attempt, 5) else 0)
                atomic = self.guarantee == "atomic"
                if atomic:
                    try:
                        connection = await AsyncOperation(driver).connection()
                        await connection.execute(*self._insert(driver, attempt, key))
                        answer, raised = _answer(attempt), _unlucky(attempt, RAISES)
                    except Exception:  # noqa: BLE001  # its database has crashed: it raises
                        atomic = False
                else:
                    self._elsewhere(driver, attempt, key)
                    answer = _answer(attempt)
                outcome = await driver.finish(Answer(answer, atomic, raised=raised))
        self._answered(attempt, outcome, answer)

    def _on_thread(self, idempotency: Idempotency, attempt: str, key: str) -> None:
        self._sent(attempt, key)
        driver = ThreadDriver(*self._life(idempotency, attempt, key))
        outcome = driver.begin()
        answer, raised = HANDLER_FAILED.response(), False
        if outcome is None:
            if _unlucky(attempt, 7):
                outcome = driver.finish(Answer(answer))
            else:
                time.sleep(0.06 if _unlucky(attempt, 5) else 0)
                atomic = self.guarantee == "atomic"
                if atomic:
                    try:
                        connection = Operation(driver).connection()
                        connection.execute(*self._insert(driver, attempt, key))
                        answer, raised = _answer(attempt), _unlucky(attempt, RAISES)
                    except Exception:  # noqa: BLE001  # its database has crashed: it raises
                        atomic = False
                else:
                    self._elsewhere(driver, attempt, key)
                    answer = _answer(attempt)
                outcome = driver.finish(Answer(answer, atomic, raised=raised))
        self._answered(attempt, outcome, answer)

    def _insert(self, driver: AsyncDriver | ThreadDriver, attempt: str, key: str) -> Any:
        assert driver.claim is not None
        row = {"attempt": attempt, "key": key, "token": driver.claim.token}
        return self.database.insert, row

    def _elsewhere(self, driver: AsyncDriver | ThreadDriver, attempt: str, key: str) -> None:
        """An effect in somebody else's system: done as soon as it is asked for."""
        assert driver.claim is not None
        append(self._far_side, f"{attempt} {key} {driver.claim.token}\n")

    def _sent(self, attempt: str, key: str) -> None:
        self._note(Sent(time.time(), attempt, SCOPE, key, FINGERPRINT))

    def _answered(self, attempt: str, outcome: Outcome, answer: Response) -> None:
        now = time.time()
        if isinstance(outcome, Deliver) and outcome.kept:
            event = ResponseSeen(now, attempt, "ok", answer.status, answer.body or b"")
        elif isinstance(outcome, Replay):
            body = outcome.response.body or b""
            event = ResponseSeen(now, attempt, "ok", outcome.response.status, body, (), True)
        elif isinstance(outcome, Refuse):
            problem = outcome.problem
            kind = KIND_OF_PROBLEM[problem.slug]
            event = ResponseSeen(now, attempt, kind, problem.status, problem.slug.encode())
        else:
            event = ResponseSeen(now, attempt, "released", 500, b"")
        self._note(event)

    def _note(self, event: Event) -> None:
        append(self._log, dump_event(event) + "\n")


def _unlucky(attempt: str, one_in: int) -> bool:
    """Choose some attempts, the same whichever process asks."""
    return hash_key("luck", f"{attempt}/{one_in}")[0] % one_in == 0


def _answer(attempt: str) -> Response:
    status = RAISED if _unlucky(attempt, RAISES) else 201
    return Response(status, (), f"by {attempt}".encode())


def append(path: Path, line: str) -> None:
    """Write a line that survives a kill of whoever wrote it."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def storm(
    guarantee: Guarantee,
    kills: int,
    *,
    seed: int = 1,
    point: str | None = None,
    database: Callable[[Path], DatabaseUnderTest] = SQLiteUnderTest,
) -> tuple[HistoryReport, Counter[str]]:
    """Kill that many servers; return the verdict and the kills by failpoint.

    `point` names one failpoint, or "random" for kills at random times; None takes all of them.
    """
    rng = random.Random(seed)
    killed: Counter[str] = Counter()
    reports: list[HistoryReport] = []
    while sum(killed.values()) < kills:
        folder = Path(tempfile.mkdtemp(prefix="semel-chaos-"))
        try:
            rig = Rig(folder, guarantee, database(folder))
            for _ in range(1 if point == "in_migration" else 6):  # only without records
                killed.update(_one_batch(rig, rng, point))
                if sum(killed.values()) >= kills:
                    break
            reports.append(rig.judge())
            if not reports[-1].ok:
                _keep(rig)
                break
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return merged(reports), killed


def _one_batch(rig: Rig, rng: random.Random, point: str | None) -> Iterator[str]:
    """Kill ten servers, each with keys of its own; then finish all that they began."""
    begun: list[str] = []
    points = [*rig.database.points, *["random"] * 5] if point is None else [point]
    for _ in range(1 if point == "in_migration" else 10):
        keys = rig.new_keys(rng.choice([1, 3, 6]))
        begun += keys
        asked = keys * 2  # everything is double-clicked
        rng.shuffle(asked)
        chosen = rng.choice(points)
        if chosen in SECOND_RUN[rig.guarantee]:
            chosen = "after_claim"
        if chosen == "in_migration":
            rig.database.forget_tables()
        if _kill(rig, asked, chosen, rng):
            yield chosen
    time.sleep(LEASE.total_seconds())
    for chosen in SECOND_RUN[rig.guarantee]:
        if point in (None, chosen) and _kill(rig, begun, chosen, rng):
            yield chosen
            time.sleep(LEASE.total_seconds())
    for _ in range(3):  # what raised and was released is tried again, as a client would
        assert not rig.join(rig.fork(begun, threads=False))
    assert not rig.join(rig.fork(begun, threads=True))


def _kill(rig: Rig, asked: Sequence[str], point: str, rng: random.Random) -> bool:
    threads = rng.random() < 0.4
    if point == "random":
        child = rig.fork(asked, threads=threads)
        time.sleep(rng.uniform(0.002, 0.05))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        return rig.join(child)
    if point == DATABASE:
        child = rig.fork(asked, threads=threads)
        time.sleep(rng.uniform(0.02, 0.06))
        rig.database.crash()
        assert not rig.join(child)
        return True
    count = rng.choice([1, 1, 1, 2, 3])
    return rig.join(rig.fork(asked, arm=f"{point}:{count}=kill", threads=threads))


def _keep(rig: Rig) -> None:
    """Write the history of a violation where it can be judged again."""
    path = Path(tempfile.gettempdir()) / f"{rig.folder.name}.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        dump(rig.history(), file)
    print(f"history kept: {path}", file=sys.stderr)


def zombies(
    guarantee: Guarantee,
    count: int,
    *,
    database: Callable[[Path], DatabaseUnderTest] = SQLiteUnderTest,
) -> HistoryReport:
    """Stop servers past their lease (SIGSTOP), let others take over, and wake them up again.

    Atomic: stopped before they take the connection, for a stopped holder of SQLite's one write lock
    holds everybody up. Otherwise: stopped between the effect and its record.
    """
    point = "after_claim" if guarantee == "atomic" else "before_complete"
    folder = Path(tempfile.mkdtemp(prefix="semel-zombies-"))
    try:
        rig = Rig(folder, guarantee, database(folder))
        for number in range(count):
            keys = [rig.new_keys(1)[0]]
            zombie = rig.fork(keys, arm=f"{point}=stop", threads=number % 2 == 0)
            _, status = os.waitpid(zombie, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                continue  # its handler was to raise
            time.sleep(LEASE.total_seconds() * 1.2)
            for _ in range(3):
                rig.join(rig.fork(keys))
            os.kill(zombie, signal.SIGCONT)
            rig.join(zombie)
            rig.join(rig.fork(keys))
        return rig.judge()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


TITLES = {
    "sqlite": SQLiteUnderTest.title,
    "postgresql": PostgreSQLUnderTest.title,
    "redis": RedisUnderTest.title,
    "sqlalchemy-mariadb": "SQLAlchemy on MariaDB",
    "sqlalchemy-postgresql": "SQLAlchemy on PostgreSQL fsync=on",
}
SHARE = 50
"""Kills between two lines of progress, and to a worker process at a time."""


def _share(todo: tuple[str, Guarantee, int, int, str | None]) -> tuple[HistoryReport, Counter[str]]:
    store, guarantee, kills, seed, point = todo
    if store == "sqlite":
        return storm(guarantee, kills, seed=seed, point=point)
    if store.startswith("sqlalchemy"):
        from lab.chaos.databases_sqlalchemy import SERVERS, database_on

        with running(SERVERS[store]) as own:
            return storm(guarantee, kills, seed=seed, point=point, database=database_on(own))
    if store == "redis":
        with running(always_written) as valkey:
            return storm(
                guarantee, kills, seed=seed, point=point, database=lambda _: RedisUnderTest(valkey)
            )
    with running(lambda: PostgreSQL(fsync=True)) as server:  # of its own, for it is crashed too
        return storm(
            guarantee,
            kills,
            seed=seed,
            point=point,
            database=lambda folder: PostgreSQLUnderTest(server),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a storm from the command line; return 0 only without a violation."""
    parser = argparse.ArgumentParser(prog="python -m lab.chaos.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--guarantee", choices=get_args(Guarantee), default="atomic")
    parser.add_argument("--store", choices=list(TITLES), default="sqlite")
    parser.add_argument("--failpoint", default=None, help='one of them, or "random"; default: all')
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    if options.store == "redis" and options.guarantee == "atomic":
        parser.error("redis is never atomic with an effect: add --guarantee at-most-once")
    return _run(options, TITLES[options.store])


def _run(options: argparse.Namespace, title: str) -> int:
    started = time.monotonic()
    shares = range(0, options.kills, SHARE)
    todo = [
        (
            options.store,
            options.guarantee,
            min(SHARE, options.kills - done),
            options.seed + done,
            options.failpoint,
        )
        for done in shares
    ]
    reports: list[HistoryReport] = []
    killed: Counter[str] = Counter()
    with multiprocessing.get_context("fork").Pool(options.processes) as pool:
        for report, points in pool.imap_unordered(_share, todo):
            reports.append(report)
            killed.update(points)
            done = sum(killed.values())
            rate = done / (time.monotonic() - started)
            print(f"{done:,} kills, {rate:.0f} a second", end="\r", file=sys.stderr, flush=True)
    report = merged(reports)
    print(file=sys.stderr)
    print(f"{sum(killed.values()):,} kills, {options.guarantee}, {title}")
    informative = sum(n for point, n in killed.items() if point not in NOTHING_TO_LOSE)
    print(f"{informative:,} of them with something to lose")
    for point, number in killed.most_common():
        print(f"  {point:20} {number:,}")
    print(summary(report))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
