"""Random sequences of commands, and their comparison with what `MemoryTable` does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from semel.core.commands import (
    Claim,
    Claimed,
    Complete,
    Found,
    Lookup,
    Park,
    Release,
    Renew,
    StoreCommand,
    Sweep,
    Takeover,
)
from semel.core.record import Response
from semel.stores.base import Store
from semel.stores.memory import MemoryTable

KEY, OTHER = b"k" * 16, b"o" * 16
PRINT = b"\x01" + b"f" * 32
ANSWER = Response(201, ((b"a", b"b"),), b"body\x00\xff")
LEASE, DAY, MONTH = 30.0, 86400.0, 30 * 86400.0

Do = Callable[[Any], Any]


class ManualClock:
    """Seconds since the epoch, as the test says."""

    now = 1_000_000.0

    def __call__(self) -> float:
        """Return the present time."""
        return self.now


def claim(key: bytes = KEY, owner: bytes = b"me") -> Claim:
    return Claim(key, PRINT, LEASE, owner)


def complete(token: int, key: bytes = KEY) -> Complete:
    return Complete(key, token, ANSWER, DAY, MONTH)


_keys = st.sampled_from([KEY, OTHER])
SEQUENCES = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), _keys),
        st.tuples(
            st.sampled_from(["complete", "release", "park", "renew"]), _keys, st.integers(0, 3)
        ),
        st.tuples(st.just("takeover"), _keys, st.integers(0, 3), st.booleans()),
        st.tuples(st.just("tick"), st.sampled_from([1.0, LEASE, DAY, MONTH])),
        # As many as there are keys: under a limit, which come first is a store's own affair.
        st.tuples(st.just("sweep"), st.integers(2, 3)),
    ),
    max_size=40,
)


class _Comparison:
    """A store and the memory store's table, each given the same commands with its own tokens."""

    def __init__(self, real: Store, do: Do, clock: ManualClock) -> None:
        self._real = real
        self._do = do
        self._clock = clock
        self._model = MemoryTable()
        # Under each key: the store's, the model's. Tokens of different keys may be the same.
        self._tokens: dict[bytes, list[tuple[int, int]]] = {KEY: [(-1, -1)], OTHER: [(-1, -1)]}

    def tokens(self, step: Any) -> tuple[int, int]:
        """Return the tokens that a step names: by its number, from the last one granted."""
        if len(step) < 3:
            return (-1, -1)
        known = self._tokens[step[1]]
        number: int = step[2]
        return known[max(-len(known), -1 - number)]

    def give(self, step: Any) -> None:
        """Give both sides the command of a step, and compare their replies."""
        ours, theirs = (_command(step, token) for token in self.tokens(step))
        if self._real.expires_itself:
            self._model.apply(Sweep(1000), self._clock.now)
            if isinstance(ours, Sweep):
                return
        self._compare(step, self._do(ours), self._model.apply(theirs, self._clock.now))

    def _compare(self, step: Any, real: Any, model: Any) -> None:
        if isinstance(real, Claimed) and isinstance(model, Claimed):
            assert real.attempt == model.attempt
            tokens = self._tokens[step[1]]
            assert real.token > tokens[-1][0]
            tokens.append((real.token, model.token))
        elif isinstance(real, Found) and isinstance(model, Found):
            expected = model.record._replace(token=0), model.now
            assert (real.record._replace(token=0), real.now) == expected
        elif isinstance(real, frozenset) and isinstance(model, frozenset):
            assert len(real) == len(model)
        else:
            assert real == model


def _command(step: Any, token: int) -> StoreCommand:
    name, *rest = step
    match name:
        case "sweep":
            return Sweep(rest[0])
        case "look up":
            return Lookup(rest[0])
        case "claim":
            return claim(rest[0])
        case "complete":
            return complete(token, rest[0])
        case "release":
            return Release(rest[0], token)
        case "park":
            return Park(rest[0], token, "why", lapsed=True)
        case "renew":
            return Renew(((rest[0], token),), LEASE)
        case _:
            return Takeover(rest[0], token, PRINT, LEASE, b"x", rest[2])


def compare(real: Store, do: Do, clock: ManualClock, steps: list[Any]) -> None:
    """Give the store and the table these steps, and look at both records after each."""
    comparison = _Comparison(real, do, clock)
    for step in steps:
        if step[0] == "tick":
            clock.now += step[1]
        else:
            comparison.give(step)
        for key in (KEY, OTHER):
            comparison.give(("look up", key))
