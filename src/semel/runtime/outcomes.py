"""Outcomes: the one point that each of them passes, and its observers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from semel.core.engine import Outcome

log = logging.getLogger("semel")

AnyOutcome = TypeVar("AnyOutcome", bound=Outcome)


class Passed(NamedTuple):
    """How one request or call ended, or one abandoned operation that was run to its end.

    Of a handler that raised it is what came of recording that: `Deliver`, kept or not.
    """

    outcome: Outcome
    key: bytes | None
    """The hash of the key; None where the request was refused before its key was known."""
    attempt: int
    """Which run of the handler it came from; 0 where the handler did not run."""


Observer = Callable[[Passed], None]


class Outcomes:
    """Tells observers of outcomes: of each once, as it becomes known."""

    __slots__ = ("observers",)

    def __init__(self) -> None:
        self.observers: tuple[Observer, ...] = ()
        """Called in turn, on the thread or event loop of the request; they must not block."""

    def passed(self, outcome: AnyOutcome, key: bytes | None = None, attempt: int = 0) -> AnyOutcome:
        """Tell the observers of an outcome, and return it."""
        for observer in self.observers:
            try:
                observer(Passed(outcome, key, attempt))
            except Exception:
                log.exception("an observer of outcomes failed")
        return outcome
