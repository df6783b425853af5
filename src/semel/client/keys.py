"""Keys for logical requests: generated here, or issued by the service."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from semel.client.errors import KeysNotIssued

CREDENTIALS: Final = ("authorization", "cookie")
"""Headers of the request that needs a key which go with the request for keys."""

QUIET: Final = 5.0
"""Seconds between two requests for more keys where the first failed and some are left."""


def uuid7() -> str:
    """Return a fresh UUIDv7 (RFC 9562 section 5.7): milliseconds, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10), "big")
    bits = milliseconds & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62
    return str(uuid.UUID(int=bits & (1 << 128) - 1))


class _KeyBatch(NamedTuple):
    until: float
    """Seconds since the epoch, from which on these keys are not handed out."""
    keys: deque[str]


class KeyPool:
    """Keys that a service issued, fetched by the dozen: `RetryTransport(keys=KeyPool(url))`.

    - `url`: where they are issued, `https://shop.example/idempotency-keys`. The request for keys
      goes through the transport that the pool is given to, with the `Authorization` and `Cookie` of
      the request that needs one. Issued keys are bound to their caller: one pool, one caller.
    - `count`: keys to a fetch, 1 to 1000. `low`: when this many are left, more are fetched; where
      that fails, the rest is used up first.
    - `good_for`: a key that expires sooner than this is thrown away, so that its retries, and a
      `resume` after a crash, do not come too late for it.
    - `clock`: seconds since the epoch, for tests.

    Thread-safe. Raises `ValueError` naming the parameter.
    """

    def __init__(
        self,
        url: str,
        *,
        count: int = 50,
        low: int = 10,
        good_for: timedelta = timedelta(minutes=5),
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 1 <= count <= 1000:
            raise ValueError(f"count: give 1 to 1000, not {count!r}")
        if not 0 <= low < count:
            raise ValueError(f"low: give 0 to {count - 1}, less than count, not {low!r}")
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url: give the whole address of where keys are issued, not {url!r}")
        self.url = url
        self.body = json.dumps({"count": count}).encode()
        self._low = low
        self._good_for = good_for.total_seconds()
        self._clock = clock
        self._batches: deque[_KeyBatch] = deque()
        self._fetching = 0
        self._not_before = 0.0
        self._lock = threading.Lock()

    def needed(self) -> int | None:
        """Say how often the caller is to ask for keys now; None: not at all.

        Who is to ask calls `add` or `failed`, and `fetched` whatever happens. Nobody waits for
        anybody: while one asks, the others use what is left. That is asked for once, then not for
        `QUIET` seconds; where nothing is left, as often as for anything else (0).
        """
        with self._lock:
            left = self._left()
            if left > self._low or (left and (self._fetching or self._clock() < self._not_before)):
                return None
            self._fetching += 1
            return 1 if left else 0

    def add(self, status: int, body: bytes) -> None:
        """Take in the response to a request for keys.

        Raises `KeysNotIssued` where there are none in it and the pool is empty.
        """
        try:
            issued = json.loads(body)
            keys = [key for key in issued["keys"] if isinstance(key, str)]
            until = datetime.fromisoformat(issued["not_after"]).timestamp() - self._good_for
        except (ValueError, KeyError, TypeError, RecursionError):
            return self.failed(f"{status} {body[:200]!r}")
        if until <= self._clock():
            return self.failed("they expire within good_for; make it shorter")
        with self._lock:
            self._batches.append(_KeyBatch(until, deque(keys)))
        return None

    def failed(self, why: str) -> None:
        """Note that there were no keys. Raises `KeysNotIssued` if the pool is empty."""
        with self._lock:
            self._not_before = self._clock() + QUIET
            if not self._left():
                raise KeysNotIssued(f"{self.url}: no keys: {why}; nothing was sent")

    def fetched(self) -> None:
        """End what `needed` began."""
        with self._lock:
            self._fetching -= 1

    def take(self) -> str:
        """Return a key that was never returned before. Raises `KeysNotIssued`: there is none."""
        with self._lock:
            if not self._left():
                raise KeysNotIssued(f"{self.url}: the pool is empty; nothing was sent")
            return self._batches[0].keys.popleft()

    def _left(self) -> int:
        now = self._clock()
        while self._batches and (self._batches[0].until <= now or not self._batches[0].keys):
            self._batches.popleft()
        return sum(len(batch.keys) for batch in self._batches)
