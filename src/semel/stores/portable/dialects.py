"""The databases that the portable statements run on, and all in which their SQL differs.

Everything else in this folder is the same for each of them: a new database is an entry here.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, NamedTuple

from semel.core.steps import LONGEST_NAME


class ColumnType(enum.Enum):
    """The types of column that the portable tables have."""

    SERIAL = enum.auto()
    """The primary key: a number that is never given out twice, not even after a delete."""
    SMALLINT = enum.auto()
    INTEGER = enum.auto()
    DOUBLE = enum.auto()
    """Seconds since the epoch, as all times are."""
    KEY = enum.auto()
    """16 bytes, with an index."""
    SHORT_BYTES = enum.auto()
    """64 bytes at most."""
    BYTES = enum.auto()
    TEXT = enum.auto()
    NAME = enum.auto()
    """Text of `LONGEST_NAME` bytes at most with an index that tells every byte apart."""
    LABEL = enum.auto()
    """A few ASCII letters, as a primary key."""


_PLAIN: Final = {
    ColumnType.SMALLINT: "smallint",
    ColumnType.INTEGER: "integer",
    ColumnType.DOUBLE: "double precision",
    ColumnType.TEXT: "text",
    ColumnType.NAME: "text",
    ColumnType.LABEL: "varchar(20)",
}


class Dialect(NamedTuple):
    """The words of one database."""

    name: str
    types: Mapping[ColumnType, str]
    """Those that SQLAlchemy's `metadata` makes too, or Alembic would see differences for ever."""
    now: str
    """Its own clock, in seconds since the epoch."""
    given_now: str
    """The parameter `now` in its place, as a double."""
    insert: str
    or_nothing: str
    """After an insert: nothing is inserted where the key is taken."""
    or_update: str
    """After an insert: the row that is there is updated instead."""
    returns: bool
    """Whether a statement that writes gives back what it has written. If not, a token is the last
    row's number."""
    column_names: str
    """Asks for the names of a table's columns, of which one that does not exist has none."""
    index_names: str
    unique_columns: str
    """Asks for the columns that are unique together: of each constraint, separated by commas."""
    quote: str = '"'
    lock: str = "for update"
    """Empty where a writer has locked the whole database anyhow."""
    skip_locked: str = "for update skip locked"
    """Empty where a query cannot leave out what others have locked."""
    binary_names: bool = False
    """Whether the column of a step's name holds UTF-8 as bytes."""
    partial_indexes: bool = True
    table_options: str = ""


# Where its tables are made: those of a schema further down the search path are not its own.
_PG_TABLE: Final = "to_regclass(quote_ident(current_schema()) || '.' || :table)"

POSTGRESQL: Final = Dialect(
    name="postgresql",
    types={
        **_PLAIN,
        ColumnType.SERIAL: "bigserial primary key",
        **dict.fromkeys((ColumnType.KEY, ColumnType.SHORT_BYTES, ColumnType.BYTES), "bytea"),
    },
    # A subquery, which is evaluated once: an index can be searched for what is due. It cannot be
    # for a volatile function.
    now="(select cast(extract(epoch from clock_timestamp()) as double precision))",
    given_now="cast(:now as double precision)",
    insert="insert into",
    or_nothing='on conflict ("key") do nothing returning token',
    or_update='on conflict ("key", name) do update set',
    returns=True,
    column_names=(
        "select attname from pg_attribute"
        f" where attrelid = {_PG_TABLE} and attnum > 0 and not attisdropped"
    ),
    index_names=(
        "select relname from pg_index join pg_class on oid = indexrelid"
        f" where indrelid = {_PG_TABLE}"
    ),
    unique_columns=(
        "select (select string_agg(attname, ',') from pg_attribute"
        " where attrelid = indrelid and attnum = any(indkey))"
        f" from pg_index where indrelid = {_PG_TABLE}"
        " and indisunique and indisvalid and indpred is null and indexprs is null"
    ),
)

# MySQL 8 or MariaDB 10.2.4: those before forgot at a restart which numbers had been given out.
MYSQL: Final = Dialect(
    name="mysql",
    types={
        **_PLAIN,
        ColumnType.SERIAL: "bigint not null auto_increment primary key",
        ColumnType.KEY: "varbinary(16)",
        ColumnType.SHORT_BYTES: "varbinary(64)",
        ColumnType.BYTES: "longblob",
        ColumnType.TEXT: "longtext",
        # Bytes, for its collations take "A" for "a", and "a " for "a".
        ColumnType.NAME: f"varbinary({LONGEST_NAME})",
    },
    # In UTC: unix_timestamp(now()) has one hour twice when summer time ends.
    now="(timestampdiff(microsecond, '1970-01-01', utc_timestamp(6)) / 1e6)",
    given_now=":now",
    insert="insert ignore into",
    or_nothing="",
    or_update="on duplicate key update",
    returns=False,
    column_names=(
        "select column_name from information_schema.columns"
        " where table_schema = database() and table_name = :table"
    ),
    index_names=(
        "select distinct index_name from information_schema.statistics"
        " where table_schema = database() and table_name = :table"
    ),
    unique_columns=(
        "select group_concat(column_name) from information_schema.statistics"
        " where table_schema = database() and table_name = :table and non_unique = 0"
        " group by index_name"
    ),
    quote="`",
    binary_names=True,
    partial_indexes=False,
    table_options=" engine = InnoDB default charset = utf8mb4",
)

SQLITE: Final = Dialect(
    name="sqlite",
    types={
        **_PLAIN,
        # Without AUTOINCREMENT the number of a deleted row is given out again.
        ColumnType.SERIAL: "integer not null primary key autoincrement",
        ColumnType.DOUBLE: "double",
        **dict.fromkeys((ColumnType.KEY, ColumnType.SHORT_BYTES, ColumnType.BYTES), "blob"),
    },
    now="((julianday('now') - 2440587.5) * 86400.0)",
    given_now=":now",
    insert="insert into",
    or_nothing='on conflict ("key") do nothing',
    or_update='on conflict ("key", name) do update set',
    returns=False,
    column_names="select name from pragma_table_info(:table)",
    index_names="select name from pragma_index_list(:table)",
    unique_columns=(
        "select (select group_concat(i.name) from pragma_index_info(l.name) i)"
        ' from pragma_index_list(:table) l where l."unique" = 1 and l.partial = 0'
    ),
    lock="",
    skip_locked="",
)

DIALECTS: Final = {
    "postgresql": POSTGRESQL,
    "mysql": MYSQL,
    "mariadb": MYSQL,
    "sqlite": SQLITE,
}
"""By the names that SQLAlchemy and Django have for them."""
