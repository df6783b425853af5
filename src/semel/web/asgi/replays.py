"""Answers given lately, by the exact request: a completed record never changes until it expires.

Whoever repeats a request byte for byte gets its answer without the request being hashed or the
store being asked. Kept by equality, not by hash, with the caller's credentials in the comparison.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

ENTRIES = 512
LARGEST = 32 * 1024
"""Bytes of a request and its answer together; with `ENTRIES` this bounds the memory to 16 MiB."""


class Kept(NamedTuple):
    """An answer ready to be sent again."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    expires_at: float
    """By the store's clock."""


class Replays:
    """The last answers of one process, oldest out first."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[Hashable, Kept] = {}

    def get(self, asked: Hashable, now: float) -> Kept | None:
        """Return the answer to exactly this request, unless it has expired at `now`."""
        kept = self._kept.get(asked)
        if kept is not None and kept.expires_at <= now:
            self._kept.pop(asked, None)
            return None
        return kept

    def keep(self, asked: Hashable, size: int, kept: Kept) -> None:
        """Keep the answer to a request of `size` bytes, if the two are small enough."""
        if size + len(kept.body) > LARGEST:
            return
        while len(self._kept) >= ENTRIES:
            self._kept.pop(next(iter(self._kept)), None)
        self._kept[asked] = kept
