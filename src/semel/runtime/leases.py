"""Renewal of the leases of running operations, on a thread of its own.

A thread, because a handler that blocks the event loop must not lose its claim by doing so.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import defaultdict

from semel.core.commands import Renew, StoreError
from semel.failpoints import failpoint
from semel.runtime import servers
from semel.runtime.native import NativeEvent, NativeThread
from semel.stores.base import Store, store_for_a_thread

log = logging.getLogger("semel")


IDLE = 60.0
"""Seconds between looks while no claim is held."""


class _Claim:
    __slots__ = ("key", "lease", "renewed")

    def __init__(self, key: bytes, lease: float, renewed: float) -> None:
        self.key = key
        self.lease = lease
        self.renewed = renewed


class Leases:
    """The claims that this process holds."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[tuple[bytes, int], _Claim] = {}  # a token alone names no key
        self.lost: set[tuple[bytes, int]] = set()
        self._interval = IDLE
        self._wake: threading.Event | NativeEvent = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | NativeThread | None = None
        self._run_number = 0

    def hold(self, key: bytes, token: int, lease: float) -> None:
        """Renew this claim each third of `lease` seconds until it is dropped."""
        self._held[key, token] = _Claim(key, lease, time.monotonic())
        if self._thread is None or lease / 3 < self._interval:
            self._hurry(lease / 3)

    def drop(self, key: bytes, token: int) -> None:
        """Stop renewing: the operation is over."""
        self._held.pop((key, token), None)
        self.lost.discard((key, token))

    def _hurry(self, interval: float) -> None:
        with self._lock:
            self._interval = min(self._interval, interval)
            if self._thread is None:
                self._thread = self._begin()
        self._wake.set()

    def _begin(self) -> threading.Thread | NativeThread:
        """Begin the thread: a real one, with connections of its own, where others are greenlets."""
        self._run_number += 1
        twin = store_for_a_thread(self._store) if servers.greenlets() == "gevent" else None
        run = functools.partial(self._run, self._run_number, twin or self._store)
        if twin is not None:
            self._wake = NativeEvent()
            return NativeThread(run)
        thread = threading.Thread(target=run, name="semel-leases", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """End the thread; claims still held are no longer renewed."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._run_number += 1
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(5)

    def _run(self, number: int, store: Store) -> None:
        renewed = True
        while self._run_number == number:
            hurried = self._wake.wait(self._interval if renewed else min(self._interval, 1.0) / 4)
            self._wake.clear()
            renewed = self.renew_due(store)
            if not hurried:
                # Only after a whole pause: to forget the pace as soon as nothing is held would have
                # each lone operation wake this thread, at twice the price of the operation.
                self._interval = IDLE  # before the look at what is held: see `hold`
                thirds = [claim.lease / 3 for claim in list(self._held.values())]
                self._interval = min(thirds, default=IDLE)
        if store is not self._store:
            store.stop()

    def renew_due(self, store: Store) -> bool:
        """Renew every claim that is due. False where the store failed: try again soon."""
        now = time.monotonic()
        due: defaultdict[float, list[tuple[bytes, int]]] = defaultdict(list)
        for name, claim in list(self._held.items()):
            if now - claim.renewed >= claim.lease / 3 * 0.9 and name not in self.lost:
                due[claim.lease].append(name)
        for lease, claims in due.items():
            try:
                failpoint("before_renew")
                lost = store.execute(Renew(tuple(claims), lease))
            except StoreError as error:
                log.warning("could not renew %d leases: %s", len(claims), error)
                return False
            except Exception:
                log.exception("could not renew %d leases", len(claims))
                return False
            self._note(claims, lost if isinstance(lost, frozenset) else frozenset(), now)
        return True

    def _note(self, claims: list[tuple[bytes, int]], lost: frozenset[int], now: float) -> None:
        for key, token in claims:
            held = self._held.get((key, token))
            if held is None:
                continue  # it ended meanwhile
            if token in lost:
                self.lost.add((key, token))
                if (key, token) not in self._held:
                    self.lost.discard((key, token))  # it ended this instant
                log.warning(
                    "operation %s lost its lease: another attempt has taken the key over",
                    key[:6].hex(),
                )
            else:
                held.renewed = now
