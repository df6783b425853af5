"""Simulated histories, every schedule of the small scope, and planted bugs."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from lab.judge.contract import STEP_REPEATS, UNFENCED
from lab.judge.findings import summary
from lab.sim.exhaustive import Scope, allowed, explore
from lab.sim.mutants import MUTANTS, Mutant, hunt
from lab.sim.simulation import Simulation
from lab.sim.swarm import Run, simulate, void_for
from semel.core import commands as c
from semel.core.policy import Guarantee
from semel.core.record import TRANSITIONS, State
from semel.stores.memory import MemoryTable

pytestmark = pytest.mark.sim

GUARANTEES: list[Guarantee] = ["atomic", "at-least-once", "at-most-once"]
SEEDS = 3000


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_no_history_breaks_what_is_promised(guarantee: Guarantee) -> None:
    run = simulate(range(1, SEEDS), guarantee)
    print(f"{run.requests:,} requests, {guarantee}\n{summary(run.report)}")
    run.report.require("S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "S9", "S10", "S13", "L1")
    assert not void_for(run.happened, guarantee), "the run has looked at too little"
    if guarantee == "at-least-once":
        assert run.report.admitted, "the documented weakness did not show"
    elif guarantee == "at-most-once":
        assert not run.report.admitted
    else:
        run.report.require("S15")
        assert run.report.admitted, "the documented weaknesses of steps did not show"
        reasons = (*STEP_REPEATS.values(), UNFENCED)
        assert all(each.message.endswith(reasons) for each in run.report.admitted)
    if guarantee == "at-most-once":
        assert run.happened["outcome unknown"], "nothing was parked"


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_every_schedule_of_the_small_scope_keeps_the_promise(guarantee: Guarantee) -> None:
    found = explore(guarantee)
    print(f"{found.states:,} states, {found.schedules:,} schedules, {guarantee}")
    found.report.require("S1", "S2", "S3", "S4", "S5", "S8", "L1")
    assert found.schedules > 1000
    assert all(allowed(*change) for change in found.transitions)


def test_every_transition_of_an_operation_is_reached() -> None:
    reached = explore("atomic").transitions | explore("at-most-once").transitions
    of_one_life = {(None, State.IN_FLIGHT)} | {
        (State.IN_FLIGHT, after)
        for event, after in TRANSITIONS[State.IN_FLIGHT].items()
        if event != "release"  # no handler of the small scope fails
    }
    assert of_one_life == reached


class NoFence(MemoryTable):
    """Planted bug: whoever completes is believed."""

    def apply(self, command: Any, now: float) -> Any:
        record = self.records.get(getattr(command, "key", b""))
        if type(command) is c.Complete and record is not None:
            command = command._replace(token=record.token)
        return super().apply(command, now)


def test_the_small_scope_is_large_enough_for_a_missing_fence() -> None:
    class Unfenced(Scope):
        table_type = NoFence

    assert not explore("atomic", Unfenced, stop_early=True).report.ok


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_planted_bug_is_caught(mutant: Mutant) -> None:
    caught = hunt(mutant)
    assert caught is not None, f"{mutant.bug}: survived"
    print(f"{mutant.name}: {caught[1]} after {caught[0]} seeds")


def test_there_are_enough_planted_bugs() -> None:
    assert len(MUTANTS) >= 50
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def digest_of_a_run() -> str:
    digest = hashlib.sha256()
    for guarantee, seed in itertools.product(GUARANTEES, range(1, 60)):
        for event in Simulation(seed, guarantee).live().history:
            digest.update(repr(event).encode())
    return digest.hexdigest()


def test_a_seed_says_all_whatever_the_hash_order() -> None:
    script = "from tests.sim.test_simulation import digest_of_a_run; print(digest_of_a_run())"
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in (1, 2)
    }
    assert digests == {digest_of_a_run() + "\n"}


def test_a_run_that_has_seen_too_little_is_void() -> None:
    run = simulate([1], "atomic")
    assert isinstance(run, Run)
    assert void_for(run.happened, "atomic")
    assert void_for(Counter(), "at-most-once")


FAULTS_OF_OUR_OWN = {
    "parked-is-completed",
    "takeover-of-what-is-there",
    "given-back-is-in-flight",
    "stepped-and-undone",
    "steps-go-with-their-key",
}
"""What the simulator has found in the engine and its rules. A seed is another history once the
simulator changes, so each fault is planted again, and has to be caught."""


def test_what_the_simulator_has_found_is_planted_again() -> None:
    assert {mutant.name for mutant in MUTANTS} >= FAULTS_OF_OUR_OWN
