"""Our own adapters, in the applications that the comparison uses, have no fault, kills included."""

from __future__ import annotations

import dataclasses

import pytest

from bench.peers import __main__ as peers
from semel.checker.verdict import Outcome


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.chaos
@pytest.mark.parametrize(
    "subject", [s for s in peers.SUBJECTS if not s.needs], ids=lambda subject: subject.app
)
def test_semel_passes_every_case(subject: peers.Subject) -> None:
    report = peers.run(subject, "redis://nobody")
    found = {one.case.name: one.verdict for one in report.results}
    assert not report.faults, [one.verdict for one in report.faults]
    assert not report.of(Outcome.WARNING), report.of(Outcome.WARNING)
    assert [n for n, v in found.items() if v.outcome is Outcome.NOT_RUN] == [
        "other-method",  # the application has no second method
        "expiry",  # a day
    ]


def test_the_results_are_of_the_cases_there_are() -> None:
    from docs.peers_page import RESULTS
    from semel.checker.cases import CASES

    assert list(RESULTS) == [subject.name for subject in peers.SUBJECTS]
    for name, result in RESULTS.items():
        assert list(result["cases"]) == [case.name for case in CASES], f"make peers: {name}"


def test_a_subject_that_is_not_ours_is_pinned() -> None:
    assert all("==" in s.needs[0] for s in peers.SUBJECTS if s.needs)
    assert dataclasses.is_dataclass(peers.target(1, peers.SUBJECTS[0]))
