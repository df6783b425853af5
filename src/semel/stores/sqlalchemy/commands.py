"""What each store command does to the tables, in whatever transaction it is given.

Safe in READ COMMITTED and on any snapshot: the unique key arbitrates, every write compares the
token, and what a takeover judges by is read with a lock, which is the row as it is now.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Double,
    Select,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
    tuple_,
    update,
)
from sqlalchemy.engine import Connection

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
from semel.stores.sqlalchemy.tables import LONGEST_NAME, MYSQL, record, step

_IN_FLIGHT: Final = State.IN_FLIGHT.value
_COMPLETED: Final = State.COMPLETED.value
_PARKED: Final = State.PARKED.value
_EXPIRED: Final = State.EXPIRED.value

_MYSQL_CLOCK = "timestampdiff(microsecond, '1970-01-01', utc_timestamp(6)) / 1e6"
CLOCKS: Final = {
    "postgresql": "cast(extract(epoch from clock_timestamp()) as double precision)",
    # In UTC: unix_timestamp(now()) has one hour twice when summer time ends.
    **dict.fromkeys(MYSQL, _MYSQL_CLOCK),
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
}
"""The database's own clock, in seconds since the epoch, for each dialect that is known."""


class SQLAlchemyCommands:
    """Carries commands out, without a thought for commits.

    `clock` gives seconds in the place of the database's clock, for tests.
    """

    def __init__(self, dialect: str, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self._database_clock: ColumnElement[float] = literal_column(CLOCKS[dialect], Double())

    def _now(self, plus: float = 0.0) -> ColumnElement[float]:
        if self._clock is not None:
            return literal(self._clock() + plus, Double())
        return self._database_clock + literal(plus, Double()) if plus else self._database_clock

    def apply(self, connection: Connection, command: StoreCommand) -> Reply:
        """Carry out one command in the transaction open on `connection`."""
        match command:
            case Lookup(key):
                return self._found(connection, key)
            case Claim():
                return self._claim(connection, command)
            case Takeover():
                return self._take_over(connection, command)
            case Complete():
                return self.complete(connection, command)
            case Release(key, token):
                return _changed(connection, delete(record).where(*_held(key, token)))
            case Park():
                return self._park(connection, command)
            case Renew(claims, lease):
                return self._renew(connection, claims, lease)
            case Settle():
                return self._settle(connection, command)
            case Sweep(limit):
                return self._sweep(connection, limit)
            case Abandoned(limit, idle):
                return self._abandoned(connection, limit, idle)
            case Steps(key):
                recorded = select(step.c.name, step.c.result).where(step.c.key == key)
                return {name: result for name, result in connection.execute(recorded)}  # noqa: C416
            case RecordStep():
                return self._record_step(connection, command)
            case ForgetStep(key, token, name):
                if not self._may_record(connection, key, token):
                    return False
                unsure = (step.c.key == key, step.c.name == name, step.c.result.is_(None))
                return _changed(connection, delete(step).where(*unsure))
        raise AssertionError(command)

    # --- records ---------------------------------------------------------------------------

    def _look(self, key: bytes) -> Select[Any]:
        return select(record, self._now().label("now")).where(record.c.key == key)

    def _found(self, connection: Connection, key: bytes) -> Found | None:
        row = connection.execute(self._look(key)).one_or_none()
        return _found(row) if row is not None else None

    def _claim(self, connection: Connection, command: Claim) -> Reply:
        """One claim wins: the unique key arbitrates (S1), and the other looks again.

        A look first, for a repeat should cost no lock, no number and no warning in a log.
        """
        found = self._found(connection, command.key)
        return found if found is not None else self._grant(connection, command, 1)

    def _grant(self, connection: Connection, command: Claim | Takeover, attempt: int) -> Claimed:
        inserted = connection.execute(insert(record).values(**self._row(command, attempt)))
        assert inserted.inserted_primary_key is not None
        return Claimed(inserted.inserted_primary_key[0], attempt)

    def _row(self, command: Claim | Takeover, attempt: int) -> dict[str, Any]:
        return {
            "key": command.key,
            "state": _IN_FLIGHT,
            "attempt": attempt,
            "owner": command.owner,
            "fingerprint": command.fingerprint,
            "lease_until": self._now(command.lease),
            "request": command.request,
        }

    def _take_over(self, connection: Connection, command: Takeover) -> Reply:
        """Replace the row, for the new one has a higher token (S5)."""
        row = connection.execute(self._look(command.key).with_for_update()).one_or_none()
        if row is None:  # none, or replaced while its lock was awaited
            return self._found(connection, command.key)
        over = {
            _IN_FLIGHT: not command.expired and row.lease_until <= row.now,
            _COMPLETED: command.expired and (row.due_at or 0.0) <= row.now,
            _EXPIRED: command.expired,
            _PARKED: False,
        }[row.state]
        if row.token != command.token or not over:
            return _found(row)
        connection.execute(delete(record).where(record.c.token == row.token))
        again = row.state == _IN_FLIGHT
        if not again:
            connection.execute(delete(step).where(step.c.key == command.key))
        return self._grant(connection, command, row.attempt + 1 if again else 1)

    def complete(self, connection: Connection, command: Complete) -> bool:
        """Write once, by the holder of the claim only (S4, S5)."""
        return self._answer(connection, command, _IN_FLIGHT)

    def _answer(self, connection: Connection, command: Complete | Settle, state: int) -> bool:
        assert command.response is not None
        statement = (
            update(record)
            .where(*_held(command.key, command.token, state))
            .values(
                state=_COMPLETED,
                reason=None,
                request=None,
                answer=encode_response(command.response),
                due_at=self._now(command.expires),
                purge_at=self._now(command.expires + command.tombstone),
            )
        )
        return _changed(connection, statement)

    def _park(self, connection: Connection, command: Park) -> bool:
        """By the holder, or by anybody once the lease has ended."""
        statement = update(record).where(*_held(command.key, command.token))
        if command.lapsed:
            statement = statement.where(record.c.lease_until <= self._now())
        return _changed(connection, statement.values(state=_PARKED, reason=command.reason))

    def _renew(
        self, connection: Connection, claims: tuple[tuple[bytes, int], ...], lease: float
    ) -> frozenset[int]:
        """The token decides, not the time. What is being completed this moment is left alone."""
        asked = (
            tuple_(record.c.key, record.c.token).in_(claims),
            record.c.state == _IN_FLIGHT,
        )
        tokens = select(record.c.token).where(*asked).order_by(record.c.token)
        free = connection.scalars(tokens.with_for_update(skip_locked=True)).all()
        until = self._now(lease)
        connection.execute(
            update(record)
            .where(record.c.token.in_(free), record.c.lease_until < until)
            .values(lease_until=until)
        )
        held = set(connection.scalars(tokens))
        return frozenset(token for _, token in claims) - held

    def _settle(self, connection: Connection, command: Settle) -> bool:
        if command.response is not None:
            return self._answer(connection, command, _PARKED)
        parked = _held(command.key, command.token, _PARKED)
        if not _changed(connection, delete(record).where(*parked)):
            return False
        unsure = (step.c.key == command.key, step.c.result.is_(None))
        connection.execute(delete(step).where(*unsure))
        return True

    def _sweep(self, connection: Connection, limit: int) -> int:
        """Steps first: none outlives its record into the key's next life. Rows in use are left."""
        now = self._now()

        def due(*columns: Any) -> Select[Any]:
            return select(*columns).limit(limit).with_for_update(skip_locked=True)

        runs = select(1).where(
            record.c.key == step.c.key, record.c.state.in_((_IN_FLIGHT, _PARKED))
        )
        names = connection.execute(
            due(step.c.key, step.c.name).where(step.c.purge_at <= now, ~runs.exists())
        ).all()
        over = tuple_(step.c.key, step.c.name).in_([tuple(name) for name in names])
        changed = connection.execute(delete(step).where(over)).rowcount if names else 0

        stepped = select(1).where(step.c.key == record.c.key).exists()
        ended = (record.c.due_at <= now, record.c.state.in_((_COMPLETED, _EXPIRED)))
        gone = connection.scalars(
            due(record.c.token).where(*ended, record.c.purge_at <= now, ~stepped)
        ).all()
        if gone:
            deleted = connection.execute(delete(record).where(record.c.token.in_(gone)))
            changed += deleted.rowcount
        failpoint("in_sweep")
        expired = connection.scalars(
            due(record.c.token).where(
                record.c.due_at <= now, record.c.purge_at > now, record.c.state == _COMPLETED
            )
        ).all()
        if expired:
            buried = update(record).where(record.c.token.in_(expired))
            changed += connection.execute(
                buried.values(state=_EXPIRED, answer=None, due_at=record.c.purge_at)
            ).rowcount
        return changed

    def _abandoned(self, connection: Connection, limit: int, idle: float) -> tuple[Remembered, ...]:
        rows = connection.execute(
            select(record.c.key, record.c.token, record.c.attempt, record.c.request)
            .where(
                record.c.state == _IN_FLIGHT,
                record.c.request.is_not(None),
                record.c.lease_until <= self._now(-idle),
            )
            .order_by(record.c.lease_until)
            .limit(limit)
        )
        return tuple(Remembered(bytes(key), *rest) for key, *rest in rows)

    # --- steps -----------------------------------------------------------------------------

    def _may_record(self, connection: Connection, key: bytes, token: int) -> bool:
        """Whether the claim is the caller's, or there is no record; it stays so to the commit."""
        held = select(record.c.state, record.c.token).where(record.c.key == key)
        row = connection.execute(held.with_for_update()).one_or_none()
        return row is None or (row.state, row.token) == (_IN_FLIGHT, token)

    def _record_step(self, connection: Connection, command: RecordStep) -> Recorded | None:
        """The first result stays (S10). Two that insert at a time: one is given again."""
        key, token, name, result, keep = command
        if len(name.encode()) > LONGEST_NAME:
            raise ValueError(
                f"a step's name may have {LONGEST_NAME} bytes; this has more: {name!r}"
            )
        if not self._may_record(connection, key, token):
            return None
        this = (step.c.key == key, step.c.name == name)
        row = connection.execute(select(step.c.result).where(*this).with_for_update()).one_or_none()
        purge_at = self._now(keep)
        if row is None:
            values = {"key": key, "name": name, "result": result, "purge_at": purge_at}
            connection.execute(insert(step).values(**values))
            return Recorded(result)
        stands: bytes | None = row.result if row.result is not None else result
        kept = func.coalesce(step.c.result, literal(result, step.c.result.type))
        connection.execute(update(step).where(*this).values(result=kept, purge_at=purge_at))
        return Recorded(stands)


def _held(key: bytes, token: int, state: int = _IN_FLIGHT) -> tuple[ColumnElement[bool], ...]:
    return record.c.key == key, record.c.token == token, record.c.state == state


def _changed(connection: Connection, statement: Any) -> bool:
    return connection.execute(statement).rowcount == 1


def _found(row: Any) -> Found:
    """Return what a row of `_look` says. Raises `UnreadableRecord`."""
    found = Record(
        bytes(row.key),
        State(row.state),
        row.token,
        bytes(row.owner),
        row.attempt,
        bytes(row.fingerprint),
        row.lease_until,
        row.due_at or 0.0,
        row.purge_at or 0.0,
        decode_response(row.answer) if row.answer is not None else None,
        row.reason,
    )
    return Found(found, row.now)
