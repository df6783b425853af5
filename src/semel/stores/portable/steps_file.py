"""Commands on an SQLite database, whose steps are in a file beside it.

SQLite has one writer: a step recorded in the database itself would wait for the very transaction
of the handler that takes it.
"""

from __future__ import annotations

from collections.abc import Callable

from semel.core.commands import (
    ForgetStep,
    Found,
    Lookup,
    RecordStep,
    Reply,
    Steps,
    StoreCommand,
    Sweep,
)
from semel.stores.sqlite.steps import SQLiteSteps


def execute_with_steps(
    steps: SQLiteSteps, command: StoreCommand, execute: Callable[[StoreCommand], Reply]
) -> Reply:
    """Carry a command out in the file as well as in the database, which `execute` does."""

    def look_up(key: bytes) -> Found | None:
        return execute(Lookup(key))  # type: ignore[return-value]

    if isinstance(command, (Steps, RecordStep, ForgetStep)):
        return steps.carry_out(command, look_up)
    swept = steps.before(command, look_up)
    reply = execute(command)
    return reply + swept if isinstance(command, Sweep) and isinstance(reply, int) else reply
