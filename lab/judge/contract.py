"""Promises of a service: the rules a history is judged by, and what each guarantee admits."""

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
    on_unknown: Literal["rerun", "park", "probe"] = "rerun"
    """What a step does whose call may or may not have arrived."""
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
    clock_jumps: float = 0.0
    """Seconds by which the store's clock may be set forward or back while the history runs.

    Leases and expiries (S4, S5) are judged by the store's clock at the moment of the write itself,
    and need no such allowance, because every write is fenced by its token. Two properties honestly
    need a clock that is bounded: what was over when a request was *sent* may be valid again by the
    time it *arrives* (S9), and an issued key's not-after is compared by the servers' clocks while
    its record is kept by the store's (S9, S13; the reason for the issuer's grace)."""
    unfenced_steps: bool = False
    """Claims are transactions, which have no record while they are open: nothing tells a step of an
    attempt that has lost its transaction unnoticed from one of the attempt that holds the key.
    A known weakness of `guarantee="atomic"` on PostgreSQL; what comes of it is admitted (S10)."""
    raised: int = 0
    """The status that handlers give only by raising, once they have written: under atomic nothing
    of that stands, and the response is kept (S15). 0: the workload has none."""
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

STEP_REPEATS: Final[dict[str, str]] = {
    "rerun": "the far side ignores derived keys, and the step is rerun where it is unsure",
    "probe": "the far side ignores derived keys, and whoever stood still may call after the probe",
}
"""The same for steps under every guarantee but at most once, by `Promise.on_unknown`, where
`Promise.far_side` ignores derived keys."""
UNFENCED: Final = "a transaction that is a claim does not fence its steps"

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
    if promise.far_side == "honours-keys" or promise.guarantee == "at-most-once":
        return None
    return STEP_REPEATS.get(promise.on_unknown, UNFENCED if promise.unfenced_steps else None)
