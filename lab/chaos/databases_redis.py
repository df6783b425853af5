"""Chaos on Redis or Valkey: every effect is elsewhere, so nothing is atomic there."""

from __future__ import annotations

import itertools
import os
from typing import Any

from lab.chaos.databases import DATABASE
from semel.stores import Store
from semel.testing.servers import Valkey

_numbers = itertools.count()


def always_written() -> Valkey:
    """Return a server that answers a write only once it is on disk."""
    return Valkey("--appendonly", "yes", "--appendfsync", "always")


class RedisUnderTest:
    """Keys under a prefix of their own on a server that is shared."""

    title = "Valkey appendfsync=always"
    points: tuple[str, ...] = (
        "before_claim",
        "after_claim",
        "before_complete",
        "after_complete",
        "before_release",
        "after_release",
        "before_renew",
        DATABASE,
    )
    insert = ""

    def __init__(self, server: Valkey) -> None:
        self._server = server
        self._prefix = f"chaos_{os.getpid()}_{next(_numbers)}"

    def store(self) -> Store:
        """Return a store under the prefix."""
        from semel.stores.redis import RedisStore

        return RedisStore(self._server.url, prefix=self._prefix, timeout=5)

    def effects(self) -> list[tuple[str, str, int]]:
        """No table: what was done is in the far side's log."""
        return []

    def states(self) -> dict[bytes, int]:
        """Return the state of every record."""
        import redis

        found: dict[bytes, int] = {}
        with redis.Redis(port=self._server.port) as client:
            for name in client.scan_iter(f"{self._prefix}:{{*}}", count=1000):
                state: Any = client.hget(name, "state")
                if state is not None:
                    found[bytes.fromhex(name.decode().partition("{")[2][:-1])] = int(state)
        return found

    def forget_tables(self) -> None:
        """There are none."""

    def crash(self) -> None:
        """Kill the server and start it again."""
        self._server.crash()
        self._server.start()
