"""The deterministic simulator: the real engine under crashes, pauses and faults, from one seed.

A third driver beside `semel.runtime.drivers`: it carries out what the engine and its steps yield in
virtual time, on a heap of events, with one random generator and no thread, socket or clock. The
store is the real `MemoryTable` (`store_model`), the far side of steps a model (`provider`). What
happens is a history, and the history checker judges it.

`python -m lab.sim.simulator --requests 1000000` runs until that many requests were sent.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import get_args

from lab.judge.checker import check
from lab.judge.findings import merged, summary
from lab.sim.simulation import Simulation
from lab.sim.swarm import Run, simulate, void_for
from semel.core.policy import Guarantee

SHARE = 200
"""Histories that a process runs at a time."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate from the command line; return 0 without a violation, 3 for a void run."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.sim.simulator",
        description="Simulate histories and judge them by the invariants of idempotency.",
    )
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1, help="of the first history")
    parser.add_argument("--guarantee", choices=get_args(Guarantee), default="atomic")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", type=int, help="show the history of this seed")
    options = parser.parse_args(arguments)
    if options.only is not None:
        return _show(options.only, options.guarantee)
    total = _run(options)
    print(f"{total.requests:,} requests, {options.guarantee}")
    for name, number in sorted(total.happened.items()):
        print(f"  {name:38} {number:,}")
    print(summary(total.report))
    if total.failed:
        print(f"seeds that failed: {total.failed[:20]}")
        return 1
    void = void_for(total.happened, options.guarantee)
    if void:
        print(f"VOID: never happened: {', '.join(void)}")
        return 3
    return 0


def _show(seed: int, guarantee: Guarantee) -> int:
    simulation = Simulation(seed, guarantee)
    print(simulation.profile)
    print(*simulation.live().history, sep="\n")
    report = check(simulation.history)
    print(summary(report))
    return 0 if report.ok else 1


def _run(options: argparse.Namespace) -> Run:
    started = time.monotonic()
    reports = []
    requests = 0
    happened: Counter[str] = Counter()
    failed: tuple[int, ...] = ()
    batches = (range(s, s + SHARE) for s in range(options.seed, sys.maxsize, SHARE))
    work = partial(simulate, guarantee=options.guarantee)
    with multiprocessing.Pool(options.processes) as pool:
        while requests < options.requests:
            chunk = [next(batches) for _ in range(options.processes * 4)]
            for run in pool.imap_unordered(work, chunk):
                reports.append(run.report)
                requests += run.requests
                happened += run.happened
                failed += run.failed
            rate = requests / (time.monotonic() - started)
            print(f"{requests:,} requests, {rate:,.0f} a second", end="\r", file=sys.stderr)
    print(file=sys.stderr)
    return Run(merged(reports), requests, happened, tuple(sorted(failed)))


if __name__ == "__main__":
    sys.exit(main())
