"""Keeps the leases of running operations alive, from a thread of its own.

A thread, because a handler that blocks the event loop must not lose its claim by doing so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict

from semel.core.commands import Renew, StoreError
from semel.failpoints import failpoint
from semel.stores import Store

log = logging.getLogger("semel")


class Leases:
    """The claims that this process holds."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[int, tuple[bytes, float, float]] = {}  # token: key, lease, renewed at
        self.lost: set[int] = set()
        self._interval = 60.0
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def hold(self, key: bytes, token: int, lease: float) -> None:
        """Renew this claim each third of `lease` seconds until it is dropped."""
        self._held[token] = (key, lease, time.monotonic())
        if self._thread is None or lease / 3 < self._interval:
            self._adjust(lease / 3)

    def drop(self, token: int) -> None:
        """Stop renewing: the operation is over."""
        self._held.pop(token, None)
        self.lost.discard(token)

    def _adjust(self, interval: float) -> None:
        self._interval = min(self._interval, interval)
        if self._thread is None:
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name="semel-leases", daemon=True)
            self._thread.start()
        self._wake.set()

    def stop(self) -> None:
        """End the thread; claims still held are no longer renewed."""
        self._stopping = True
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join(5)

    def _run(self) -> None:
        pause = self._interval
        while not self._stopping:
            self._wake.wait(pause)
            self._wake.clear()
            pause = self._interval if self.renew_due() else min(self._interval, 1.0) / 4

    def renew_due(self) -> bool:
        """Renew every claim that is due. False where the store failed: try again soon."""
        now = time.monotonic()
        due: defaultdict[float, list[tuple[bytes, int]]] = defaultdict(list)
        for token, (key, lease, renewed) in list(self._held.items()):
            if now - renewed >= lease / 3 * 0.9 and token not in self.lost:
                due[lease].append((key, token))
        for lease, claims in due.items():
            failpoint("before_renew")
            try:
                lost = self._store.execute(Renew(tuple(claims), lease))
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
            held = self._held.get(token)
            if held is None:
                continue  # it ended meanwhile
            if token in lost:
                self.lost.add(token)
                log.warning(
                    "operation %s lost its lease: another attempt has taken the key over",
                    key[:6].hex(),
                )
            else:
                self._held[token] = (key, held[1], now)
