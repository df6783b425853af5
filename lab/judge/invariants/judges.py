"""The invariants that histories are judged by, each a function that judges one key.

A function counts its judgments in `Findings.checked` and notes what it finds broken; it judges
nothing of which the history holds no evidence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from lab.judge.findings import Findings
from lab.judge.invariants.answers import (
    another_request_is_not_the_same,
    replays_are_equal,
    scopes_do_not_interfere,
)
from lab.judge.invariants.effects import (
    an_answer_means_a_durable_effect,
    at_most_one_effect,
    no_means_no,
)
from lab.judge.invariants.expiry import honest_expiry, once_for_ever
from lab.judge.invariants.raised import what_was_raised_is_undone
from lab.judge.invariants.records import (
    fencing,
    nothing_stays_in_flight,
    written_once,
)
from lab.judge.invariants.steps import steps
from lab.judge.key_history import Evidence, KeyHistory

Judge = Callable[[KeyHistory, Evidence, Findings], None]

JUDGES: Final[dict[str, Judge]] = {
    "S1": at_most_one_effect,
    "S2": an_answer_means_a_durable_effect,
    "S3": replays_are_equal,
    "S4": written_once,
    "S5": fencing,
    "S6": scopes_do_not_interfere,
    "S7": another_request_is_not_the_same,
    "S8": no_means_no,
    "S9": honest_expiry,
    "S10": steps,
    "S13": once_for_ever,
    "S15": what_was_raised_is_undone,
    "L1": nothing_stays_in_flight,
}
