"""PostgreSQL's transactions that are claims answer as the simulator's model of them does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.sim.claims_by_transaction import OpeningTable
from semel.core.commands import (
    Claim,
    Claimed,
    Complete,
    Found,
    Lookup,
    Open,
    Park,
    Release,
    StoreUnknown,
    Sweep,
    Takeover,
)
from semel.core.record import Response
from semel.testing.store_contract import ManualClock

from .contract import postgresql

KEYS = (b"k" * 16, b"o" * 16)
PRINT = b"\x01" + b"f" * 32
ANSWER = Response(201, ((b"a", b"b"),), b"body\x00\xff")
LEASE, DAY = 30.0, 86400.0

keys = st.sampled_from(KEYS)
which = st.integers(0, 3)
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["open", "claim", "sweep"]), keys),
        st.tuples(
            st.sampled_from(["complete", "rollback", "end", "finish", "release", "park"]),
            keys,
            which,
        ),
        st.tuples(st.just("takeover"), keys, which, st.booleans()),
        st.tuples(st.just("tick"), st.sampled_from([1.0, LEASE, DAY])),
    ),
    max_size=30,
)


class Both:
    """The real store and the model, given the same commands."""

    def __init__(self, store: Any, clock: ManualClock, open_: Callable[[Open], Any]) -> None:
        self.store = store
        self.clock = clock
        self.model = OpeningTable()
        self.transactions: dict[bytes, list[tuple[Any, int]]] = {key: [] for key in KEYS}
        """Under each key: every transaction that ever held it, and the model's token."""
        self.tokens: dict[bytes, list[tuple[int, int]]] = {key: [(-1, -1)] for key in KEYS}
        """Under each key, of claims that are records: theirs, ours."""
        self._open = open_

    def same(self, theirs: Any, ours: Any) -> None:
        if isinstance(theirs, Found) and isinstance(ours, Found):
            assert theirs.record._replace(token=0) == ours.record._replace(token=0)
        else:
            assert theirs == ours

    def command(self, key: bytes, of: Callable[[int], Any]) -> None:
        theirs, ours = self.store.execute(of(0)), self.model.apply(of(1), self.clock.now)
        if isinstance(theirs, Claimed) and isinstance(ours, Claimed):
            assert theirs.attempt == ours.attempt
            self.tokens[key].append((theirs.token, ours.token))
        else:
            self.same(theirs, ours)

    def open(self, key: bytes) -> None:
        command = Open(key, PRINT, b"me")
        theirs = self._open(command)
        ours = self.model.open(command, "attempt", "server", self.clock.now)
        if isinstance(ours, Claimed):
            assert theirs.token
            self.transactions[key].append((theirs, ours.token))
        else:
            self.same(theirs, ours)

    def complete(self, key: bytes, number: int) -> None:
        """The transaction's own completion: it commits, is fenced, or had ended."""
        if not self.transactions[key]:
            return
        made = self.transactions[key]
        theirs, ours = made[max(-len(made), -1 - number)]

        def told(complete: Callable[[], Any]) -> Any:
            try:
                return complete()
            except StoreUnknown:
                return "ended"

        def real() -> Any:
            if theirs._connection is None:
                return "ended"
            return theirs.complete(Complete(key, theirs.token, ANSWER, DAY, DAY))

        command = Complete(key, ours, ANSWER, DAY, DAY)
        assert told(real) == told(lambda: self.model.finish(command, self.clock.now))

    def end(self, key: bytes, number: int, how: str) -> None:
        """The transaction is rolled back, or its connection is lost."""
        if not self.transactions[key]:
            return
        made = self.transactions[key]
        theirs, ours = made[max(-len(made), -1 - number)]
        self.model.let_go(key, ours)
        if how == "end" and theirs._connection is not None:
            pid = theirs._connection.info.backend_pid
            self.store.ticking.connection.execute("select pg_terminate_backend(%s, 5000)", (pid,))
        theirs.rollback()

    def token(self, key: bytes, number: int) -> tuple[int, int]:
        known = self.tokens[key]
        return known[max(-len(known), -1 - number)]


def compare(both: Both, steps: list[Any]) -> None:
    for name, *rest in steps:
        if name == "tick":
            both.clock.now += rest[0]
            both.store.ticking.tick()
            continue
        key = rest[0]
        if name == "open":
            both.open(key)
        elif name == "complete":
            both.complete(key, rest[1])
        elif name in ("rollback", "end"):
            both.end(key, rest[1], name)
        elif name == "claim":
            both.command(key, lambda side, k=key: Claim(k, PRINT, LEASE, b"me"))
        elif name == "sweep":
            both.command(key, lambda side: Sweep(10))
        else:
            t = both.token(key, rest[1])
            made: dict[str, Callable[[int], Any]] = {
                "finish": lambda s, k=key, t=t: Complete(k, t[s], ANSWER, DAY, DAY),
                "release": lambda s, k=key, t=t: Release(k, t[s]),
                "park": lambda s, k=key, t=t: Park(k, t[s], "why", lapsed=True),
                "takeover": lambda s, k=key, t=t, e=rest[-1]: Takeover(
                    k, t[s], PRINT, LEASE, b"x", e
                ),
            }
            both.command(key, made[name])
        for each in KEYS:
            both.command(each, lambda side, k=each: Lookup(k))
    for made_of in both.transactions.values():
        for theirs, _ in made_of:
            theirs.rollback()


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=steps)
def test_opened_transactions_do_as_the_simulators_do(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    clock = ManualClock()
    store = postgresql(tmp_path_factory.mktemp("opening"), clock)
    store.start()
    store.ticking.tick()
    try:
        compare(Both(store, clock, store.open), steps)
    finally:
        store.stop()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=steps)
def test_opened_on_an_event_loop_they_do_the_same(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    clock = ManualClock()
    store = postgresql(tmp_path_factory.mktemp("opening"), clock)
    with asyncio.Runner() as runner:
        store.start()
        store.ticking.tick()

        def on_loop(command: Open) -> Any:
            opened = runner.run(store.aopen(command))
            return _OnLoop(opened, runner) if hasattr(opened, "acomplete") else opened

        try:
            compare(Both(store, clock, on_loop), steps)
        finally:
            store.stop()


class _OnLoop:
    """An async transaction, driven from here."""

    def __init__(self, transaction: Any, runner: asyncio.Runner) -> None:
        self._transaction = transaction
        self._runner = runner
        self.token = transaction.token

    @property
    def _connection(self) -> Any:
        return self._transaction._connection

    def complete(self, command: Complete) -> Any:
        return self._runner.run(self._transaction.acomplete(command))

    def rollback(self) -> None:
        async def on_loop() -> None:
            self._transaction.rollback()
            ending = asyncio.all_tasks() - {asyncio.current_task()}
            if ending:
                await asyncio.wait(ending)

        self._runner.run(on_loop())
