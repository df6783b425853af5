"""The records of operations whose transactions are savepoints of a test's own."""

from __future__ import annotations

from semel.core.commands import Complete, Reply, StoreCommand
from semel.stores import open_store
from semel.stores.base import StoreSetupError

__all__ = ["JoinedRecords"]


class JoinedRecords:
    """Records of this process's own, for operations whose transactions are a test's savepoints."""

    lookup_first = False

    def __init__(self) -> None:
        self._records = open_store("memory://")
        self._busy = False

    @property
    def file(self) -> None:
        """No file: nothing is written to one."""
        return None

    def now(self) -> float:
        """Return this machine's time."""
        return self._records.now()

    def start(self) -> None:
        """Nothing to open."""

    def stop(self) -> None:
        """Nothing to close: a service that stops in the middle of a test has its records still."""

    def execute(self, command: StoreCommand) -> Reply:
        """Carry out one command."""
        return self._records.execute(command)

    def take(self) -> None:
        """Note that an operation has the connection. Raises `StoreSetupError` where one has it."""
        if self._busy:
            raise StoreSetupError(
                "joined: another operation of this test has the connection: send requests one after"
                " another, or give each operation a database connection of its own"
            )
        self._busy = True

    def give_back(self) -> None:
        """Note that the operation has ended."""
        self._busy = False

    def complete(self, command: Complete) -> bool:
        """Complete the record. False: fenced."""
        return self._records.execute(command) is True
