"""The catalogue of invariants is whole, and names files that are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.judge.invariants.catalogue import CATALOGUE, Invariant

ROOT = Path(__file__).parents[2]


def test_every_invariant_is_in_it_once_and_in_order() -> None:
    names = [f"S{number}" for number in range(1, 16)] + [f"L{number}" for number in range(1, 8)]
    assert [invariant.name for invariant in CATALOGUE] == names


@pytest.mark.parametrize("invariant", CATALOGUE, ids=lambda invariant: invariant.name)
def test_it_is_checked_where_it_says(invariant: Invariant) -> None:
    assert invariant.checked_in
    missing = [path for path in invariant.checked_in if not (ROOT / path).is_file()]
    assert not missing
