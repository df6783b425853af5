"""The history checker: one judge for simulated, generated and real histories.

`python -m lab.judge.checker history.jsonl` judges a file again, offline.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

from lab.judge.contract import Guarantee, Promise
from lab.judge.findings import Findings, HistoryReport, summary
from lab.judge.history import Event, HistoryError
from lab.judge.history_file import load
from lab.judge.invariants.judges import JUDGES
from lab.judge.key_history import gather


def check(history: Iterable[Event], promise: Promise | None = None) -> HistoryReport:
    """Judge a history by the invariants S1-S10, S13, S15 and L1, in time linear in its length.

    Without a `promise` the history must begin with one. Keys are judged one by one: every attempt,
    effect and write names its own, so no search is needed. Of invariants whose events the history
    lacks nothing is judged, and `HistoryReport.checked` says so.

    Raises `HistoryError` where the history contradicts itself or promises nothing.
    """
    if promise is None:
        events = iter(history)
        first = next(events, None)
        if not isinstance(first, Promise):
            raise HistoryError("give a Promise, or a history that begins with one")
        promise = first
        history = itertools.chain((first,), events)
    with _collector_resting():
        return _judge(history, promise)


def _judge(history: Iterable[Event], promise: Promise) -> HistoryReport:
    evidence = gather(history, promise)
    findings = Findings()
    judges = tuple(JUDGES.values())
    for key_history in evidence.key_histories.values():
        for judge in judges:
            judge(key_history, evidence, findings)
    return HistoryReport(
        1,
        evidence.events,
        findings.checked,
        tuple(findings.violations),
        tuple(findings.admitted),
    )


@contextlib.contextmanager
def _collector_resting() -> Iterator[None]:
    """Let the cycle collector rest: there are no cycles, and it would walk the history over and
    over (a quarter of the time for 300,000 events)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the histories in files; return 0 if all hold, 1 for violations, 2 for bad files."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.judge.checker",
        description="Judge histories (JSONL) by the invariants of idempotency.",
    )
    parser.add_argument("histories", nargs="+", metavar="history.jsonl")
    parser.add_argument(
        "--guarantee",
        choices=get_args(Guarantee),
        help="judge by this guarantee, not by the promise that the history begins with",
    )
    parser.add_argument("--after-expiry", choices=("refuse", "run"), default="refuse")
    options = parser.parse_args(arguments)
    promise = None
    if options.guarantee is not None:
        promise = Promise(options.guarantee, after_expiry=options.after_expiry)
    worst = 0
    for path in options.histories:
        try:
            with open(path, encoding="utf-8") as file:
                report = check(load(file), promise)
        except (OSError, HistoryError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            worst = 2
            continue
        print(f"{path}: {summary(report)}")
        if not report.ok:
            worst = max(worst, 1)
    return worst


if __name__ == "__main__":
    sys.exit(main())
