"""The contract of a store as a test class, sync and async, by the test's own clock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings

from semel.core.commands import (
    Abandoned,
    Claimed,
    Complete,
    ForgetStep,
    Found,
    Lookup,
    Park,
    Recorded,
    RecordStep,
    Release,
    Remembered,
    Renew,
    Settle,
    Steps,
    Sweep,
    Takeover,
)
from semel.core.record import Response, State
from semel.stores.base import Store
from semel.testing.store_contract.model import (
    ANSWER,
    DAY,
    KEY,
    LEASE,
    MONTH,
    OTHER,
    PRINT,
    SEQUENCES,
    Do,
    ManualClock,
    claim,
    compare,
    complete,
)


class StoreContract:
    """What every store does. Subclass it as `Test…` and say in `make_store` how yours is made.

    Each test has a store of its own, with nothing in it. `pytest` and `hypothesis` are needed.
    """

    examples: ClassVar[int] = 150
    """How many random sequences of commands are compared with what `MemoryStore` does."""
    awaited: ClassVar[bool] = False
    """Whether those sequences go through `aexecute`; each of the other tests goes both ways."""

    def make_store(self, folder: Path, clock: ManualClock) -> Store:
        """Return a store without records, not started, that takes its time from `clock()`.

        `folder` is empty and the test's own. Where the clock is the database's, let the store
        write `clock.now` into it before each command.
        """
        raise NotImplementedError

    @contextmanager
    def opened(self, folder: Path, clock: ManualClock) -> Iterator[Store]:
        """Make a store, start it, and stop it in the end."""
        made = self.make_store(folder, clock)
        made.start()
        try:
            yield made
        finally:
            made.stop()

    @pytest.fixture
    def clock(self) -> ManualClock:
        """The test's clock."""
        return ManualClock()

    @pytest.fixture
    def store(self, tmp_path: Path, clock: ManualClock) -> Iterator[Store]:
        """The store, started."""
        with self.opened(tmp_path, clock) as made:
            yield made

    @pytest.fixture(params=["sync", "async"])
    def do(self, request: pytest.FixtureRequest, store: Store) -> Iterator[Do]:
        """Give the store a command, on this thread or on an event loop."""
        if request.param == "sync":
            yield store.execute
            return
        with on_a_loop(store) as awaiting:
            yield awaiting

    def test_the_first_claim_wins_and_the_second_finds_it(self, do: Do, clock: ManualClock) -> None:
        first = do(claim())
        assert first == Claimed(first.token, 1)
        second = do(claim(owner=b"you"))
        assert isinstance(second, Found)
        assert second.now == clock.now
        record = second.record
        assert (record.key, record.state, record.token) == (KEY, State.IN_FLIGHT, first.token)
        assert (record.owner, record.fingerprint, record.attempt) == (b"me", PRINT, 1)
        assert record.lease_until == clock.now + LEASE

    def test_a_lookup_finds_what_is_there(self, do: Do) -> None:
        assert do(Lookup(KEY)) is None
        token = do(claim()).token
        assert do(Lookup(KEY)).record.token == token
        assert do(Lookup(OTHER)) is None

    def test_an_answer_comes_back_as_it_was(self, do: Do, clock: ManualClock) -> None:
        token = do(claim()).token
        assert do(complete(token)) is True
        record = do(Lookup(KEY)).record
        assert (record.state, record.response) == (State.COMPLETED, ANSWER)
        assert (record.expires_at, record.purge_at) == (clock.now + DAY, clock.now + DAY + MONTH)

    def test_a_completed_record_never_changes(self, do: Do) -> None:
        token = do(claim()).token
        do(complete(token))
        before = do(Lookup(KEY)).record
        other = Complete(KEY, token, Response(500, (), b"other"), DAY, MONTH)
        assert do(other) is False
        assert do(Release(KEY, token)) is False
        assert do(Park(KEY, token, "why", lapsed=False)) is False
        assert do(Renew(((KEY, token),), LEASE)) == {token}
        assert do(Lookup(KEY)).record == before

    @pytest.mark.parametrize("wrong", [-1, 1])
    def test_every_write_asks_for_the_token(self, do: Do, wrong: int) -> None:
        token = do(claim()).token
        before = do(Lookup(KEY)).record
        assert do(complete(token + wrong)) is False
        assert do(Release(KEY, token + wrong)) is False
        assert do(Park(KEY, token + wrong, "why", lapsed=False)) is False
        assert do(Renew(((KEY, token + wrong),), LEASE)) == {token + wrong}
        assert do(Lookup(KEY)).record == before

    def test_tokens_grow_through_release_and_takeover(self, do: Do, clock: ManualClock) -> None:
        tokens = [do(claim()).token]
        for _ in range(3):
            assert do(Release(KEY, tokens[-1])) is True
            tokens.append(do(claim()).token)
            clock.now += LEASE
            tokens.append(do(Takeover(KEY, tokens[-1], PRINT, LEASE, b"me", expired=False)).token)
        assert tokens == sorted(set(tokens))

    def test_a_living_lease_is_not_taken_over(self, do: Do, clock: ManualClock) -> None:
        token = do(claim()).token
        clock.now += LEASE - 0.001
        takeover = Takeover(KEY, token, PRINT, LEASE, b"you", expired=False)
        assert do(takeover).record.token == token
        clock.now += 0.001
        taken = do(takeover)
        assert taken == Claimed(taken.token, 2)
        assert do(complete(token)) is False
        assert do(complete(taken.token)) is True

    def test_one_takeover_wins(self, do: Do, clock: ManualClock) -> None:
        token = do(claim()).token
        clock.now += LEASE
        first = do(Takeover(KEY, token, PRINT, LEASE, b"one", expired=False))
        second = do(Takeover(KEY, token, PRINT, LEASE, b"two", expired=False))
        assert isinstance(first, Claimed)
        assert second.record.owner == b"one"

    def test_a_renewed_lease_holds(self, do: Do, clock: ManualClock) -> None:
        token, other = do(claim()).token, do(claim(OTHER)).token
        clock.now += LEASE + 5  # over, but nobody has taken it
        assert do(Renew(((KEY, token), (OTHER, other), (OTHER, 999)), LEASE)) == {999}
        assert do(Lookup(KEY)).record.lease_until == clock.now + LEASE

    def test_a_takeover_does_only_what_was_seen(self, do: Do, clock: ManualClock) -> None:
        token = do(claim()).token
        do(complete(token))
        clock.now += DAY
        seen_in_flight = Takeover(KEY, token, PRINT, LEASE, b"late", expired=False)
        assert do(seen_in_flight).record.state in (State.COMPLETED, State.EXPIRED)
        seen_expired = seen_in_flight._replace(expired=True)
        assert do(seen_expired).attempt == 1

    def test_an_answer_is_not_taken_over_before_its_expiry(
        self, do: Do, clock: ManualClock
    ) -> None:
        token = do(claim()).token
        do(complete(token))
        clock.now += DAY - 1
        assert do(Takeover(KEY, token, PRINT, LEASE, b"x", expired=True)).record.token == token

    def test_a_parked_record_stays(self, do: Do, clock: ManualClock) -> None:
        token = do(claim()).token
        assert do(Park(KEY, token, "lost", lapsed=True)) is False
        clock.now += LEASE
        assert do(Park(KEY, token, "lost", lapsed=True)) is True
        record = do(Lookup(KEY)).record
        assert (record.state, record.reason) == (State.PARKED, "lost")
        clock.now += DAY + MONTH
        for expired in (False, True):
            assert do(Takeover(KEY, token, PRINT, LEASE, b"x", expired)).record == record
        assert do(Sweep(10)) == 0
        assert do(complete(token)) is False

    def test_the_sweeper_leaves_a_tombstone_and_then_nothing(
        self, do: Do, clock: ManualClock, store: Store
    ) -> None:
        token = do(claim()).token
        do(complete(token))
        do(claim(OTHER))
        assert do(Sweep(10)) == 0
        clock.now += DAY
        assert do(Sweep(10)) == swept(store, 1)
        record = do(Lookup(KEY)).record
        assert (record.state, record.response, record.fingerprint) == (State.EXPIRED, None, PRINT)
        assert do(Sweep(10)) == 0
        clock.now += MONTH
        assert do(Sweep(10)) == swept(store, 1)
        assert do(Lookup(KEY)) is None
        assert do(Lookup(OTHER)).record.state is State.IN_FLIGHT

    def test_a_record_without_a_tombstone_goes_at_once(
        self, do: Do, clock: ManualClock, store: Store
    ) -> None:
        token = do(claim()).token
        do(Complete(KEY, token, ANSWER, DAY, 0.0))
        clock.now += DAY
        assert do(Sweep(10)) == swept(store, 1)
        assert do(Lookup(KEY)) is None

    def test_the_sweeper_does_no_more_than_asked(
        self, do: Do, clock: ManualClock, store: Store
    ) -> None:
        for number in range(5):
            key = bytes([number]) * 16
            do(complete(do(claim(key)).token, key))
        clock.now += DAY
        assert [do(Sweep(2)) for _ in range(4)] == [swept(store, n) for n in (2, 2, 1, 0)]

    def test_a_parked_record_is_settled_with_an_answer(self, do: Do, clock: ManualClock) -> None:
        token = do(claim()).token
        settle = Settle(KEY, token, ANSWER, DAY, MONTH)
        assert do(settle) is False  # it is in flight
        do(Park(KEY, token, "lost", lapsed=False))
        assert do(settle._replace(token=token + 1)) is False
        assert do(settle) is True
        record = do(Lookup(KEY)).record
        assert (record.state, record.response, record.reason) == (State.COMPLETED, ANSWER, None)
        assert record.expires_at == clock.now + DAY
        assert do(settle) is False

    def test_a_parked_record_is_settled_as_not_done(self, do: Do) -> None:
        token = do(claim()).token
        do(RecordStep(KEY, token, "sure", b"1", DAY))
        do(RecordStep(KEY, token, "unsure", None, DAY))
        do(Park(KEY, token, "lost", lapsed=False))
        assert do(Settle(KEY, token, None, DAY, MONTH)) is True
        assert do(Lookup(KEY)) is None
        assert do(Steps(KEY)) == {"sure": b"1"}
        assert do(claim()).token > token

    def test_a_request_is_remembered_until_its_operation_ends(
        self, do: Do, clock: ManualClock
    ) -> None:
        first = do(claim()._replace(request=b"first"))
        do(claim(OTHER))  # remembers nothing
        assert do(Abandoned(10, 0.0)) == ()
        clock.now += LEASE
        assert do(Abandoned(10, 5.0)) == ()
        clock.now += 5.0
        assert do(Abandoned(10, 5.0)) == (Remembered(KEY, first.token, 1, b"first"),)
        taken = do(Takeover(KEY, first.token, PRINT, LEASE, b"me", False, b"again"))
        assert do(Abandoned(10, 0.0)) == ()
        clock.now += LEASE
        assert do(Abandoned(10, 0.0)) == (Remembered(KEY, taken.token, 2, b"again"),)
        assert do(complete(taken.token)) is True
        assert do(Abandoned(10, 0.0)) == ()

    def test_the_longest_abandoned_come_first(self, do: Do, clock: ManualClock) -> None:
        for number in range(3):
            key = bytes([number]) * 16
            do(claim(key)._replace(request=b"x"))
            clock.now += 1.0
        clock.now += LEASE
        assert [found.key[0] for found in do(Abandoned(2, 0.0))] == [0, 1]

    def test_the_first_result_of_a_step_stays(self, do: Do) -> None:
        token = do(claim()).token
        assert do(Steps(KEY)) == {}
        assert do(RecordStep(KEY, token, "a", None, DAY)) == Recorded(None)
        assert do(Steps(KEY)) == {"a": None}
        assert do(RecordStep(KEY, token, "a", b"one", DAY)) == Recorded(b"one")
        assert do(RecordStep(KEY, token, "a", b"two", DAY)) == Recorded(b"one")
        assert do(RecordStep(KEY, token, "a", None, DAY)) == Recorded(b"one")
        assert do(RecordStep(KEY, token, "b", b"", DAY)) == Recorded(b"")
        assert do(Steps(KEY)) == {"a": b"one", "b": b""}
        assert do(Steps(OTHER)) == {}

    def test_a_step_asks_for_the_token(self, do: Do) -> None:
        token = do(claim()).token
        assert do(RecordStep(KEY, token + 1, "a", b"x", DAY)) is None
        do(complete(token))
        assert do(RecordStep(KEY, token, "a", b"x", DAY)) is None
        assert do(ForgetStep(KEY, token, "a")) is False
        assert do(Steps(KEY)) == {}

    def test_a_step_that_was_not_done_is_forgotten(self, do: Do) -> None:
        token = do(claim()).token
        do(RecordStep(KEY, token, "a", None, DAY))
        do(RecordStep(KEY, token, "b", b"done", DAY))
        assert do(ForgetStep(KEY, token, "a")) is True
        assert do(ForgetStep(KEY, token, "a")) is False
        assert do(ForgetStep(KEY, token, "b")) is False
        assert do(Steps(KEY)) == {"b": b"done"}

    def test_steps_outlive_a_release(self, do: Do) -> None:
        token = do(claim()).token
        do(RecordStep(KEY, token, "a", b"done", DAY))
        do(Release(KEY, token))
        do(claim())
        assert do(Steps(KEY)) == {"a": b"done"}

    def test_steps_of_an_earlier_life_are_not_taken(self, do: Do, clock: ManualClock) -> None:
        token = do(claim()).token
        do(RecordStep(KEY, token, "a", b"done", DAY))
        do(complete(token))
        clock.now += DAY
        again = do(Takeover(KEY, token, PRINT, LEASE, b"me", expired=True))
        assert again.attempt == 1
        assert do(Steps(KEY)) == {}

    def test_the_sweeper_takes_steps_of_ended_operations_only(
        self, do: Do, clock: ManualClock
    ) -> None:
        token = do(claim()).token
        do(RecordStep(KEY, token, "a", b"done", DAY))
        clock.now += DAY
        do(Sweep(10))
        assert do(Steps(KEY)) == {"a": b"done"}
        do(Release(KEY, token))
        clock.now += 3600
        do(Sweep(10))
        do(Sweep(10))
        assert do(Steps(KEY)) == {}

    def test_racing_claims_have_one_winner(self, store: Store) -> None:
        for number in range(20):
            key = number.to_bytes(16, "big")
            barrier = threading.Barrier(4)
            replies: list[Any] = []

            def race(key: bytes = key, barrier: Any = barrier, replies: Any = replies) -> None:
                barrier.wait()
                replies.append(store.execute(claim(key)))

            threads = [threading.Thread(target=race) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sum(isinstance(reply, Claimed) for reply in replies) == 1

    def test_it_replies_to_any_sequence_as_the_memory_store_does(
        self, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """So that what is proved in a simulation, on tables in memory, holds for the store."""

        @settings(
            max_examples=self.examples, deadline=None, suppress_health_check=list(HealthCheck)
        )
        @given(sequence=SEQUENCES)
        def run(sequence: list[Any]) -> None:
            clock = ManualClock()
            with self.opened(tmp_path_factory.mktemp("model"), clock) as made:
                if self.awaited:
                    with on_a_loop(made) as do:
                        compare(made, do, clock, sequence)
                else:
                    compare(made, made.execute, clock, sequence)

        run()


@contextmanager
def on_a_loop(store: Store) -> Iterator[Do]:
    """Give the store its commands on an event loop; what it keeps there is closed in the end."""
    with asyncio.Runner() as runner:
        try:
            yield lambda command: runner.run(store.aexecute(command))
        finally:
            close = getattr(store, "astop", None)
            if close is not None:
                runner.run(close())


def swept(store: Store, count: int) -> int:
    """How many a sweep finds: a store that expires by itself leaves none."""
    return 0 if store.expires_itself else count
