"""The fault profile of one history: sizes, times and fault rates, drawn from its seed."""

from __future__ import annotations

import random
from typing import Any, Literal, NamedTuple


class FaultProfile(NamedTuple):
    """Options of one history. Rates are probabilities; each history has some faults and not others,
    so that each seed tries something else (swarm testing)."""

    servers: int
    keys: int
    retries: int
    lease: float
    handler: float
    crash: float
    pause: float
    lost: float
    unknown: float
    network: float
    fails: float
    double: float
    other: float
    expires: float
    tombstone: float
    after_expiry: Any
    opens: bool
    """Whether transactions are claims, where the guarantee allows it."""
    delayed: float
    """Of the commands whose caller has given up: how many are carried out all the same, later."""
    clock: float
    """Seconds by which the store's clock is set forward or back at most; 0: it never is."""
    drift: float
    """By how much the clocks of servers may go too fast or too slow, as a fraction."""
    steps: int
    """Steps of a handler, at the most; each key has a number of its own."""
    on_unknown: Literal["rerun", "park", "probe"]
    honours_keys: bool
    far_side: float
    """How often a call to the far side fails: it is down, or the call or its response is lost."""

    @classmethod
    def draw(cls, rng: random.Random) -> FaultProfile:
        """Draw the profile of a history."""

        def chance(highest: float) -> float:
            return rng.choice((0.0, rng.uniform(0, highest)))

        short = rng.random() < 0.3
        lease = rng.choice((1.0, 3.0, 30.0))
        steps = rng.choice((0, 0, 0, 1, 2, 3))
        clock = rng.choice((0.0, 0.0, rng.uniform(0.5, 3 * lease)))
        expires = rng.uniform(*rng.choice(((0.3, 2), (2, 12)))) if short else 86400.0
        if short and steps:
            # What is recorded of steps has to outlive whoever stands still, by any clock.
            expires += 3 * lease + 30 + 2 * clock
        return cls(
            servers=rng.randint(1, 3),
            keys=rng.randint(1, 4),
            retries=rng.randint(2, 8),
            lease=lease,
            handler=rng.choice((0.01, 0.5, 2.0)),
            crash=chance(0.1),
            pause=chance(0.25),
            lost=chance(0.1),
            unknown=chance(0.1),
            network=chance(0.3),
            fails=chance(0.5),
            double=chance(0.6),
            other=chance(0.15),
            expires=expires,
            tombstone=rng.choice((4.0, 20.0)) if short else 86400.0,
            after_expiry=rng.choice(("refuse", "refuse", "run")),
            opens=rng.random() < 0.4,
            delayed=chance(0.7),
            clock=clock,
            drift=rng.choice((0.0, 0.2)),
            steps=steps,
            on_unknown=rng.choice(("rerun", "park", "probe")),
            honours_keys=rng.random() < 0.5,
            far_side=chance(0.3),
        )
