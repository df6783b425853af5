"""Real `kill -9`, SIGSTOP and crashes of the database on PostgreSQL, judged by the checker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lab.chaos.databases import DATABASE, PostgreSQLUnderTest
from lab.chaos.kills import storm, zombies
from lab.judge.findings import summary
from semel.core.commands import Complete, Open
from semel.stores.postgres.messages import Message, Statement
from semel.stores.postgres.transaction import PostgreSQLTransaction
from semel.testing.servers import PgBouncer, PostgreSQL, running

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with running(PostgreSQL) as made:
        yield made


def test_atomic_survives_kills_at_every_failpoint_and_at_any_time(server: PostgreSQL) -> None:
    report, killed = storm(
        "atomic", 150, seed=1, database=lambda folder: PostgreSQLUnderTest(server)
    )
    print(summary(report), killed)
    report.require("S1", "S2", "S3", "S8", "S15", "L1")
    assert not report.admitted
    assert killed[DATABASE]


def test_the_migration_survives_kills(server: PostgreSQL) -> None:
    report, killed = storm(
        "atomic",
        2,
        seed=2,
        point="in_migration",
        database=lambda folder: PostgreSQLUnderTest(server),
    )
    assert killed["in_migration"] >= 2
    report.require("S1", "S2")


def test_at_least_once_is_shown_to_double(server: PostgreSQL) -> None:
    report, _ = storm(
        "at-least-once",
        20,
        seed=3,
        point="before_complete",
        database=lambda f: PostgreSQLUnderTest(server),
    )
    report.require("S2", "S3")
    assert report.admitted, "the documented weakness did not show: the docs or the rig are wrong"


def test_at_most_once_parks_and_never_doubles(server: PostgreSQL) -> None:
    report, killed = storm(
        "at-most-once", 60, seed=5, database=lambda folder: PostgreSQLUnderTest(server)
    )
    report.require("S1", "S2", "S3", "L1")
    assert not report.admitted
    assert killed["before_park"] or killed["after_park"]


def test_zombies_are_fenced(server: PostgreSQL) -> None:
    report = zombies("atomic", 12, database=lambda folder: PostgreSQLUnderTest(server))
    report.require("S1", "S2", "S3")


def test_atomic_survives_kills_behind_pgbouncer_in_transaction_mode(server: PostgreSQL) -> None:
    with running(lambda: PgBouncer(server, pool=20)) as bouncer:
        report, killed = storm(
            "atomic", 40, seed=8, database=lambda folder: PostgreSQLUnderTest(server, bouncer)
        )
    print(summary(report), killed)
    report.require("S1", "S2", "S3", "S8", "S15", "L1")
    assert not report.admitted


honest = PostgreSQLTransaction._message
FORGET = Statement(b"forget", b"delete from semel_record where key = $1", (17,))


def unfenced(self: PostgreSQLTransaction, connection: Any, command: Complete) -> Message:
    """Planted bug: whoever completes commits, whatever record is there."""
    self._opened = self._opened or Open(command.key, b"\x01" + bytes(32), b"owner")
    self.token = command.token
    return ((FORGET, (command.key,)), *honest(self, connection, command))


def test_without_the_fence_zombies_are_caught_doubling(
    server: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PostgreSQLTransaction, "_message", unfenced)
    report = zombies("atomic", 12, database=lambda folder: PostgreSQLUnderTest(server))
    assert any(violation.invariant == "S1" for violation in report.violations)
