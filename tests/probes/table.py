"""Run the probes and print their outcome as a Markdown table: `python -m tests.probes.table`."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

PROBES = {
    1: "replay: status, body, headers",
    2: "replay is marked",
    3: "50 at once: one effect",
    4: "losers wait, or 409 + `Retry-After`",
    5: "same key, other body: refused",
    6: "same key, other path or method: refused",
    7: "another caller's key is another key",
    8: "missing key: refused where required",
    9: "bad keys refused, quoted = bare",
    10: "handler writes, then raises or answers 503; retry: one effect",
    11: "client disconnects; retry: the answer",
    12: "`kill -9` before the effect; retry runs",
    13: "`kill -9` at the commit; retry: one effect, one answer",
    14: "two worker processes: one effect",
    15: "stream: first byte at once, never run again",
    16: "2 MB answer, 20 MB upload: replayed",
    17: "binary, text, 204, redirect, cookies: replayed",
    18: "handler outlives its lease: one effect",
    19: "store down: 503; dies midway: undone",
    20: "kept as long as was said",
}
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
