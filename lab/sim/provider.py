"""The far side of steps: somebody else's system, which counts its calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from typing import TYPE_CHECKING

from lab.judge.history import Effect, Foreign, Sent
from semel.core.steps import NotDone

if TYPE_CHECKING:
    from lab.sim.scheduler import ServerProcess
    from lab.sim.store_model import StoreModel
    from lab.sim.surroundings import Surroundings


class NoResponse(Exception):
    """The far side did not respond: it may or may not have done what it was asked for."""


class Provider:
    """Does a call's work once for each derived key, or (ignoring keys) each time; can be asked.

    A call arrives at once or never: how late it may arrive is between the far side and its own
    clients, and a probe could tell nothing of what is still on its way.
    """

    def __init__(self, simulation: Surroundings, store: StoreModel) -> None:
        self._simulation = simulation
        self._store = store
        self.calls: Counter[str] = Counter()
        self._done: dict[str, bytes] = {}

    def call(
        self, server: ServerProcess, sent: Sent, token: int, step: str, derived: str
    ) -> Generator[float, None, bytes]:
        """Call it from a server; return its result. Raises `NotDone` and `NoResponse`."""
        simulation = self._simulation
        profile, rng, happened = simulation.profile, simulation.rng, simulation.happened
        store, healed = self._store, simulation.healed
        yield rng.uniform(0.001, 0.05)
        _, attempt, scope, key, *_ = sent
        simulation.note(Foreign(store.clock(), attempt, scope, key, step, derived))
        failure = rng.random()
        if not healed and failure < profile.far_side:
            if failure < profile.far_side / 3:
                happened["far side down"] += 1
                raise NotDone(step)
            if failure < profile.far_side / 2:
                happened["call to the far side lost"] += 1
                raise NoResponse(step)
        self.calls[derived] += 1
        result = self._done.get(derived)
        if result is None or not profile.honours_keys:
            result = f"{step} by {attempt}, call {self.calls[derived]}".encode()
            self._done.setdefault(derived, result)
            done = Effect(store.clock(), attempt, scope, key, token, "elsewhere", step)
            simulation.note(done)
        if not healed:
            if rng.random() < profile.crash:
                store.crash(server, "step called")
                yield 0.0
            if failure < profile.far_side:
                happened["response of the far side lost"] += 1
                raise NoResponse(step)
        yield rng.uniform(0.001, 0.05)
        return result

    def probe(self, step: str, derived: str) -> Generator[float, None, bytes]:
        """Ask what became of a call. Raises `NotDone` and `NoResponse`."""
        simulation = self._simulation
        yield simulation.rng.uniform(0.001, 0.05)
        if not simulation.healed and simulation.rng.random() < simulation.profile.far_side / 3:
            raise NoResponse(step)
        simulation.happened["far side probed"] += 1
        result = self._done.get(derived)
        if result is None:
            raise NotDone(step)
        return result
