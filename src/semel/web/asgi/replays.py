"""A cache of responses given lately, by the exact request.

A completed record never changes until it expires, so whoever repeats a request byte for byte gets
its response without the request being hashed or the store being asked. Entries are compared by
equality, not by hash, and the caller's credentials are part of the comparison.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from semel.core.engine import Replay

ENTRIES = 512
LARGEST = 32 * 1024
"""Bytes of a request and its response together; with `ENTRIES` this bounds the memory to 16 MiB."""


class CachedResponse(NamedTuple):
    """A response ready to be sent again."""

    outcome: Replay
    key: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    """As they are sent."""
    expires_at: float
    """By the store's clock."""


class Replays:
    """The last responses of one process, oldest out first."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[Hashable, CachedResponse] = {}

    def get(self, asked: Hashable, now: float) -> CachedResponse | None:
        """Return the response to exactly this request, unless it has expired at `now`."""
        kept = self._kept.get(asked)
        if kept is not None and kept.expires_at <= now:
            self._kept.pop(asked, None)
            return None
        return kept

    def keep(self, asked: Hashable, size: int, kept: CachedResponse) -> None:
        """Keep the response to a request of `size` bytes, if the two are small enough."""
        if size + len(kept.outcome.response.body or b"") > LARGEST:
            return
        while len(self._kept) >= ENTRIES:
            self._kept.pop(next(iter(self._kept)), None)
        self._kept[asked] = kept
