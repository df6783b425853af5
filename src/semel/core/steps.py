"""The life of one step: a call to somebody else's system that no local transaction can take back.

A generator, like `engine.run`: it yields store commands and the calls, and is sent their results.
The guide "Steps" (docs/guides/steps.md) says what is promised of a step and what is not.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Final, Literal, NamedTuple

from semel.core.commands import (
    ForgetStep,
    Recorded,
    RecordStep,
    Sleep,
    Steps,
    StoreUnavailable,
    StoreUnknown,
)
from semel.core.keys import derive

OnUnknown = Literal["rerun", "park"]
RECORD_PAUSES: Final = (0.05, 0.2, 0.6)
"""Seconds between attempts to record what the far side has already done."""


class NotDone(Exception):
    """Raised by a step's function or probe: the far side has certainly not done it."""


class StepFenced(RuntimeError):
    """Another attempt holds the operation by now: this one has nothing to do any more."""


class OutcomeUnknown(Exception):
    """Nobody can say whether the far side has done it; the operation is parked."""


LONGEST_NAME: Final = 512
"""Bytes of a step's name: databases that index it have a longest entry."""


class Step(NamedTuple):
    """A step of an operation, and what to do where its outcome is unknown."""

    key: bytes
    token: int
    name: str
    on_unknown: OnUnknown | Callable[..., Any]
    keep: float
    """Seconds that the result outlives an operation that ended without a record."""


class Call(NamedTuple):
    """Call the far side under this derived key. Reply: the result as bytes; or what it raised."""

    derived: str


class Probe(NamedTuple):
    """Ask the far side what became of the call under this derived key. Reply: as `Call`."""

    derived: str


def run(step: Step) -> Generator[Any, Any, bytes]:
    """Return the step's result: the recorded one, or that of the call.

    Raises what the call raised, `OutcomeUnknown`, `StepFenced` and `StoreError`; `ValueError` for a
    name that is too long.
    """
    if len(step.name.encode()) > LONGEST_NAME:  # now, and not once the call has been made
        raise ValueError(
            f"step {step.name[:40]!r}…: a name may have {LONGEST_NAME} bytes; name a step after"
            " what it does"
        )
    derived = derive(step.key, step.name)
    recorded: dict[str, bytes | None] = yield Steps(step.key)
    result = recorded.get(step.name)
    if result is not None:
        return result
    if step.name in recorded and step.on_unknown != "rerun":  # begun, and never ended
        if step.on_unknown == "park":
            raise OutcomeUnknown(f"step {step.name!r} was begun and never ended")
        try:
            result = yield Probe(derived)
        except NotDone:
            result = None
        except Exception as error:
            raise OutcomeUnknown(f"the probe of step {step.name!r} failed: {error!r}") from error
    elif step.on_unknown != "rerun":
        yield from _record(step, None)
    if result is None:
        try:
            result = yield Call(derived)
        except NotDone:
            if step.on_unknown != "rerun":
                yield ForgetStep(step.key, step.token, step.name)
            raise
    return (yield from _record(step, result)) or result


def _record(step: Step, result: bytes | None) -> Generator[Any, Any, bytes | None]:
    for pause in (*RECORD_PAUSES, None):
        try:
            told = yield RecordStep(step.key, step.token, step.name, result, step.keep)
        except (StoreUnknown, StoreUnavailable):
            if pause is None:
                raise
            yield Sleep(pause)
            continue
        if not isinstance(told, Recorded):
            raise StepFenced(f"step {step.name!r}: another attempt has taken this operation over")
        return told.result
    raise AssertionError
