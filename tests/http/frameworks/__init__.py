"""One small shop in each framework, whose behaviour a test can compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from semel import Idempotency, current_async_operation


class Declined(Exception):
    """An error of the domain, which the application answers with 402."""


class Crash(Exception):
    """A bug."""


@dataclass
class Shop:
    """What the applications have in common, and how often their handlers ran."""

    idempotency: Idempotency
    asks: bool = False
    catch_all: bool = False
    debug: bool = False
    runs: list[str] = field(default_factory=list)
    banned: set[str] = field(default_factory=set)
    locked_out: set[str] = field(default_factory=set)
    streaming: Callable[[int], Any] | None = None

    def run(self, name: str) -> int:
        self.runs.append(name)
        return len(self.runs)

    async def write(self, how: str) -> None:
        db = await current_async_operation().connection()
        await db.execute(f"insert into ledger values ('{how}')")


CHUNKS = (b"one,", b"two,", b"three")
