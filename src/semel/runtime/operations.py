"""The way in to operations, of every protocol and of functions."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from semel.core import problems
from semel.core.commands import Found, Lookup, StoreError
from semel.core.engine import Outcome, Refuse, Request, run, settled
from semel.core.policy import Policy
from semel.core.problems import Problem
from semel.core.record import UnreadableRecord
from semel.runtime.drivers import AsyncDriver, Runtime, ThreadDriver

Driver = TypeVar("Driver", AsyncDriver, ThreadDriver)


class Known(NamedTuple):
    """An outcome that needs no operation: the record says it, or the request cannot have one."""

    outcome: Outcome
    key: bytes = b""
    """The key's hash, where the key is known."""
    until: float = 0.0
    """Of a `Replay`: until when it stays the outcome of the same request, by the store's clock."""


class Operations:
    """Begins the operations of one process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._process = os.urandom(8)
        self._attempts = itertools.count(1)

    def owner(self) -> bytes:
        """Return a name for an attempt that no other attempt of any process has."""
        return self._process + next(self._attempts).to_bytes(6, "big")

    def enter(
        self,
        kind: type[Driver],
        key: bytes,
        policy: Policy,
        fingerprint: Callable[[int], bytes],
        *,
        remembered: Callable[[], bytes | None] | None = None,
        left: float | None = None,
    ) -> Driver | Known:
        """Return what the record of a key says by itself, or the driver of an operation under it.

        The one way in, of every protocol and of functions. `kind` is the driver that the caller can
        carry out, `fingerprint` gives that of the request by the number of its algorithm,
        `remembered` the request itself where it is to be stored with its claim. `left`: for how
        many seconds an issued key is good still; it may be good no more.
        """
        late = left is not None and left <= 0
        try:
            found = None if late else self.look_up(key)
            if found is not None:
                outcome = settled(fingerprint, policy, *found)
                if outcome is not None:
                    until = found.record.expires_at
                    if left is not None:  # once its time is over, the key itself is refused
                        until = min(until, found.now + left)
                    return Known(self._runtime.outcomes.passed(outcome, key), key, until)
        except UnreadableRecord:
            return Known(self.refuse(problems.STORE_UNAVAILABLE, key), key)
        request = Request(key, self.owner(), fingerprint, remembered and remembered(), late=late)
        life = run(request, policy, found, opens=self.opens(policy))
        driver = kind(self._runtime, life, key, policy)
        driver.looked_up = found is not None
        return driver

    def resume(self, kind: type[Driver], request: Request, policy: Policy, found: Found) -> Driver:
        """Return the driver of an operation that a crash has abandoned."""
        life = run(request, policy, found)
        return kind(self._runtime, life, request.key, policy)

    def refuse(self, problem: Problem, key: bytes | None = None) -> Refuse:
        """Return the refusal of a request that gets no operation."""
        return self._runtime.outcomes.passed(Refuse(problem), key)

    def look_up(self, key: bytes) -> Found | None:
        """Read a record where the store can do so at next to no cost, before anything is claimed.

        None where there is none, where reading is not cheap, or where the store fails: the claim
        will say.
        """
        if not self._runtime.store.lookup_first:
            return None
        try:
            return self._runtime.store.execute(Lookup(key))  # type: ignore[return-value]
        except StoreError:
            return None

    def opens(self, policy: Policy) -> bool:
        """Say whether an operation under this policy claims by its own transaction.

        Where its request is remembered, or its handler may need several attempts to be counted,
        the claim has to outlive a crash, and is a record.
        """
        return (
            self._runtime.store.opens
            and policy.guarantee == "atomic"
            and not policy.remember_request
        )
