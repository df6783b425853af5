"""Clearing expired records away leaves requests their turn."""

from __future__ import annotations

from typing import Any

import pytest

from semel import Idempotency
from semel.core.commands import Sweep
from semel.stores.memory import MemoryStore


def test_a_pause_as_long_as_each_batch_is_left_to_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = iter([0.0, 0.25, 1.0, 1.5, 2.0, 2.0])
    monkeypatch.setattr("semel.idempotency.time.monotonic", lambda: next(ticks))
    left = iter([1000, 7, 0])
    idempotency = Idempotency(MemoryStore(), sweep_every=None)
    paused: list[float] = []

    def sweep(command: Any) -> int:
        assert isinstance(command, Sweep)
        return next(left)

    monkeypatch.setattr(idempotency.store, "execute", sweep)
    monkeypatch.setattr(idempotency._stopping, "wait", lambda s: paused.append(s))
    assert idempotency.sweep() == 1007
    assert paused == [0.25, 0.5]


def test_a_stop_ends_the_sweep_after_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    idempotency = Idempotency(MemoryStore(), sweep_every=None)
    monkeypatch.setattr(idempotency.store, "execute", lambda command: 1000)  # always more to do
    idempotency._stopping.set()
    assert idempotency.sweep() == 1000
