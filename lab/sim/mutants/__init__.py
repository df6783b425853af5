"""Planted bugs: each a small change of the real engine or store that the checker has to notice.

A checker that has never seen a bug proves nothing. `python -m lab.sim.mutants` plants each in
turn and simulates until it is caught; one that survives is a hole in the checker or the workload.
"""

from __future__ import annotations

from lab.sim.mutants.of_commits import COMMIT_MUTANTS
from lab.sim.mutants.of_steps import STEP_MUTANTS
from lab.sim.mutants.of_the_engine import ENGINE_MUTANTS
from lab.sim.mutants.of_the_store import STORE_MUTANTS
from lab.sim.mutants.planting import Mutant
from lab.sim.swarm import simulate

__all__ = ["MUTANTS", "Mutant", "hunt"]

MUTANTS: tuple[Mutant, ...] = (*STORE_MUTANTS, *ENGINE_MUTANTS, *COMMIT_MUTANTS, *STEP_MUTANTS)

MOST = 10_000
"""Seeds to try before a bug is said to survive; most need fewer than a hundred."""


def hunt(mutant: Mutant, most: int = MOST, first: int = 1) -> tuple[int, str] | None:
    """Simulate until the bug is caught; return the seeds it took and the invariant that broke.

    None: it survived `most` seeds. A history that the checker calls contradictory, or a client
    that never gets its answer, counts as caught.
    """
    with mutant.plant():
        for seed in range(first, first + most):
            try:
                run = simulate([seed], mutant.guarantee)
            except (AssertionError, ValueError) as error:
                return seed - first + 1, type(error).__name__
            if run.report.violations:
                return seed - first + 1, run.report.violations[0].invariant
    return None
