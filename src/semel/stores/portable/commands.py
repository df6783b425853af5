"""Every store command, as statements that all SQL databases understand.

Safe in READ COMMITTED and on any snapshot: the unique key arbitrates, every write compares the
token, and what a takeover or a completion is judged by stands in the statement that writes. The
token is the number of the row, so a takeover is a delete and an insert: tokens grow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from semel.core.commands import (
    Abandoned,
    Claim,
    Claimed,
    Complete,
    ForgetStep,
    Found,
    Lookup,
    Park,
    Recorded,
    RecordStep,
    Release,
    Remembered,
    Renew,
    Reply,
    Settle,
    Steps,
    StoreCommand,
    Sweep,
    Takeover,
)
from semel.core.record import State, encode_response, read_row
from semel.core.steps import LONGEST_NAME
from semel.failpoints import failpoint
from semel.stores.portable.connection import SQLConnection
from semel.stores.portable.dialects import Dialect
from semel.stores.portable.statements import written_for

READS: Final = (Lookup, Steps, Abandoned)
"""Commands that change nothing: they may be given again after any error."""


class PortableCommands:
    """Carries commands out on a connection.

    Where several statements are one, the connection's `transaction` makes them so; within a
    transaction that is open already they are part of that. `clock` gives seconds since the epoch
    in the place of the database's clock, for tests. Raises `StoreSetupError` for a `paramstyle`
    that is not known.
    """

    def __init__(
        self, dialect: Dialect, paramstyle: str, clock: Callable[[], float] | None = None
    ) -> None:
        self._dialect = dialect
        self._clock = clock
        self._statements = written_for(dialect, paramstyle, given_now=clock is not None)

    def apply(
        self,
        connection: SQLConnection,
        command: StoreCommand,
        forget_unsure: Callable[[bytes], None] | None = None,
    ) -> Reply:
        """Carry out one command, all or nothing.

        `forget_unsure` deletes the marks of steps that were begun and never ended, where steps are
        kept elsewhere.
        """
        match command:
            case Lookup(key):
                return self._found(connection, key)
            case Claim():
                return self._claim(connection, command)
            case Takeover():
                return self._take_over(connection, command)
            case Complete():
                with connection.bounded():
                    return self.complete(connection, command)
            case Release(key, token):
                return self._changed(connection, "release", key=key, token=token)
            case Park(key, token, reason, lapsed):
                seen = {"key": key, "token": token, "reason": reason, "lapsed": int(lapsed)}
                return self._changed(connection, "park", **seen)
            case Renew(claims, lease):
                return self._renew(connection, claims, lease)
            case Settle():
                return self._settle(connection, command, forget_unsure)
            case Sweep(limit):
                return self._sweep(connection, limit)
            case Abandoned(limit, idle):
                rows = self._rows(connection, "abandoned", limit=limit, idle=idle)
                return tuple(
                    Remembered(bytes(key), token, attempt, bytes(request))
                    for key, token, attempt, request in rows
                )
            case Steps() | RecordStep() | ForgetStep():
                return self._apply_to_steps(connection, command)
        raise AssertionError(command)

    def complete(self, connection: SQLConnection, command: Complete) -> bool:
        """Write the response in the transaction that is open, if the claim still holds (S4, S5)."""
        return self._run(connection, "complete", **_answered(command)) == 1

    # --- records ---------------------------------------------------------------------------

    def _found(self, connection: SQLConnection, key: bytes) -> Found | None:
        for row in self._rows(connection, "lookup", key=key):
            return Found(read_row(row[:-1]), float(row[-1]))
        return None

    def _claim(self, connection: SQLConnection, command: Claim) -> Reply:
        """Look, then insert.

        A repeat must not wait for a writer only to read: SQLite has one, and elsewhere an insert
        waits for whoever is completing the record that is there, and uses up a token.
        """
        found = self._found(connection, command.key)
        if found is not None:
            return found
        with connection.bounded():
            return self._grant(connection, command, 1)

    def _grant(self, connection: SQLConnection, command: Claim | Takeover, attempt: int) -> Reply:
        values = {
            "key": command.key,
            "attempt": attempt,
            "owner": command.owner,
            "fingerprint": command.fingerprint,
            "lease": command.lease,
            "request": command.request,
        }
        token = self._inserted(connection, *self._bound("claim", values))
        if token is not None:
            return Claimed(token, attempt)
        return self._found(connection, command.key)

    def _inserted(self, connection: SQLConnection, sql: str, values: tuple[Any, ...]) -> int | None:
        if not self._dialect.returns:
            return connection.insert(sql, values)
        for (token,) in connection.rows(sql, values):
            return int(token)
        return None

    def _take_over(self, connection: SQLConnection, command: Takeover) -> Reply:
        key, token, expired = command.key, command.token, command.expired
        found = self._found(connection, key)
        if found is None or found.record.token != token:
            return found
        with connection.transaction():
            seen = {"key": key, "token": token, "expired": int(expired)}
            if self._run(connection, "vacate", **seen) == 1:
                if expired:
                    self._run(connection, "steps_delete", key=key)
                # Under one token the number of the attempt never changes.
                return self._grant(connection, command, 1 if expired else found.record.attempt + 1)
        return self._found(connection, key)

    def _renew(
        self, connection: SQLConnection, claims: tuple[tuple[bytes, int], ...], lease: float
    ) -> frozenset[int]:
        """Extend the leases that are not being ended this moment.

        A record that another has locked is being completed, most likely: it is left alone, so it
        holds up the renewal of no other. Lost is only what is read to be another's.
        """
        asked = {(token, key) for key, token in claims}
        if not asked:
            return frozenset()
        rows = self._rows(connection, "in_flight", tokens=[token for token, _ in asked])
        held = asked & {(token, bytes(key)) for token, key in rows}
        tokens = sorted(token for token, _ in held)
        if not tokens:
            pass
        elif self._dialect.skip_locked:
            with connection.transaction():
                tokens = [row[0] for row in self._rows(connection, "free", tokens=tokens)]
                if tokens:
                    self._run(connection, "renew", tokens=tokens, lease=lease)
        elif self._dialect.lock:
            self._renew_each(connection, tokens, lease)
        else:  # the whole database is locked at once
            self._changed(connection, "renew", tokens=tokens, lease=lease)
        return frozenset(token for token, _ in asked - held)

    def _renew_each(self, connection: SQLConnection, tokens: list[int], lease: float) -> None:
        """One by one, where the database cannot say which are free."""
        failed: Exception | None = None
        for token in tokens:
            try:
                self._changed(connection, "renew", tokens=[token], lease=lease)
            except Exception as error:  # noqa: BLE001  # of whichever driver; raised below
                failed = error
        if failed is not None:
            raise failed

    def _settle(
        self,
        connection: SQLConnection,
        command: Settle,
        forget_unsure: Callable[[bytes], None] | None,
    ) -> bool:
        if command.response is not None:
            return self._changed(connection, "settle", **_answered(command))
        with connection.transaction():
            seen = {"key": command.key, "token": command.token}
            if self._run(connection, "unpark", **seen) != 1:
                return False
            self._run(connection, "steps_unsure", key=command.key)
            if forget_unsure is not None:  # before the commit: else a crash could leave the marks
                forget_unsure(command.key)
            return True

    def _sweep(self, connection: SQLConnection, limit: int) -> int:
        """Steps first: none outlives its record into the key's next life."""
        changed = 0
        for find, change in (("steps_over", "steps_purge"), ("over", "purge"), ("due", "expire")):
            with connection.transaction():
                ids = [row[0] for row in self._rows(connection, find, limit=limit)]
                failpoint("in_sweep")
                if ids:
                    changed += self._run(connection, change, ids=ids)
        return changed

    # --- steps -----------------------------------------------------------------------------

    def _apply_to_steps(
        self, connection: SQLConnection, command: Steps | RecordStep | ForgetStep
    ) -> Reply:
        if isinstance(command, Steps):
            rows = self._rows(connection, "steps", key=command.key)
            return {_text(name): _bytes(result) for name, result in rows}
        name = self._name(command.name)
        with connection.transaction():
            if not self._may_record(connection, command.key, command.token):
                return None if isinstance(command, RecordStep) else False
            if isinstance(command, ForgetStep):
                return self._run(connection, "step_forget", key=command.key, name=name) == 1
            this = {"key": command.key, "name": name}
            values = {**this, "result": command.result, "keep": command.keep}
            if self._dialect.returns:
                [(stands,)] = self._rows(connection, "step_record", **values)
                failpoint("in_step")
            else:
                self._run(connection, "step_record", **values)
                failpoint("in_step")
                [(stands,)] = self._rows(connection, "step_read", **this)
            return Recorded(_bytes(stands))

    def _may_record(self, connection: SQLConnection, key: bytes, token: int) -> bool:
        """Whether the claim is the caller's, or there is no record; it stays so to the commit."""
        held = self._rows(connection, "holder", key=key)
        return not held or tuple(held[0]) == (token, State.IN_FLIGHT)

    def _name(self, name: str) -> str | bytes:
        encoded = name.encode()
        if len(encoded) > LONGEST_NAME:
            raise ValueError(
                f"a step's name may have {LONGEST_NAME} bytes; this has more: {name!r}"
            )
        return encoded if self._dialect.binary_names else name

    # --- statements ------------------------------------------------------------------------

    def _bound(self, statement: str, values: dict[str, Any]) -> tuple[str, tuple[Any, ...]]:
        if self._clock is not None:
            values["now"] = float(self._clock())
        return self._statements[statement].bind(values)

    def _rows(self, connection: SQLConnection, statement: str, /, **values: Any) -> Any:
        return connection.rows(*self._bound(statement, values))

    def _run(self, connection: SQLConnection, statement: str, /, **values: Any) -> int:
        return connection.run(*self._bound(statement, values))

    def _changed(self, connection: SQLConnection, statement: str, /, **values: Any) -> bool:
        """Carry out a statement that is alone."""
        with connection.bounded():
            return self._run(connection, statement, **values) == 1


def _answered(command: Complete | Settle) -> dict[str, Any]:
    assert command.response is not None
    return {
        "key": command.key,
        "token": command.token,
        "answer": encode_response(command.response),
        "expires": command.expires,
        "ends": command.expires + command.tombstone,
    }


def _text(name: Any) -> str:
    return name if isinstance(name, str) else bytes(name).decode()


def _bytes(data: Any) -> bytes | None:
    return bytes(data) if data is not None else None
