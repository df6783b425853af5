"""Many simulated histories, each from its seed: run, judged, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from lab.judge.checker import check
from lab.judge.findings import HistoryReport, merged
from lab.judge.history import Event
from lab.sim.simulation import Simulation
from semel.core.policy import Guarantee

MUST_HAPPEN: Final = (
    "crash: claim under way",
    "crash: handler running",
    "crash: completion under way",
    "crash: step under way",
    "crash: step called",
    "pause past the lease",
    "takeover",
    "completion fenced",
    "claim answer lost",
    "completion answer lost",
    "step answer lost",
    "completion lost",
    "store down at claim",
    "late claim",
    "late completion",
    "late release",
    "late step",
    "waited for a commit",
    "raised after a write",
    "undone",
    "crash: undo under way",
    "clock set forward",
    "clock set back",
    "step called",
    "step skipped",
    "step fenced",
    "parked by a step",
    "far side down",
    "call to the far side lost",
    "response of the far side lost",
    "far side probed",
    "replay",
    "key reused",
    "in flight",
    "released",
    "expired",
    "tombstone",
    "purged",
    "answer lost on the way",
    "issued key sent after its record went",
    "key of another",
)
"""A run in which one of these never happened is void, not green: it has looked at too little."""
WHERE_TRANSACTIONS_CLAIM: Final = (
    "opened",
    "key held by a transaction",
    "crash: transaction open",
    "database ended a transaction",
    "commit lost",
    "commit delayed past its answer",
    "claimed anew after an undo",
    "another had the key after an undo",
)
"""The same for the store whose transactions are claims."""
RERUNS: Final = frozenset(
    {
        "takeover",
        "released",
        "late release",
        "step skipped",
        "parked by a step",
        "far side probed",
    }
)
"""What cannot happen at most once: it follows from a second run."""
ATOMIC_ONLY: Final = frozenset(
    {
        "waited for a commit",
        "raised after a write",
        "undone",
        "crash: undo under way",
        *WHERE_TRANSACTIONS_CLAIM,
    }
)


class Run(NamedTuple):
    """Many histories and what became of them."""

    report: HistoryReport
    requests: int
    happened: Counter[str]
    failed: tuple[int, ...]
    """Seeds of the histories that broke an invariant."""


def simulate(seeds: Sequence[int], guarantee: Guarantee) -> Run:
    """Run a history for each seed and judge it."""
    reports = []
    failed = []
    happened: Counter[str] = Counter()
    requests = 0
    for seed in seeds:
        lived = Simulation(seed, guarantee).live()
        report = check(lived.history)
        reports.append(report)
        requests += lived.clients.requests
        happened.update(lived.happened)
        happened["histories"] += 1
        if not report.ok:
            failed.append(seed)
    return Run(merged(reports), requests, happened, tuple(failed))


def trace(seed: int, guarantee: Guarantee) -> list[Event]:
    """Return the history of one seed."""
    return Simulation(seed, guarantee).live().history


def void_for(happened: Counter[str], guarantee: Guarantee) -> list[str]:
    """Return what should have happened and did not."""
    expected = {*MUST_HAPPEN, *WHERE_TRANSACTIONS_CLAIM}
    if guarantee != "atomic":
        expected -= ATOMIC_ONLY
    if guarantee == "at-most-once":
        expected -= RERUNS
        expected.add("outcome unknown")
    return sorted(name for name in expected if not happened[name])
