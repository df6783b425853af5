"""Real `kill -9` and SIGSTOP on SQLite, judged by the history checker."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest

from lab.chaos.databases import SQLiteUnderTest
from lab.chaos.kills import FIRST_RUN, SECOND_RUN, storm, zombies
from lab.judge.findings import summary
from semel.core.commands import Complete
from semel.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("seed", [1, 2])
def test_atomic_survives_kills_at_every_failpoint_and_at_any_time(seed: int) -> None:
    report, killed = storm("atomic", 150, seed=seed)
    print(summary(report), killed)
    report.require("S1", "S2", "S3", "S8", "S15", "L1")
    assert not report.admitted


@pytest.mark.parametrize("point", [*FIRST_RUN, *SECOND_RUN["atomic"]])
def test_every_failpoint_is_reached_and_kills(point: str) -> None:
    report, killed = storm("atomic", 3, seed=7, point=point)
    assert killed[point] >= 1
    report.require("S1", "S2")


def test_at_least_once_is_shown_to_double() -> None:
    report, _ = storm("at-least-once", 25, seed=3, point="before_complete")
    print(summary(report))
    report.require("S2", "S3")
    assert report.admitted, "the documented weakness did not show: the docs or the rig are wrong"


def test_at_least_once_keeps_what_it_does_promise() -> None:
    report, _ = storm("at-least-once", 60, seed=4)
    report.require("S2", "S3", "L1")


def test_at_most_once_parks_and_never_doubles() -> None:
    report, killed = storm("at-most-once", 90, seed=5)
    print(summary(report), killed)
    report.require("S1", "S2", "S3", "L1")
    assert not report.admitted
    assert killed["before_park"] or killed["after_park"]


def test_zombies_are_fenced() -> None:
    report = zombies("atomic", 20)
    print(summary(report))
    report.require("S1", "S2", "S3")


class NoFence(SQLiteStore):
    """Planted bug: whoever completes is believed, whatever token it holds."""

    def complete(self, connection: sqlite3.Connection, command: Complete) -> bool:
        super().complete(connection, command)
        return True


def test_without_the_fence_zombies_are_caught_doubling() -> None:
    report = zombies("atomic", 6, database=lambda folder: SQLiteUnderTest(folder, NoFence))
    assert any(violation.invariant == "S1" for violation in report.violations)


class EarlyWord(SQLiteStore):
    """Planted bug: the record is completed beside the business transaction, before it commits."""

    def complete(self, connection: sqlite3.Connection, command: Complete) -> bool:
        connection.execute("rollback to semel_turn /* semel */")
        return super().complete(connection, command)


def test_a_record_without_its_effect_is_caught(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    report, _ = storm(
        "atomic", 5, seed=6, database=lambda folder: SQLiteUnderTest(folder, EarlyWord)
    )
    assert any(violation.invariant == "S2" for violation in report.violations)


def test_histories_of_violations_are_kept(capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    storm("atomic", 2, seed=6, database=lambda folder: SQLiteUnderTest(folder, EarlyWord))
    assert "history kept" in capsys.readouterr().err
    assert list(tmp_path.glob("*.jsonl"))
