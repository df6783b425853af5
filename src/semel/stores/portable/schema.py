"""The portable tables: their definition, how they are made and brought up to date, and checked.

`TABLES` is the only list of columns: the DDL, SQLAlchemy's `metadata` and Django's models are made
from it. What a release adds has the number of its migration (`since`), and `MIGRATION` is the
newest. Added columns may be null, so that servers of two releases can share the tables.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from semel.core.record import State
from semel.failpoints import failpoint
from semel.stores.base import StoreSetupError
from semel.stores.portable.connection import SQLConnection
from semel.stores.portable.dialects import ColumnType, Dialect
from semel.stores.portable.statements import PortableStatement

log = logging.getLogger("semel")

KIND: Final = "portable"
"""What these tables are called in `semel_schema`."""
MIGRATION: Final = 1
"""The number of the newest migration."""


class PortableColumn(NamedTuple):
    """A column of a portable table."""

    name: str
    type: ColumnType
    null: bool = False
    since: int = 1


class PortableUnique(NamedTuple):
    """A unique constraint."""

    name: str
    columns: tuple[str, ...]


class PortableIndex(NamedTuple):
    """An index; `where` makes it a partial one, where the database has those."""

    name: str
    columns: tuple[str, ...]
    where: str | None = None
    since: int = 1


class PortableTable(NamedTuple):
    """A table with all that belongs to it."""

    name: str
    columns: tuple[PortableColumn, ...]
    primary_key: str
    uniques: tuple[PortableUnique, ...] = ()
    indexes: tuple[PortableIndex, ...] = ()
    since: int = 1


RECORD: Final = PortableTable(
    "semel_record",
    (
        # The fencing token is the number of the row, which grows with each claim of a key.
        PortableColumn("token", ColumnType.SERIAL),
        PortableColumn("key", ColumnType.KEY),
        PortableColumn("state", ColumnType.SMALLINT),
        PortableColumn("attempt", ColumnType.INTEGER),
        PortableColumn("owner", ColumnType.SHORT_BYTES),
        PortableColumn("fingerprint", ColumnType.SHORT_BYTES),
        PortableColumn("lease_until", ColumnType.DOUBLE),
        # Completed: when the response expires; expired: when the tombstone goes.
        PortableColumn("due_at", ColumnType.DOUBLE, null=True),
        PortableColumn("purge_at", ColumnType.DOUBLE, null=True),
        PortableColumn("answer", ColumnType.BYTES, null=True),
        PortableColumn("reason", ColumnType.TEXT, null=True),
        PortableColumn("request", ColumnType.BYTES, null=True),
    ),
    primary_key="token",
    uniques=(PortableUnique("semel_record_key", ("key",)),),
    indexes=(
        PortableIndex("semel_record_due", ("due_at",)),
        PortableIndex(
            "semel_record_abandoned",
            ("state", "lease_until"),
            where=f"state = {State.IN_FLIGHT.value} and request is not null",
        ),
    ),
)
STEP: Final = PortableTable(
    "semel_step",
    (
        PortableColumn("id", ColumnType.SERIAL),
        PortableColumn("key", ColumnType.KEY),
        PortableColumn("name", ColumnType.NAME),
        # Null: begun, and not known to have ended.
        PortableColumn("result", ColumnType.BYTES, null=True),
        PortableColumn("purge_at", ColumnType.DOUBLE),
    ),
    primary_key="id",
    uniques=(PortableUnique("semel_step_key", ("key", "name")),),
    indexes=(PortableIndex("semel_step_due", ("purge_at",)),),
)
STAMP: Final = PortableTable(
    "semel_schema",
    (
        PortableColumn("kind", ColumnType.LABEL),
        PortableColumn("version", ColumnType.INTEGER),
    ),
    primary_key="kind",
)
"""Says whose the tables are, and which migration was the last. What other tools have made has no
row in it, or not even the table; its columns decide."""
TABLES: Final = (RECORD, STEP, STAMP)


class Lacking(NamedTuple):
    """Something that a database lacks, and the statement that makes it."""

    name: str
    ddl: str | None
    """None: it cannot be made, for it came with its table."""
    since: int
    needed: bool = True
    """Without it something fails; an index that is not unique is only missed by whoever waits."""


class PortableSchema:
    """The tables in one database."""

    def __init__(self, dialect: Dialect, paramstyle: str) -> None:
        def statement(text: str) -> PortableStatement:
            return PortableStatement(text, dialect, paramstyle)

        self._dialect = dialect
        self._columns = statement(dialect.column_names)
        self._indexes = statement(dialect.index_names)
        self._uniques = statement(dialect.unique_columns)
        self._version = statement("select version from semel_schema where kind = :kind")

    def check(self, connection: SQLConnection) -> list[str]:
        """Return the names of what the tables lack; log a warning of indexes that are only missed.

        Raises `StoreSetupError` where they are another store's.
        """
        self._refuse_others(connection)
        self._stamped(connection)
        lacking = [
            one
            for table in TABLES
            if table is not STAMP
            for one in self._lacking(connection, table)
        ]
        missed = [one.name for one in lacking if not one.needed]
        if missed:
            log.warning(
                "the database lacks the index %s, so what looks for records that are due reads the"
                " whole table; make it with your migrations, by `manage.py semel migrate`, or by"
                " one start of SQLAlchemyStore(engine, create_tables=True)",
                ", ".join(missed),
            )
        return [one.name for one in lacking if one.needed]

    def plan(self, connection: SQLConnection) -> list[str]:
        """Return the statements that make what is missing, in the order of the migrations' numbers.

        Raises `StoreSetupError` where the tables are another's.
        """
        self._refuse_others(connection)
        lacking = [one for table in TABLES for one in self._lacking(connection, table)]
        foreign = [one.name for one in lacking if one.ddl is None]
        if foreign:
            raise StoreSetupError(
                f"{', '.join(foreign)}: there is a table of that name without this column, so it is"
                " not Semel's or has been altered; drop it, if nothing needs it, or use another"
                " database"
            )
        lacking.sort(key=lambda one: one.since)
        statements = [one.ddl for one in lacking if one.ddl is not None]
        stamped = self._stamped(connection)
        if stamped is None:
            stamp = f"insert into {STAMP.name} (kind, version) values ('{KIND}', {MIGRATION})"
            statements.append(stamp)
        elif stamped < MIGRATION:
            stamp = f"update {STAMP.name} set version = {MIGRATION} where kind = '{KIND}'"
            statements.append(stamp)
        return statements

    def migrate(self, connection: SQLConnection) -> list[str]:
        """Make what is missing; return the statements that did.

        To be called again where the database raises because another process was faster, or after a
        crash in the middle, where DDL commits by itself. Raises as `plan` does.
        """
        statements = self.plan(connection)
        for statement in statements:
            connection.run(statement, ())
            failpoint("in_migration")
        return statements

    def drop(self, connection: SQLConnection) -> None:
        """Drop the tables; a native store's of the same names are left alone.

        Raises `StoreSetupError` where they have rows: other services may share them.
        """
        if self._are_others(connection):
            return
        there = [t for t in reversed(TABLES) if self._there(connection, self._columns, t.name)]
        for table in there:
            if table is not STAMP and connection.rows(f"select 1 from {table.name} limit 1", ()):
                raise StoreSetupError(
                    f"{table.name} has rows, and every service on this database shares it"
                    " (DjangoStore and SQLAlchemyStore): their keys would be forgotten, and what"
                    " they protect happen again. Where none of them is needed any more, say"
                    f" `delete from {table.name}` first"
                )
        for table in there:
            connection.run(f"drop table {table.name}", ())

    def _are_others(self, connection: SQLConnection) -> bool:
        return bool(self._there(connection, self._columns, "semel_migration"))

    def _refuse_others(self, connection: SQLConnection) -> None:
        if self._are_others(connection):
            raise StoreSetupError(
                "PostgreSQLStore or SQLiteStore has its tables in this database (semel_migration is"
                " one), and a key claimed through one kind of store is not seen by another. Use"
                " that store here (open_store(url)), or give this one a database of its own, or on"
                " PostgreSQL a schema that comes first in its search_path. Or drop semel_record,"
                " semel_step and semel_migration first, if nothing needs their keys any more"
            )

    def _stamped(self, connection: SQLConnection) -> int | None:
        """Return the number of the last migration, if that was written down."""
        if not self._there(connection, self._columns, STAMP.name):
            return None
        for (version,) in connection.rows(*self._version.bind({"kind": KIND})):
            if version > MIGRATION:
                log.warning(
                    "the database has migration %d, this version of Semel knows %d: a newer one"
                    " was here",
                    version,
                    MIGRATION,
                )
            return int(version)
        return None

    def _lacking(self, connection: SQLConnection, table: PortableTable) -> Iterator[Lacking]:
        columns = self._there(connection, self._columns, table.name)
        if not columns:
            yield Lacking(table.name, self._create(table), table.since)
        for column in table.columns if columns else ():
            if column.name not in columns:
                added = f"alter table {table.name} add column {self._written(column)}"
                came_with_table = column.since == table.since
                name = f"{table.name}.{column.name}"
                yield Lacking(name, None if came_with_table else added, column.since)
        uniques = self._there(connection, self._uniques, table.name) if columns else set()
        kept = {frozenset(names.split(",")) for names in uniques if names}
        for unique in table.uniques if columns else ():
            if kept.isdisjoint({frozenset(unique.columns)}):
                made = f"create unique index {unique.name} on {table.name}"
                ddl = f"{made} ({self._listed(unique.columns)})"
                yield Lacking(unique.name, ddl, table.since)
        # A crash can leave a table without its index, where DDL commits by itself.
        indexes = self._there(connection, self._indexes, table.name) if columns else set()
        for index in table.indexes:
            if index.name not in indexes:
                ddl = self._index(table, index)
                yield Lacking(index.name, ddl, index.since, needed=not columns)

    def _there(self, connection: SQLConnection, asks: PortableStatement, table: str) -> set[Any]:
        return {name for (name,) in connection.rows(*asks.bind({"table": table}))}

    # --- DDL -------------------------------------------------------------------------------

    def _create(self, table: PortableTable) -> str:
        lines = [self._written(column) for column in table.columns]
        if all(column.type is not ColumnType.SERIAL for column in table.columns):
            lines.append(f"primary key ({table.primary_key})")
        lines += [
            f"constraint {unique.name} unique ({self._listed(unique.columns)})"
            for unique in table.uniques
        ]
        return f"create table {table.name} ({', '.join(lines)}){self._dialect.table_options}"

    def _written(self, column: PortableColumn) -> str:
        free = column.null or column.type is ColumnType.SERIAL
        type_ = self._dialect.types[column.type]
        return f"{self._listed((column.name,))} {type_}{'' if free else ' not null'}"

    def _index(self, table: PortableTable, index: PortableIndex) -> str:
        ddl = f"create index {index.name} on {table.name} ({self._listed(index.columns)})"
        partial = index.where is not None and self._dialect.partial_indexes
        return f"{ddl} where {index.where}" if partial else ddl

    def _listed(self, columns: tuple[str, ...]) -> str:
        quote = self._dialect.quote
        return ", ".join(f"{quote}{column}{quote}" for column in columns)
