"""Reports of a check, invariant by invariant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from lab.judge.history import Event
from lab.judge.invariants.catalogue import CATALOGUE
from lab.judge.key_history import KeyHistory

JUDGED: Final = ("S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "S9", "S10", "S13", "S15", "L1")
INVARIANTS: Final[dict[str, str]] = {i.name: i.title for i in CATALOGUE if i.name in JUDGED}
"""The invariants that histories are judged by, and their short names."""


class Violation(NamedTuple):
    """One breach of one invariant, or (in `HistoryReport.admitted`) of what was never promised."""

    invariant: str
    scope: str
    key: str
    message: str
    events: tuple[Event, ...]
    """The events that show it."""


class HistoryReport(NamedTuple):
    """The verdict on one history, or on many (`merged`)."""

    histories: int
    events: int
    checked: dict[str, int]
    """Judgments made, by invariant. 0: the history had nothing that could have broken it."""
    violations: tuple[Violation, ...]
    admitted: tuple[Violation, ...]
    """Repeated effects that the guarantee admits, and the history explains."""

    @property
    def ok(self) -> bool:
        """Whether nothing was violated. Says nothing of what was looked at: see `unchecked`."""
        return not self.violations

    @property
    def unchecked(self) -> tuple[str, ...]:
        """The invariants of which nothing was judged."""
        return tuple(name for name in INVARIANTS if not self.checked[name])

    def require(self, *invariants: str) -> None:
        """Raise `AssertionError` for any violation, or if one of `invariants` was not judged."""
        missing = [name for name in invariants if not self.checked[name]]
        if self.violations or missing:
            lines = [f"{v.invariant} {v.scope}/{v.key}: {v.message}" for v in self.violations[:10]]
            lines += [f"{name} was not judged: the history shows nothing of it" for name in missing]
            raise AssertionError("\n".join(lines))


class Findings:
    """A report in the making."""

    __slots__ = ("admitted", "checked", "violations")

    def __init__(self) -> None:
        self.checked = dict.fromkeys(INVARIANTS, 0)
        self.violations: list[Violation] = []
        self.admitted: list[Violation] = []

    def violated(
        self, invariant: str, key_history: KeyHistory, message: str, *events: Event | None
    ) -> None:
        """Note a violation."""
        shown = tuple(event for event in events if event is not None)
        self.violations.append(
            Violation(invariant, key_history.scope, key_history.key, message, shown)
        )

    def admit(self, invariant: str, key_history: KeyHistory, message: str, *events: Event) -> None:
        """Note a breach of what was not promised."""
        self.admitted.append(
            Violation(invariant, key_history.scope, key_history.key, message, events)
        )


def merged(reports: Iterable[HistoryReport]) -> HistoryReport:
    """Return one report for all of them, as if their histories had been checked in a row."""
    findings = Findings()
    histories = events = 0
    for report in reports:
        histories += report.histories
        events += report.events
        for name, judgments in report.checked.items():
            findings.checked[name] += judgments
        findings.violations += report.violations
        findings.admitted += report.admitted
    return HistoryReport(
        histories,
        events,
        findings.checked,
        tuple(findings.violations),
        tuple(findings.admitted),
    )


def upper_bound(judgments: int) -> float:
    """Return the 95% upper bound of the failure rate after that many judgments without a failure.

    The rule of three, 3/n (Hanley & Lippman-Hand, JAMA 1983), at most 1.
    """
    return min(1.0, 3 / judgments) if judgments else 1.0


def summary(report: HistoryReport, *, most: int = 10) -> str:
    """Return the report as plain text: what was judged, what broke, and what each zero is worth.

    At most `most` violations are shown one by one.
    """
    lines = [
        f"{report.histories:,} histories, {report.events:,} events:"
        f" {len(report.violations):,} violations, {len(report.admitted):,} admitted repeats"
    ]
    for name, title in INVARIANTS.items():
        judged = report.checked[name]
        broken = sum(violation.invariant == name for violation in report.violations)
        admitted = sum(violation.invariant == name for violation in report.admitted)
        line = f"{name:>3} {title}: "
        if not judged and not broken:
            line += "not checked"
        else:
            line += f"{broken:,} in {judged:,} judgments"
            if not broken and not admitted:
                line += f" (95% bound {upper_bound(judged):.1e})"
        if admitted:
            line += f"; {admitted:,} admitted"
        lines.append(line)
    for violation in report.violations[:most]:
        lines.append(
            f"{violation.invariant} {violation.scope}/{violation.key}: {violation.message}"
        )
        lines += [f"    {event}" for event in violation.events]
    if len(report.violations) > most:
        lines.append(f"… and {len(report.violations) - most:,} more")
    return "\n".join(lines)
