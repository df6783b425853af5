"""The portable tables as SQLAlchemy's `MetaData`, for Alembic."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    VARBINARY,
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.mysql import LONGBLOB, LONGTEXT

from semel.core.steps import LONGEST_NAME
from semel.stores.portable.dialects import ColumnType
from semel.stores.portable.schema import TABLES, PortableColumn, PortableTable

MYSQL: Final = ("mysql", "mariadb")

_TYPES: Final[dict[ColumnType, Any]] = {
    ColumnType.SERIAL: BigInteger().with_variant(Integer, "sqlite"),
    ColumnType.SMALLINT: SmallInteger(),
    ColumnType.INTEGER: Integer(),
    ColumnType.DOUBLE: Double(),
    ColumnType.KEY: LargeBinary().with_variant(VARBINARY(16), *MYSQL),
    ColumnType.SHORT_BYTES: LargeBinary().with_variant(VARBINARY(64), *MYSQL),
    ColumnType.BYTES: LargeBinary().with_variant(LONGBLOB(), *MYSQL),
    ColumnType.TEXT: Text().with_variant(LONGTEXT(), *MYSQL),
    ColumnType.NAME: Text().with_variant(VARBINARY(LONGEST_NAME), *MYSQL),
    ColumnType.LABEL: String(20),
}
_INNODB: Final[dict[str, Any]] = {
    f"{name}_{option}": value
    for name in MYSQL
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"))
}

metadata: Final = MetaData()
"""Hand it to Alembic beside your own: `target_metadata = [Base.metadata, metadata]`."""


def _column(table: PortableTable, column: PortableColumn) -> Column[Any]:
    return Column(
        column.name,
        _TYPES[column.type],
        primary_key=column.name == table.primary_key,
        nullable=column.null,
    )


def _add(table: PortableTable) -> None:
    made = Table(
        table.name,
        metadata,
        *(_column(table, column) for column in table.columns),
        *(UniqueConstraint(*unique.columns, name=unique.name) for unique in table.uniques),
        sqlite_autoincrement=any(c.type is ColumnType.SERIAL for c in table.columns),
        **_INNODB,
    )
    for index in table.indexes:
        where = text(index.where) if index.where is not None else None
        columns = (made.c[name] for name in index.columns)
        Index(index.name, *columns, postgresql_where=where, sqlite_where=where)


for _table in TABLES:
    _add(_table)
