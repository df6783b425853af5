"""One small shop in each framework, whose behaviour a test can compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from semel import Idempotency, current_async_operation, current_operation


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
    required: bool = False
    runs: list[str] = field(default_factory=list)
    banned: set[str] = field(default_factory=set)
    locked_out: set[str] = field(default_factory=set)
    whose: dict[str, str | None] = field(default_factory=dict)
    streaming: Callable[[int], Any] | None = None

    def run(self, name: str) -> int:
        self.runs.append(name)
        return len(self.runs)

    def user(self, token: str | None) -> str | None:
        """Return whose token it is: it bears the user's name, unless `whose` says otherwise."""
        return None if token is None else self.whose.get(token, token)

    async def write(self, how: str) -> None:
        db = await current_async_operation().connection()
        await db.execute(f"insert into ledger values ('{how}')")

    def write_now(self, how: str) -> None:
        current_operation().connection().execute(f"insert into ledger values ('{how}')")


CHUNKS = (b"one,", b"two,", b"three")
