"""What a service promised: the rules a history is judged by, and what each guarantee admits."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Guarantee = Literal["atomic", "at-least-once", "at-most-once"]


class Promise(NamedTuple):
    """What was promised, and what the workload is like. May stand first in a history file."""

    guarantee: Guarantee
    after_expiry: Literal["refuse", "run"] = "refuse"
    """What becomes of a key whose answer has expired, while a trace of it is left."""
    far_side: Literal["honours-keys", "ignores-keys"] = "honours-keys"
    """Whether the foreign system of the steps does a derived key's work once."""
    on_unknown: Literal["rerun", "park"] = "rerun"
    """What a step does whose call may or may not have arrived, where the far side ignores keys."""
    unique_bodies: bool = True
    """Every execution puts something of its own (its attempt) into a successful body. False where
    bodies repeat: answers of another key or of an earlier life are then harder to tell (S6, S9)."""
    effect_per_success: bool = True
    """Every execution that succeeds (2xx) leaves an effect. False for workloads without effects,
    or whose effects are not recorded: then S2 is judged by the record alone."""
    effects_in_order: bool = True
    """Effects stand in the history where they were committed. False where they were read from a
    table in the end: then S2 does not ask whether an effect came before its answer."""
    clock_error: float = 0.0
    """Seconds by which times of different events may be off against each other."""
    time: float = 0.0


EffectKind = Literal["database", "elsewhere", "step"]
"""An effect in the database of the key, a foreign one outside a step, a foreign one of a step."""

REPEATS: Final[dict[tuple[Guarantee, EffectKind], str]] = {
    ("atomic", "elsewhere"): "a foreign effect outside a step is not tied to the key's transaction",
    ("at-least-once", "database"): "the run was cut off between its effect and its record",
    ("at-least-once", "elsewhere"): "the run was cut off between its effect and its record",
}
"""Which effects may repeat (S1), and why: the *can repeat* cells of the guarantees table.

What is not in here is promised. An entry excuses a repeat only where the history shows the cause:
a run that was cut off, failed or lost its lease, before the answer was recorded. Such repeats are
reported as *admitted*, not as violations.
"""

STEP_REPEATS: Final = "the far side ignores derived keys, and the step is rerun where it is unsure"
"""The same for steps under every guarantee but at most once, where `Promise.far_side` and
`Promise.on_unknown` say so."""

BESIDE: Final[dict[Guarantee, frozenset[str]]] = {
    "atomic": frozenset({"completed", "expired"}),
    "at-most-once": frozenset({"completed", "expired", "parked"}),
    "at-least-once": frozenset({"absent", "in_flight", "completed", "expired", "parked"}),
}
"""The states of the record beside which an effect may stand once all is quiet (S2). Atomic: they
commit together. At most once: what may have happened is known or parked, never forgotten."""


def admits_repeat(promise: Promise, kind: EffectKind) -> str | None:
    """Return why an effect of this kind may repeat under this promise, or None: it never may."""
    if kind != "step":
        return REPEATS.get((promise.guarantee, kind))
    unsure = promise.far_side == "ignores-keys" and promise.on_unknown == "rerun"
    return STEP_REPEATS if unsure and promise.guarantee != "at-most-once" else None
