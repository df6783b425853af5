"""The tables in a database that SQLAlchemy speaks to, as a `MetaData` that Alembic can be given."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BINARY,
    VARBINARY,
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.dialects.mysql import LONGBLOB, LONGTEXT
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.inspection import inspect

from semel.core.record import State
from semel.failpoints import failpoint

LONGEST_NAME: Final = 512
"""Bytes of a step's name, for MySQL's indexes are bounded."""
MYSQL: Final = ("mysql", "mariadb")


class _Name(TypeDecorator[str]):
    """A step's name. Bytes on MySQL, whose collations take "A" for "a" and "a " for "a"."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return VARBINARY(LONGEST_NAME) if dialect.name in MYSQL else Text()

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        return value.encode() if value is not None and dialect.name in MYSQL else value

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        return bytes(value).decode() if isinstance(value, (bytes, bytearray)) else value


def _bytes(length: int | None = None) -> Any:
    """A `bytea` or `blob`; on MySQL of a length that can be indexed, or of any."""
    bounded = LONGBLOB() if length is None else VARBINARY(length)
    return LargeBinary().with_variant(bounded, *MYSQL)


_KEY: Final = LargeBinary().with_variant(BINARY(16), *MYSQL)
_INNODB: Final[dict[str, Any]] = {
    f"{name}_{option}": value
    for name in MYSQL
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"))
}

metadata: Final = MetaData()
"""Hand it to Alembic beside your own: `target_metadata = [Base.metadata, metadata]`."""

# The token is the number of the row, which the database never gives out twice, not even after a
# delete: a fencing token grows with each claim of a key. Needs MySQL 8 or MariaDB 10.2.4: those
# before forgot at a restart which numbers had been given.
record: Final = Table(
    "semel_record",
    metadata,
    Column("token", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("key", _KEY, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("owner", _bytes(64), nullable=False),
    Column("fingerprint", _bytes(64), nullable=False),
    Column("lease_until", Double, nullable=False),  # seconds since the epoch, as all times here
    Column("due_at", Double),  # completed: when the answer expires; expired: the tombstone
    Column("purge_at", Double),
    Column("answer", _bytes()),
    Column("reason", Text().with_variant(LONGTEXT(), *MYSQL)),
    Column("request", _bytes()),
    UniqueConstraint("key", name="semel_record_key"),
    sqlite_autoincrement=True,
    **_INNODB,
)
_remembered = (record.c.state == State.IN_FLIGHT.value) & record.c.request.is_not(None)
Index("semel_record_due", record.c.due_at)
Index(
    "semel_record_abandoned",
    record.c.state,
    record.c.lease_until,
    postgresql_where=_remembered,
    sqlite_where=_remembered,
)

step: Final = Table(
    "semel_step",
    metadata,
    Column("key", _KEY, primary_key=True),
    Column("name", _Name, primary_key=True),
    Column("result", _bytes()),  # null: begun, and not known to have ended
    Column("purge_at", Double, nullable=False),
    **_INNODB,
)
Index("semel_step_due", step.c.purge_at)


def missing(connection: Connection) -> list[Table | Index]:
    """Return what the database lacks."""
    inspector = inspect(connection)
    lacks: list[Table | Index] = []
    for table in metadata.sorted_tables:
        if not inspector.has_table(table.name):
            lacks.append(table)
        else:  # a crash between the two leaves a table without its index, where DDL commits
            there = {index["name"] for index in inspector.get_indexes(table.name)}
            lacks += [index for index in table.indexes if index.name not in there]
    return lacks


def create(connection: Connection) -> None:
    """Create what is missing. Raises as the database does where another process was faster."""
    for lacking in missing(connection):
        lacking.create(connection)
        failpoint("in_migration")
