"""Whole servers under `kill -9`, with clients that retry over HTTP until they know."""

from __future__ import annotations

import pytest

from lab.chaos.databases import PostgreSQLUnderTest
from lab.chaos.servers import whole_servers
from lab.judge.findings import summary
from semel.testing.servers import PostgreSQL, running

pytestmark = pytest.mark.chaos


def test_atomic_survives_the_death_of_whole_servers() -> None:
    report, killed = whole_servers("atomic", 25, seed=1)
    print(summary(report), killed)
    report.require("S1", "S2", "S3", "S8", "L1")
    assert not report.admitted
    assert sum(killed.values()) >= 25


@pytest.mark.parametrize("point", ["before_answer", "after_answer"])
def test_an_answer_that_was_lost_on_its_way_is_replayed(point: str) -> None:
    report, killed = whole_servers("atomic", 3, seed=2, point=point)
    assert killed[point] >= 3
    report.require("S1", "S2", "S3")


def test_at_most_once_never_doubles_over_http() -> None:
    report, _ = whole_servers("at-most-once", 15, seed=3)
    report.require("S1", "S2", "L1")
    assert not report.admitted


def test_at_least_once_is_shown_to_double_over_http() -> None:
    report, _ = whole_servers("at-least-once", 8, seed=4, point="before_complete")
    report.require("S2", "S3")
    assert report.admitted, "the documented weakness did not show: the docs or the rig are wrong"


def test_atomic_survives_the_death_of_whole_servers_on_postgresql() -> None:
    with running(PostgreSQL) as server:
        report, killed = whole_servers(
            "atomic", 12, seed=5, database=lambda folder: PostgreSQLUnderTest(server)
        )
    print(summary(report), killed)
    report.require("S1", "S2", "S3", "S8", "L1")
    assert not report.admitted
    assert sum(killed.values()) >= 12
