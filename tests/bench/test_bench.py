"""The bench runs; its figures are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_bench_runs_and_draws(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--quick", "--out", str(tmp_path)]
    run = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    parts = {"in process", "sqlite", "servers", "on postgresql", "sweeping", "behind uvicorn"}
    assert set(results) == parts | {"gateway"}
    assert (tmp_path / "results.png").stat().st_size > 10_000
    assert "SQLite FULL, 128 at a time" in run.stdout
