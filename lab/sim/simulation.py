"""One simulated history: the parts put together, first under faults, then healed and surveyed."""

from __future__ import annotations

from lab.judge.history import FinalRecord, Surveyed
from lab.sim.clients import Clients
from lab.sim.fault_profile import FaultProfile
from lab.sim.provider import Provider
from lab.sim.scheduler import Process
from lab.sim.servers import Service
from lab.sim.store_model import STATES, StoreModel
from lab.sim.surroundings import Surroundings
from semel.core.policy import Guarantee


class Simulation(Surroundings):
    """One history with all its parts."""

    def __init__(
        self, seed: int, guarantee: Guarantee, profile: FaultProfile | None = None
    ) -> None:
        super().__init__(seed, guarantee, profile)
        self.store = StoreModel(self)
        self.provider = Provider(self, self.store)
        self.service = Service(self, self.store, self.provider)
        self.clients = Clients(self, self.store, self.service)

    def live(self) -> Simulation:
        """Let it all happen: first with faults, then healed until everything is settled."""
        scheduler, clients = self.scheduler, self.clients
        names = [
            (f"tenant-{scope}", f"key-{key}")
            for key in range(self.profile.keys)
            for scope in range(1 + (key == 0))
        ]
        if self.issuer is not None:
            names = [(scope, clients.issue(self.issuer, scope)) for scope, _ in names]
            scheduler.spawn(clients.thief(names[0][1]))
        for scope, key in names:
            scheduler.spawn(clients.client(scope, key))
        scheduler.spawn(self.store.sweeping())
        scheduler.spawn(self._heal_after(60.0))
        scheduler.run()
        for scope, key in names:
            scheduler.spawn(clients.last_word(scope, key))
        scheduler.run()
        if self.issuer is not None:
            self.happened["issued key sent after its record went"] += 1
            for scope, key in names:
                late = max(self.forgotten_at - scheduler.now, 0.0)
                for asked in ("\x01want", "\x01other"):  # each settles what its own like left
                    attempt = f"{scope}.{key}.late{asked[1:]}"
                    scheduler.spawn(clients.call(scope, key, asked, attempt), None, late)
            scheduler.run()
        now = self.store.clock()
        self.note(Surveyed(now))
        for name, record in self.store.table.records.items():
            scope, key = self.names[name]
            self.note(FinalRecord(now, scope, key, STATES[record.state], record.token))
        return self

    def _heal_after(self, seconds: float) -> Process:
        yield seconds
        self.healed = True
