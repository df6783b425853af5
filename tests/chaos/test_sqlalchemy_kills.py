"""Real `kill -9`, SIGSTOP and crashes of MariaDB under SQLAlchemy, judged by the checker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.chaos.databases import DATABASE
from lab.chaos.databases_sqlalchemy import database_on
from lab.chaos.kills import storm, zombies
from lab.judge.findings import summary
from semel.core.commands import Complete
from semel.stores.portable.commands import PortableCommands
from semel.stores.portable.connection import SQLConnection
from semel.testing.servers import MariaDB, PostgreSQL, running

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=[MariaDB, PostgreSQL])
def server(request: pytest.FixtureRequest) -> Iterator[MariaDB | PostgreSQL]:
    """Of its own, for it is crashed too."""
    with running(request.param) as made:
        yield made


def test_atomic_survives_kills_at_every_failpoint_and_at_any_time(
    server: MariaDB | PostgreSQL,
) -> None:
    report, killed = storm("atomic", 60, seed=1, database=database_on(server))
    print(summary(report), killed)
    report.require("S1", "S2", "S3", "S8", "S15", "L1")
    assert not report.admitted
    assert killed[DATABASE]


@pytest.mark.parametrize("point", ["before_commit", "after_commit", "in_migration"])
def test_a_failpoint_is_reached_and_kills(server: MariaDB | PostgreSQL, point: str) -> None:
    report, killed = storm("atomic", 2, seed=7, point=point, database=database_on(server))
    assert killed[point] >= 2
    report.require("S1", "S2")


def test_at_least_once_is_shown_to_double(server: MariaDB | PostgreSQL) -> None:
    report, _ = storm(
        "at-least-once", 12, seed=3, point="before_complete", database=database_on(server)
    )
    report.require("S2", "S3")
    assert report.admitted, "the documented weakness did not show: the docs or the rig are wrong"


def test_zombies_are_fenced(server: MariaDB | PostgreSQL) -> None:
    report = zombies("atomic", 8, database=database_on(server))
    report.require("S1", "S2", "S3")


def unfenced(self: PortableCommands, connection: SQLConnection, command: Complete) -> bool:
    """Planted bug: whoever completes is believed, whatever token it holds."""
    honest(self, connection, command)
    return True


honest = PortableCommands.complete


def test_without_the_fence_zombies_are_caught_doubling(
    server: MariaDB | PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PortableCommands, "complete", unfenced)
    report = zombies("atomic", 8, database=database_on(server))
    assert any(violation.invariant == "S1" for violation in report.violations)
