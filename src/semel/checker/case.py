"""A case: a title, the clauses it rests on, and the generator that decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from semel.checker.exchange import Steps
from semel.checker.scene import Scene
from semel.checker.target import Target
from semel.checker.verdict import CaseVerdict, Clause

__all__ = ["Case", "Need", "Run", "case"]

Run: TypeAlias = Callable[[Scene], Steps[CaseVerdict]]
Need: TypeAlias = Callable[[Target], str | None]
"""Returns why a case cannot be run on a target; None if it can."""


@dataclass(frozen=True)
class Case:
    """One question about the API, with the generator that answers it."""

    name: str
    title: str
    clauses: tuple[Clause, ...]
    effects: int
    """The most effects that it has on an API without faults."""
    needs: tuple[Need, ...]
    run: Run
    per_kill: int = 0
    """As many more for each kill of the server."""

    def most(self, target: Target) -> int:
        """Return the most effects that it has on this target, if the target has no faults."""
        return self.effects + self.per_kill * target.kills

    def missing(self, target: Target) -> str | None:
        """Return why it cannot be run; None if it can."""
        return next((why for need in self.needs if (why := need(target))), None)


def case(
    title: str, *clauses: Clause, effects: int, per_kill: int = 0, needs: tuple[Need, ...] = ()
) -> Callable[[Run], Case]:
    """Make a case of a generator; its name is the function's, with hyphens."""

    def make(run: Run) -> Case:
        return Case(run.__name__.replace("_", "-"), title, clauses, effects, needs, run, per_kill)

    return make
