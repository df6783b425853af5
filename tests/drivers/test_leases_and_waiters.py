"""Leases that are kept and lost, and repeats that wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from semel.core.commands import (
    Claim,
    Claimed,
    Renew,
    Reply,
    StoreCommand,
    StoreUnavailable,
    Takeover,
    Wait,
)
from semel.runtime.leases import Leases
from semel.runtime.waiters import Waiters
from semel.stores.memory import MemoryStore


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


class Watched(MemoryStore):
    """Counts renewals, and fails the first few."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.renewals = 0
        self.failures = failures

    def execute(self, command: StoreCommand) -> Reply:
        if isinstance(command, Renew):
            self.renewals += 1
            if self.failures:
                self.failures -= 1
                raise StoreUnavailable("down for a moment")
        return super().execute(command)


def claim(store: MemoryStore, key: bytes, lease: float) -> int:
    reply = store.execute(Claim(key, b"f", lease, b"me"))
    assert isinstance(reply, Claimed)
    return reply.token


def test_a_lease_is_renewed_while_it_is_held_and_no_longer() -> None:
    store = Watched()
    leases = Leases(store)
    token = claim(store, b"k", 0.03)
    leases.hold(b"k", token, 0.03)
    assert until(lambda: store.renewals >= 5)
    leases.drop(b"k", token)
    assert until(lambda: leases._interval > 1)
    seen = store.renewals
    leases.hold(b"other", claim(store, b"other", 0.03), 0.03)
    assert until(lambda: store.renewals > seen)
    leases.stop()


def test_lone_operations_one_after_another_do_not_wake_the_thread_each() -> None:
    """Each wake-up costs the operation as much again: the price of a first request had doubled."""
    store = Watched()
    leases = Leases(store)
    wakes: list[float] = []

    class Counted(threading.Event):
        def set(self) -> None:
            wakes.append(time.monotonic())
            super().set()

    leases._wake = Counted()
    for number in range(300):
        key = b"key-%d" % number
        token = claim(store, key, 30.0)
        leases.hold(key, token, 30.0)
        leases.drop(key, token)
        if number % 50 == 0:
            time.sleep(0.01)  # time for the thread to see that nothing is held
    assert len(wakes) <= 2
    leases.stop()


def test_a_store_that_fails_for_a_moment_is_asked_again_soon() -> None:
    store = Watched(failures=3)
    leases = Leases(store)
    token = claim(store, b"k", 0.6)
    leases.hold(b"k", token, 0.6)
    assert until(lambda: store.renewals >= 4)
    leases.stop()
    assert not leases.lost


def test_a_claim_that_was_taken_over_is_seen_to_be_lost_and_renewed_no_more() -> None:
    store = Watched()
    leases = Leases(store)
    token = claim(store, b"k", -1.0)
    store.execute(Takeover(b"k", token, b"f", 30.0, b"another", False))
    leases.hold(b"k", token, 0.03)
    assert until(lambda: (b"k", token) in leases.lost)
    leases.drop(b"k", token)
    assert not leases.lost
    leases.stop()


def test_one_thread_keeps_the_leases_however_many_ask_at_once() -> None:
    store = Watched()
    leases = Leases(store)
    gate = threading.Barrier(8)

    def hold(number: int) -> None:
        key = b"%d" % number
        gate.wait()
        leases.hold(key, claim(store, key, 5.0), 5.0)

    threads = [threading.Thread(target=hold, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(t.name == "semel-leases" and t is leases._thread for t in threading.enumerate()) == 1
    leases.stop()
    assert leases._thread is None


def test_a_repeat_is_woken_by_the_end_of_the_first_and_not_by_time() -> None:
    waiters = Waiters()
    waiters.running(b"k")
    passed: list[float | None] = []

    async def waits() -> None:
        passed.append(await waiters.await_end(Wait(b"k", 60.0, 60.0, 10)))

    threads = [
        threading.Thread(target=lambda: asyncio.run(waits())),
        threading.Thread(
            target=lambda: passed.append(waiters.wait_end(Wait(b"k", 60.0, 60.0, 10)))
        ),
    ]
    for thread in threads:
        thread.start()
    assert until(lambda: len(waiters._running[b"k"]) == 2)
    waiters.ended(b"k")
    for thread in threads:
        thread.join(10)
    assert len(passed) == 2
    assert not waiters._waiting
    assert not waiters._running


def test_no_more_wait_than_may() -> None:
    waiters = Waiters()
    waiters.running(b"k")

    async def crowd() -> list[float | None]:
        waiting = [
            asyncio.ensure_future(waiters.await_end(Wait(b"k", 60.0, 60.0, 3))) for _ in range(10)
        ]
        await asyncio.sleep(0)
        waiters.ended(b"k")
        return list(await asyncio.gather(*waiting))

    results = asyncio.run(crowd())
    assert sum(result is None for result in results) == 7


def test_who_stops_waiting_leaves_nothing_behind() -> None:
    waiters = Waiters()
    waiters.running(b"k")

    async def impatient() -> None:
        task = asyncio.ensure_future(waiters.await_end(Wait(b"k", 60.0, 60.0, 3)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for _ in range(5):
        asyncio.run(impatient())
    assert waiters._running == {b"k": []}
    assert not waiters._waiting


def test_a_waiter_whose_loop_has_gone_does_not_keep_the_others_asleep() -> None:
    waiters = Waiters()
    waiters.running(b"k")
    loop = asyncio.new_event_loop()
    task = loop.create_task(waiters.await_end(Wait(b"k", 60.0, 60.0, 3)))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    woken: list[float | None] = []
    thread = threading.Thread(
        target=lambda: woken.append(waiters.wait_end(Wait(b"k", 60.0, 60.0, 3)))
    )
    thread.start()
    assert until(lambda: len(waiters._running[b"k"]) == 2)
    waiters.ended(b"k")
    thread.join(10)
    assert woken
    task._log_destroy_pending = False  # type: ignore[attr-defined]
