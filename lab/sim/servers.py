"""Servers at work: they drive the engine, run handlers and their steps, and respond."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from lab.judge.history import Effect, Sent, StepBegun, StepSkipped
from lab.sim.provider import NoResponse, Provider
from lab.sim.store_model import step_digest
from lab.sim.surroundings import RAISED
from semel.core import commands as c
from semel.core import engine, steps
from semel.core.keys import hash_key
from semel.core.policy import Policy
from semel.core.problems import HANDLER_FAILED, KEY_INVALID
from semel.core.record import Response

if TYPE_CHECKING:
    from lab.sim.scheduler import Process, ServerProcess
    from lab.sim.store_model import StoreModel
    from lab.sim.surroundings import Surroundings

_AFTER_A_ROLLBACK = frozenset({c.Open, c.Takeover, c.Park})
"""Before these a driver rolls back the transaction that was the claim; a release is that alone."""
Reply = Callable[..., None]
"""Takes the outcome, whether it is of a first run or a look-up alone, and the handler's status."""


class Service:
    """What every server runs."""

    life: Callable[..., engine.Life] = staticmethod(engine.run)
    step_life: Callable[[steps.Step], Generator[Any, Any, bytes]] = staticmethod(steps.run)

    def __init__(self, simulation: Surroundings, store: StoreModel, provider: Provider) -> None:
        self.simulation = simulation
        self.rng = simulation.rng
        self.profile = simulation.profile
        self.note = simulation.note
        self.store = store
        self.provider = provider
        self._steps: dict[str, int] = {}
        """By key: how many steps its handler takes."""

    def serve(self, server: ServerProcess, sent: Sent, reply: Reply) -> Process:
        """One attempt on one server: drive the engine, run the handler, respond."""
        simulation, store, attempt = self.simulation, self.store, sent.attempt
        name = hash_key(sent.scope, sent.key)
        simulation.names[name] = (sent.scope, sent.key)
        fingerprint = sent.fingerprint.encode("latin-1")
        request = engine.Request(name, attempt.encode(), lambda algorithm: fingerprint)
        policy, late = self.rules(sent)
        if policy is None:
            reply(engine.Refuse(KEY_INVALID), False)
            return
        request = request._replace(late=late)
        if simulation.issuer is not None and not simulation.healed:
            if self.rng.random() < self.profile.pause:
                store.pause(server)  # between checking a key and claiming it
                yield 0.0
        found: Any = None if late else store.table.apply(c.Lookup(name), store.clock())
        if found is not None:
            outcome = engine.settled(request.fingerprint, policy, *found)
            if outcome is not None:
                reply(outcome, False)
                return
        if simulation.opens:
            life = self.life(request, policy, found, opens=True)
        else:
            life = self.life(request, policy, found)
        opened = 0
        undone = False
        running = [False]
        transaction: list[Effect] = []
        answer = c.Answer(HANDLER_FAILED.response())
        send: Any = life.send
        value: Any = None
        while True:
            try:
                command = send(value)
            except StopIteration as end:
                running[0] = False
                if opened:
                    store.end_transaction(name, opened)
                if isinstance(end.value, engine.Deliver) and end.value.kept:
                    reply(engine.Replay(answer.response), True)
                else:
                    reply(end.value, True, answer.response.status)
                return
            kind, send, value = type(command), life.send, None
            if kind is c.RunHandler:
                running[0] = True
                if not opened:
                    renewing = store.renewing(attempt, name, command.token, running)
                    simulation.scheduler.spawn(renewing, server)
                answer = value = yield from self.handle(
                    server, sent, command.token, policy, transaction
                )
            elif kind is c.Wait:
                began = simulation.scheduler.now
                yield command.poll * self.rng.uniform(0.75, 1.25)
                value = (simulation.scheduler.now - began) / server.pace
            elif kind is c.Sleep:
                yield command.seconds
            elif kind is c.Undo:
                yield from self._undo(server, name, opened, transaction)
                opened, undone = 0, bool(opened)
            elif kind is c.Release and opened:
                store.end_transaction(name, opened)
                value = True
            else:
                if opened and kind in _AFTER_A_ROLLBACK:
                    store.end_transaction(name, opened)
                try:
                    value = yield from store.ask(server, attempt, command, transaction)
                    if kind is c.Open:
                        opened = self._opened(value, opened, undone=undone)
                except c.StoreError as error:
                    send, value = life.throw, error

    def _opened(self, reply: Any, before: int, *, undone: bool) -> int:
        """Return the token of the transaction that the attempt holds by now."""
        claimed = type(reply) is c.Claimed
        self.simulation.happened["claimed anew after an undo"] += undone and claimed
        self.simulation.happened["another had the key after an undo"] += undone and not claimed
        token: int = reply.token if claimed else before
        return token

    def _undo(
        self, server: ServerProcess, name: bytes, opened: int, transaction: list[Effect]
    ) -> Process:
        """Roll the handler's transaction back; a crash may come before it, or after."""
        for done in (False, True):
            yield self.rng.uniform(0.001, 0.05)
            if not self.simulation.healed and self.rng.random() < self.profile.crash:
                self.store.crash(server, "undo under way")
                yield 0.0
            if not done:
                transaction.clear()
                if opened:
                    self.store.end_transaction(name, opened)
                self.simulation.happened["undone"] += 1

    def rules(self, sent: Sent) -> tuple[Policy | None, bool]:
        """The rules for a request (None: its key is refused), and whether its key comes late."""
        simulation = self.simulation
        if simulation.issuer is None:
            return simulation.policy, False
        left = simulation.issuer.check(sent.key, sent.scope, "POST", "/")
        if left is None:
            return None, False
        return simulation.policy.until(left, simulation.grace), left <= 0

    def handle(
        self,
        server: ServerProcess,
        sent: Sent,
        token: int,
        policy: Policy,
        transaction: list[Effect],
    ) -> Generator[float, None, c.Answer]:
        """The handler: takes its time and its steps, fails at times, leaves an effect."""
        simulation, rng, profile = self.simulation, self.rng, self.profile
        atomic = simulation.guarantee == "atomic"
        failed = c.Answer(HANDLER_FAILED.response(), atomic=atomic)
        for late in (False, True):
            yield rng.uniform(0, profile.handler)
            if not simulation.healed:
                if rng.random() < profile.crash:
                    self.store.crash(server, "handler running")
                    yield 0.0
                if rng.random() < profile.pause:
                    self.store.pause(server)
                    yield 0.0
            if late:
                break
            if not simulation.healed and rng.random() < profile.fails / 2:
                responses = (failed.response, Response(503, (), b"busy"))
                return failed._replace(response=rng.choice(responses))
            if profile.steps:
                failed = failed._replace(stepped=True)
                try:
                    yield from self.take_steps(server, sent, token, policy.seconds.keep_steps)
                except steps.OutcomeUnknown as error:
                    simulation.happened["parked by a step"] += 1
                    return failed._replace(parked=str(error))
                except (steps.NotDone, steps.StepFenced, NoResponse, c.StoreError):
                    return failed
            where: Any = "database" if atomic else "elsewhere"
            effect = Effect(self.store.clock(), sent.attempt, sent.scope, sent.key, token, where)
            if atomic:
                transaction.append(effect)
            else:
                self.note(effect)
        if not simulation.healed and rng.random() < profile.fails / 2:
            return failed
        body = f"by {sent.attempt}".encode()
        raises = simulation.raises
        if raises and not simulation.healed and rng.random() < raises:
            simulation.happened["raised after a write"] += 1
            return failed._replace(response=Response(RAISED, (), body), raised=True)
        response = Response(201, ((b"content-type", b"text/plain"),), body)
        return failed._replace(response=response)

    # --- steps -----------------------------------------------------------------------------

    def take_steps(
        self, server: ServerProcess, sent: Sent, token: int, keep: float
    ) -> Generator[float, None, None]:
        """Take the steps of this key's handler, one after the other."""
        count = self._steps.get(sent.key)
        if count is None:
            count = self._steps[sent.key] = self.rng.randint(0, self.profile.steps)
        on_unknown = self.profile.on_unknown
        # Asked twice in one run, a far side that ignores keys may do it twice: the handler's fault.
        again = on_unknown == "park" or self.profile.honours_keys
        for number in range(count):
            step = steps.Step(
                hash_key(sent.scope, sent.key),
                token,
                f"step-{number}",
                on_unknown if on_unknown != "probe" else self.provider.probe,
                keep,
            )
            try:
                yield from self._take(server, sent, step)
            except NoResponse:
                if not again or self.rng.random() < 0.5:
                    raise
                self.simulation.happened["step taken again by its handler"] += 1
                yield from self._take(server, sent, step)

    def _take(
        self, server: ServerProcess, sent: Sent, step: steps.Step
    ) -> Generator[float, None, None]:
        simulation, store, provider = self.simulation, self.store, self.provider
        _, attempt, scope, key, *_ = sent
        self.note(StepBegun(store.clock(), attempt, scope, key, step.name))
        life = self.step_life(step)
        send: Any = life.send
        value: Any = None
        skipped = True
        while True:
            try:
                command = send(value)
            except StopIteration as end:
                if skipped:
                    simulation.happened["step skipped"] += 1
                    digest = step_digest(end.value)
                    self.note(StepSkipped(store.clock(), attempt, scope, key, step.name, digest))
                return
            kind, send, value = type(command), life.send, None
            try:
                if kind is c.Sleep:
                    yield command.seconds
                elif kind is steps.Call:
                    skipped = False
                    simulation.happened["step called"] += 1
                    value = yield from provider.call(
                        server, sent, step.token, step.name, command.derived
                    )
                elif kind is steps.Probe:
                    skipped = False
                    value = yield from provider.probe(step.name, command.derived)
                else:
                    value = yield from store.ask(server, attempt, command)
            except (c.StoreError, steps.NotDone, NoResponse) as error:
                send, value = life.throw, error
