"""A thousand clients and a store that is down for 30 s, in virtual time.

`python -m tests.client.test_retry_storm` prints what the default budget rests on.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import random
from collections import Counter
from typing import NamedTuple

from semel.client import Budget, Retry
from semel.client.retry import Broke, Life, ReceivedResponse, RetryPause, SendAttempt, live

CLIENTS = 1000
EVERY = 10.0
"""Seconds between a client's logical requests, so 100 a second arrive."""
CAPACITY = 150.0
"""Requests a second that the service can look at."""
PATIENCE = 5.0
"""Seconds after which an attempt times out; the service works on it all the same."""
DOWN, UP, END = 60.0, 90.0, 140.0


class Told(NamedTuple):
    attempts: Counter[int]
    """By second."""
    good: Counter[int]

    def recovered(self) -> int:
        """Return the seconds after which nine tenths of the usual goodput were back for good."""
        usual = sum(self.good[second] for second in range(20, 60)) / 40
        slow = [s for s in range(int(UP), int(END) - 5) if self.smooth(s) < 0.9 * usual]
        return max(slow, default=int(UP) - 1) + 1 - int(UP)

    def smooth(self, second: int) -> float:
        return sum(self.good[second + more] for more in range(5)) / 5


def storm(budget: Budget, seed: int = 1) -> Told:
    """Let each client have a budget like that one."""
    rng = random.Random(seed)
    now, free_at = 0.0, 0.0
    attempts: Counter[int] = Counter()
    good: Counter[int] = Counter()
    order = itertools.count()
    agenda: list[tuple[float, int, int, object]] = []
    lives: dict[int, Life] = {}
    budgets = [copy.copy(budget) for _ in range(CLIENTS)]

    def begin(client: int) -> None:
        life = live(
            Retry(),
            budgets[client],
            keyed=True,
            begun=False,
            clock=lambda: now,
            wall=lambda: now,
            random=rng.random,
        )
        lives[client] = life
        carry_out(client, next(life))

    def carry_out(client: int, command: SendAttempt | RetryPause) -> None:
        nonlocal free_at
        if isinstance(command, RetryPause):
            heapq.heappush(agenda, (now + command.seconds, next(order), client, None))
            return
        attempts[int(now)] += 1
        free_at = max(free_at, now) + 1 / CAPACITY  # a refusal takes its turn as well
        late = free_at - now > PATIENCE
        status = 503 if DOWN <= now < UP else 201
        told = Broke("ReadTimeout", sent=True) if late else ReceivedResponse(status, {}, b"")
        when = now + PATIENCE if late else free_at
        heapq.heappush(agenda, (when, next(order), client, told))

    for client in range(CLIENTS):
        heapq.heappush(agenda, (rng.uniform(0, EVERY), next(order), client, "begin"))
    while agenda:
        now, _, client, told = heapq.heappop(agenda)
        if now > END:
            break
        if told == "begin":
            begin(client)
            continue
        try:
            carry_out(client, lives[client].send(told))  # type: ignore[arg-type]
        except StopIteration:
            if isinstance(told, ReceivedResponse) and told.status == 201:
                good[int(now)] += 1
            later = now + rng.uniform(0.5, 1.5) * EVERY
            heapq.heappush(agenda, (later, next(order), client, "begin"))
    return Told(attempts, good)


def test_goodput_is_back_soon_after_the_store_is() -> None:
    told = storm(Budget())
    assert told.recovered() <= 10
    unbounded = storm(Budget(1.0, 1000))
    assert unbounded.recovered() > 10, "without a budget the storm does not show: a wrong model"


def test_a_store_that_is_down_is_not_asked_twice_as_often_for_long() -> None:
    told = storm(Budget())
    usual = sum(told.attempts[second] for second in range(20, 60)) / 40
    late = sum(told.attempts[second] for second in range(75, 90)) / 15
    assert late < 1.75 * usual
    assert sum(storm(Budget(1.0, 1000)).attempts[second] for second in range(75, 90)) / 15 > late


if __name__ == "__main__":
    for title, budget in {
        "reserve 1": Budget(0.1, 1),
        "reserve 3": Budget(),
        "reserve 5": Budget(0.1, 5),
        "none": Budget(1.0, 1000),
    }.items():
        result = storm(budget)
        loads = [result.attempts[second] for second in range(55, 110, 5)]
        print(f"{title}: back after {result.recovered()} s; attempts every 5 s from 55: {loads}")
