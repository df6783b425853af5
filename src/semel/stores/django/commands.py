"""What each store command does to Django's tables, on any database that Django speaks to.

The token is the row's automatic id, which no database gives out twice: a fencing token is unique in
the table and grows with each claim of a key. The models are in `semel.web.django.models`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from django.db import Error
from django.db.models.constants import OnConflict

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
from semel.core.record import Record, State, decode_response, encode_response
from semel.failpoints import failpoint
from semel.stores import statements as sql

_NAMES: Final = (
    *("lookup", "claim", "vacate", "complete", "settle", "unpark", "release", "park", "renew"),
    *("in_flight", "abandoned", "over", "purge", "due", "expire", "holder", "steps", "step_begin"),
    *("step_record", "step_read", "step_forget", "steps_unsure", "steps_delete", "steps_over"),
    "steps_purge",
)
_SQL: Final = {name: sql.load("django", name) for name in _NAMES}
_NOW: Final = {
    "postgresql": "extract(epoch from clock_timestamp())::double precision",
    # Not unix_timestamp(): in a zone with summer time an hour of each autumn comes twice.
    "mysql": "(timestampdiff(microsecond, '1970-01-01', utc_timestamp(6)) / 1e6)",
}
"""The clock of each database that has one of its own. SQLite's is this machine's."""
_OWN_CLOCK: Final = {
    "postgresql": "cast({!r} as double precision)",
    "mysql": "{!r}e0",
    "sqlite": "{!r}",
}
"""How a number of seconds is written as a double in each."""
_LOCK_TIMEOUT: Final = "set local lock_timeout = '10s'"
"""A process that stands still in its commit must not hold up the commands of others for ever."""


class DjangoCommands:
    """Carries commands out on a Django connection.

    `clock` gives seconds since the epoch in the place of the database's own clock; for tests.
    """

    def __init__(self, clock: Callable[[], float] | None) -> None:
        self._clock = clock

    def _now(self, connection: Any) -> str:
        """The clock as an expression."""
        own = _NOW.get(connection.vendor)
        if self._clock is None and own is not None:
            return own
        seconds = float((self._clock or time.time)())
        return _OWN_CLOCK.get(connection.vendor, "{!r}").format(seconds)

    def apply(self, connection: Any, command: StoreCommand) -> Reply:
        """Carry out one command, all or nothing."""
        match command:
            case Lookup(key):
                return self._found(connection, key)
            case Claim():
                # A repeat must not wait for a writer only to read: SQLite has one, and elsewhere an
                # insert waits for whoever is completing the record that is there.
                found = self._found(connection, command.key)
                if found is not None:
                    return found
                with bounded(connection):
                    return self._claim(connection, command, 1)
            case Takeover():
                return self._take_over(connection, command)
            case Complete():
                return self.complete(connection, command)
            case Release(key, token):
                with bounded(connection):
                    return self._run(connection, "release", token, key.hex()) == 1
            case Park(key, token, reason, lapsed):
                with bounded(connection):
                    seen = (reason, token, key.hex(), int(lapsed))
                    return self._run(connection, "park", *seen) == 1
            case Renew():
                return self._renew(connection, command)
            case Settle():
                return self._settle(connection, command)
            case Sweep(limit):
                return self._sweep(connection, limit)
            case Abandoned(limit, idle):
                return tuple(
                    Remembered(bytes.fromhex(key), token, attempt, bytes(request))
                    for key, token, attempt, request in self._rows(
                        connection, "abandoned", idle, limit
                    )
                )
            case Steps(key):
                return self._read_steps(connection, key)
            case RecordStep():
                return self._record_step(connection, command)
            case ForgetStep():
                return self._forget_step(connection, command)
        raise AssertionError(command)

    def complete(self, connection: Any, command: Complete) -> bool:
        """Write the answer, if the claim still holds."""
        return self._answer(connection, "complete", command, encode_response(command.response))

    # --- claims ----------------------------------------------------------------------------

    def _claim(self, connection: Any, command: Claim | Takeover, attempt: int) -> Reply:
        request = command.request
        row = (
            command.key.hex(),
            attempt,
            _binary(connection, command.owner),
            _binary(connection, command.fingerprint),
            command.lease,
            _binary(connection, request) if request is not None else None,
        )
        token = self._inserted(connection, row)
        if token is not None:
            return Claimed(token, attempt)
        return self._found(connection, command.key)

    def _inserted(self, connection: Any, row: Sequence[Any]) -> int | None:
        """Return the token of the new record; None where the key is taken."""
        statement = self._statement(connection, "claim", **_ignoring(connection, "key_hash"))
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(f"{statement} returning token", row)
                found = cursor.fetchone()
                return int(found[0]) if found is not None else None
        with connection.cursor() as cursor:
            cursor.execute(statement, row)
            return int(cursor.lastrowid) if cursor.rowcount == 1 else None

    def _take_over(self, connection: Any, command: Takeover) -> Reply:
        found = self._found(connection, command.key)
        if found is None or found.record.token != command.token:
            return found
        again = found.record.state is State.IN_FLIGHT  # under one token attempts never change
        expired = int(command.expired)
        with transaction(connection):
            seen = (command.key.hex(), command.token, expired, expired)
            if self._run(connection, "vacate", *seen) == 1:
                if command.expired:
                    self._forget_steps(connection, command.key)
                attempt = found.record.attempt + 1 if again else 1
                return self._claim(connection, command, attempt)
        return self._found(connection, command.key)

    def _renew(self, connection: Any, command: Renew) -> frozenset[int]:
        """A record that another has locked is being completed, most likely: it is left alone.

        So it holds up the renewal of no other. Lost is only what is read to be another's.
        """
        asked = {(token, key.hex()) for key, token in command.claims}
        held = asked & self._in_flight(connection, sorted(token for token, _ in asked))
        tokens = sorted(token for token, _ in held)  # in one order, so as not to meet in a circle
        features = connection.features
        if features.has_select_for_update_skip_locked:
            with transaction(connection):
                free = self._in_flight(connection, tokens, lock="for update skip locked")
                self._extend(connection, sorted(token for token, _ in free), command.lease)
        elif features.has_select_for_update:
            self._extend_apart(connection, tokens, command.lease)
        else:  # its locks are of the whole database
            self._extend(connection, tokens, command.lease)
        return frozenset(token for token, _ in asked - held)

    def _in_flight(
        self, connection: Any, tokens: Sequence[int], lock: str = ""
    ) -> set[tuple[int, str]]:
        if not tokens:
            return set()
        rows = self._rows(connection, "in_flight", tokens=_listed(tokens), lock=lock)
        return {(token, key) for token, key in rows}

    def _extend(self, connection: Any, tokens: Sequence[int], lease: float) -> None:
        if tokens:
            self._run(connection, "renew", lease, lease, tokens=_listed(tokens))

    def _extend_apart(self, connection: Any, tokens: Sequence[int], lease: float) -> None:
        """One by one, where the database cannot say which are free (MariaDB before 10.6)."""
        failed: Error | None = None
        for token in tokens:
            try:
                with bounded(connection):
                    self._extend(connection, (token,), lease)
            except Error as error:
                failed = error
        if failed is not None:
            raise failed

    # --- ends ------------------------------------------------------------------------------

    def _answer(
        self, connection: Any, name: str, command: Complete | Settle, answer: bytes
    ) -> bool:
        expires, tombstone = command.expires, command.tombstone
        times = (expires, expires + tombstone)
        row = (_binary(connection, answer), *times, command.token, command.key.hex())
        with bounded(connection):
            return self._run(connection, name, *row) == 1

    def _settle(self, connection: Any, command: Settle) -> bool:
        if command.response is not None:
            return self._answer(connection, "settle", command, encode_response(command.response))
        with transaction(connection):
            if self._run(connection, "unpark", command.token, command.key.hex()) != 1:
                return False
            self._forget_unsure(connection, command.key)
            return True

    def _sweep(self, connection: Any, limit: int) -> int:
        changed = self._sweep_steps(connection, limit)
        for find, change in (("over", "purge"), ("due", "expire")):
            tokens = [row[0] for row in self._rows(connection, find, limit)]
            failpoint("in_sweep")
            if tokens:
                with bounded(connection):
                    changed += self._run(connection, change, tokens=_listed(tokens))
        return changed

    # --- steps -----------------------------------------------------------------------------

    def _read_steps(self, connection: Any, key: bytes) -> dict[str, bytes | None]:
        rows = self._rows(connection, "steps", key.hex())
        return {name: _bytes(result) for name, result in rows}

    def _record_step(self, connection: Any, command: RecordStep) -> Recorded | None:
        key, token, name, result, keep = command
        digest = _digest(key, name)
        with transaction(connection):
            if not self._holds(connection, key, token):
                return None
            begun = self._statement(connection, "step_begin", **_ignoring(connection, "digest"))
            with connection.cursor() as cursor:
                cursor.execute(begun, (digest, key.hex(), name, keep))
            stored = _binary(connection, result) if result is not None else None
            self._run(connection, "step_record", stored, keep, digest)
            failpoint("in_step")
            [[stands]] = self._rows(connection, "step_read", digest)
            return Recorded(_bytes(stands))

    def _forget_step(self, connection: Any, command: ForgetStep) -> bool:
        key, token, name = command
        with transaction(connection):
            if not self._holds(connection, key, token):
                return False
            return self._run(connection, "step_forget", _digest(key, name)) == 1

    def _holds(self, connection: Any, key: bytes, token: int) -> bool:
        """Whether the claim is not another's by now; its record stays as it is until the end."""
        lock = "for update" if connection.features.has_select_for_update else ""
        held = self._rows(connection, "holder", key.hex(), lock=lock)
        return not held or (held[0][0], held[0][1]) == (token, State.IN_FLIGHT)

    def _forget_steps(self, connection: Any, key: bytes) -> None:
        self._run(connection, "steps_delete", key.hex())

    def _forget_unsure(self, connection: Any, key: bytes) -> None:
        self._run(connection, "steps_unsure", key.hex())

    def _sweep_steps(self, connection: Any, limit: int) -> int:
        digests = [row[0] for row in self._rows(connection, "steps_over", limit)]
        if not digests:
            return 0
        places = ", ".join(["%s"] * len(digests))
        with bounded(connection):
            return self._run(connection, "steps_purge", *digests, digests=places)

    # --- how -------------------------------------------------------------------------------

    def _statement(self, connection: Any, name: str, **parts: str) -> str:
        return _SQL[name].format(now=self._now(connection), **parts)

    def _run(self, connection: Any, name: str, *values: Any, **parts: str) -> int:
        with connection.cursor() as cursor:
            cursor.execute(self._statement(connection, name, **parts), values)
            return int(cursor.rowcount)

    def _rows(self, connection: Any, name: str, *values: Any, **parts: str) -> list[Any]:
        with connection.cursor() as cursor:
            cursor.execute(self._statement(connection, name, **parts), values)
            return list(cursor.fetchall())

    def _found(self, connection: Any, key: bytes) -> Found | None:
        for row in self._rows(connection, "lookup", key.hex()):
            return Found(_record(row), float(row[-1]))
        return None


