"""Run the probes and print their outcome as a Markdown table: `python -m tests.probes.table`."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from docs.probes_table import PROBES

KINDS = {"asgi": "Semel ASGI (FastAPI, uvicorn)", "wsgi": "Semel WSGI (Flask, gunicorn)"}


class Outcomes:
    """Collects what pytest reports, by probe and kind of server."""

    def __init__(self) -> None:
        self.passed: defaultdict[tuple[int, str], list[bool]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = re.search(r"::test_probe_(\d+)_\w+\[(\w+)", report.nodeid)
        if name is not None and (report.when == "call" or report.failed):
            self.passed[int(name[1]), name[2]].append(report.passed)

    def cell(self, probe: int, kind: str) -> str:
        passed = self.passed[probe, kind]
        if not passed:
            return "not run"
        return "ok" if all(passed) else "**F**"


def main() -> int:
    """Print the table; the exit code is pytest's."""
    outcomes = Outcomes()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main(["-q", "-p", "no:cacheprovider", str(Path(__file__).parent)], [outcomes])
    print(f"| probe | {' | '.join(KINDS.values())} |")
    print("|---|" + "---|" * len(KINDS))
    for probe, what in PROBES.items():
        cells = " | ".join(outcomes.cell(probe, kind) for kind in KINDS)
        print(f"| {probe}. {what} | {cells} |")
    if code:
        print(said.getvalue(), file=sys.stderr)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
