"""The state that all parts of one simulated history share: time, chance, faults, history."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta
from typing import Final

from lab.judge.contract import Promise
from lab.judge.history import History, ResponseSeen
from lab.sim.fault_profile import FaultProfile
from lab.sim.scheduler import Scheduler, ServerProcess
from semel.core.policy import Guarantee, Policy
from semel.issuer import Issuer

RAISED: Final = 402
"""The status of what handlers raise after they have written."""


class Surroundings:
    """The state that all parts of one simulated history share."""

    def __init__(
        self, seed: int, guarantee: Guarantee, profile: FaultProfile | None = None
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.profile = profile = profile or FaultProfile.draw(self.rng)
        self.guarantee: Guarantee = guarantee
        self.scheduler = Scheduler()
        self.happened: Counter[str] = Counter()
        self.healed = False
        self.opens = guarantee == "atomic" and profile.opens
        self.policy = Policy(
            guarantee=guarantee,
            lease=timedelta(seconds=profile.lease),
            wait=timedelta(seconds=self.rng.choice((0, 1, 5))),
            expires=timedelta(seconds=profile.expires),
            tombstone=timedelta(seconds=profile.tombstone),
            after_expiry=profile.after_expiry,
        )
        self.history: History = [
            Promise(
                guarantee,
                profile.after_expiry,
                far_side="honours-keys" if profile.honours_keys else "ignores-keys",
                on_unknown=profile.on_unknown,
                clock_jumps=2 * profile.clock,
                unfenced_steps=self.opens,
                raised=RAISED,
            )
        ]
        self.note = self.history.append
        self.servers = [
            ServerProcess(f"server-{n}", 1 + self.rng.uniform(-profile.drift, profile.drift))
            for n in range(profile.servers)
        ]
        self.names: dict[bytes, tuple[str, str]] = {}
        """Scope and key by the hash that the store knows them by."""
        self.answers: dict[tuple[str, str], ResponseSeen] = {}
        """The last response to each key that a client has seen."""
        fate = random.Random(f"raised {seed}")
        self.raises = 0.0
        """How often a handler raises, after it has written, what is answered with a 402."""
        if guarantee == "atomic":
            self.raises = fate.choice((0.0, fate.uniform(0, 0.4)))
        self._issue_keys(random.Random(f"issued {seed}"))

    def _issue_keys(self, fate: random.Random) -> None:
        self.issuer: Issuer | None = None
        """Issues the keys; None where clients choose theirs."""
        self.issued: dict[str, tuple[float, str]] = {}
        """Of issued keys: their not-after, and whose they are."""
        # A server stands still for two and a half leases at the most; and the record is kept by the
        # store's clock, which may gain as much as it is ever set, while keys go by the servers'.
        self.grace = timedelta(seconds=3 * self.profile.lease + 30 + 2 * self.profile.clock)
        self.forgotten_at = 0.0
        """When no record of an issued key is left."""
        if fate.random() < 0.2:
            lifetime = timedelta(seconds=fate.uniform(4, 20))
            self.issuer = Issuer(
                bytes(32),
                lifetime=lifetime,
                clock=lambda: self.scheduler.now,
                random=fate.randbytes,
            )
            kept = (lifetime + self.grace).total_seconds()
            self.forgotten_at = kept + 2 * self.profile.clock + 60