@contextmanager
def transaction(connection: Any) -> Iterator[None]:
    """Several statements that are one, on a connection that is not Django's own for the thread.

    Inside a transaction already open (a test's) they are part of that.
    """
    if connection.in_atomic_block:
        yield
        return
    connection.set_autocommit(False)
    try:
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(_LOCK_TIMEOUT)
        yield
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    finally:
        connection.set_autocommit(True)


@contextmanager
def bounded(connection: Any) -> Iterator[None]:
    """One statement that waits for no lock for ever.

    Only PostgreSQL needs a transaction for that: a limit that stays with the session would go on to
    others behind pgbouncer. The connections of the store to other databases have theirs from the
    start.
    """
    if connection.vendor != "postgresql":
        yield
        return
    with transaction(connection):
        yield


def _listed(tokens: Iterable[int]) -> str:
    return ", ".join(str(int(token)) for token in tokens)


def _ignoring(connection: Any, unique: str) -> dict[str, str]:
    """How an insert says that a row which is there already stays."""
    how = OnConflict.IGNORE
    operations = connection.ops
    return {
        "insert": operations.insert_statement(on_conflict=how),
        "ignore": operations.on_conflict_suffix_sql([], how, [], [unique]),
    }


def _binary(connection: Any, data: bytes) -> Any:
    return connection.Database.Binary(data)


def _bytes(data: Any) -> bytes | None:
    return bytes(data) if data is not None else None


def _digest(key: bytes, name: str) -> str:
    """Names one step in one column: databases differ in how they compare texts."""
    return hashlib.sha256(key + name.encode()).hexdigest()


def _record(row: Sequence[Any]) -> Record:
    key, state, token, owner, attempt, fingerprint, lease, due, purge, answer, reason, _ = row
    return Record(
        bytes.fromhex(key),
        State(state),
        token,
        bytes(owner),
        attempt,
        bytes(fingerprint),
        lease,
        due or 0.0,
        purge or 0.0,
        decode_response(bytes(answer)) if answer is not None else None,
        reason,
    )
