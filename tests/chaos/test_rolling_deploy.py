"""Two versions of Semel on one store, as while servers are replaced one by one (F42).

The other version is emulated in the forked server: it writes answers in a newer form, and
fingerprints by an algorithm, that this version does not know, and reads both its own and ours.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.chaos.databases import DatabaseUnderTest, PostgreSQLUnderTest, SQLiteUnderTest
from lab.chaos.kills import LEASE, Rig
from lab.judge.checker import check
from lab.judge.findings import summary
from lab.judge.history import ResponseSeen
from semel.core import record
from semel.core.policy import Policy
from semel.core.record import UnreadableRecord
from semel.idempotency import Idempotency
from semel.testing.servers import PostgreSQL, running

pytestmark = pytest.mark.chaos
OURS, NEWER = 1, 2
ALGORITHM = {OURS: 1, NEWER: 9}
POINTS = ("after_claim", "before_complete", "before_commit", "after_commit", "after_takeover")


class Deploy(Rig):
    """ServerRig of two versions; `version` is that of the next one."""

    version = OURS

    def __init__(self, folder: Path, database: DatabaseUnderTest) -> None:
        super().__init__(folder, "atomic", database)
        self.asked: dict[str, int] = {}
        """Which version each attempt was sent to."""

    def fork(self, keys: Sequence[str], *, arm: str = "", threads: bool = False) -> int:
        first = self._attempts
        child = super().fork(keys, arm=arm, threads=threads)
        self.asked |= {str(first + n): self.version for n in range(len(keys))}
        return child

    def _serve(self, asked: Sequence[tuple[str, str]], *, threads: bool) -> None:
        if self.version == NEWER:
            record._VERSION = 2
            record._READS = frozenset({1, 2})
        super()._serve(asked, threads=threads)

    def policy(self) -> Policy:
        policy = super().policy()
        policy.__dict__["algorithm"] = ALGORITHM[self.version]
        return policy

    def fingerprint(self, algorithm: int) -> bytes:
        known = (1,) if self.version == OURS else (1, 9)
        if algorithm not in known:
            raise ValueError(f"unknown fingerprint algorithm {algorithm}")
        return bytes([algorithm]) + bytes(32)

    async def _one(self, idempotency: Idempotency, attempt: str, key: str) -> None:
        try:
            await super()._one(idempotency, attempt, key)
        except UnreadableRecord:
            self._refused(attempt)

    def _on_thread(self, idempotency: Idempotency, attempt: str, key: str) -> None:
        try:
            super()._on_thread(idempotency, attempt, key)
        except UnreadableRecord:
            self._refused(attempt)

    def _refused(self, attempt: str) -> None:
        """As the adapters do: 503, and nothing runs."""
        self._note(ResponseSeen(time.time(), attempt, "refused", 503, b"store-unavailable"))


def deploy(rig: Deploy, rng: random.Random, rounds: int) -> None:
    """Send everything to both versions in any order, some of whose servers are killed."""
    for _ in range(rounds):
        keys = rig.new_keys(6)
        for _ in range(4):
            rig.version = rng.choice([OURS, NEWER])
            point = rng.choice([*POINTS, "", ""])
            arm = f"{point}:{rng.choice([1, 2, 3])}=kill" if point else ""
            asked = rng.sample(keys * 2, 8)
            rig.join(rig.fork(asked, arm=arm, threads=rng.random() < 0.4))
        time.sleep(LEASE.total_seconds())
        for version in (OURS, NEWER, OURS, NEWER, NEWER, NEWER):
            rig.version = version
            assert not rig.join(rig.fork(keys))


def across(rig: Deploy) -> Counter[str]:
    """Count what crossed from one version to the other."""
    seen: Counter[str] = Counter()
    for event in rig.history():
        if not isinstance(event, ResponseSeen):
            continue
        version = rig.asked[event.attempt]
        if event.status == 503:
            seen[f"{version} refused"] += 1
        elif event.replayed:
            seen[f"{version} replayed {rig.asked[event.body.split()[-1].decode()]}"] += 1
    return seen


@contextmanager
def sqlite(folder: Path) -> Iterator[DatabaseUnderTest]:
    yield SQLiteUnderTest(folder)


@contextmanager
def postgresql(folder: Path) -> Iterator[DatabaseUnderTest]:
    with running(PostgreSQL) as server:
        yield PostgreSQLUnderTest(server)


@pytest.mark.parametrize("on", [sqlite, postgresql])
def test_two_versions_share_a_store_without_a_double_effect(
    tmp_path: Path, on: Callable[[Path], Any]
) -> None:
    with on(tmp_path) as database:
        rig = Deploy(tmp_path, database)
        deploy(rig, random.Random(1), 6)
        report = check(rig.history())
        seen = across(rig)
    print(summary(report), seen)
    report.require("S1", "S2", "S3", "S8", "L1")
    assert not report.admitted
    assert seen["2 replayed 1"] >= 3  # byte for byte: S3
    assert seen["1 refused"] >= 3
    assert not seen["1 replayed 2"]
    assert not seen["2 refused"]
