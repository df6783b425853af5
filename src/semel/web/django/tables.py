"""The portable tables in terms of Django: the fields of models, and what migrations do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from django.db import models

from semel.core.record import State
from semel.core.steps import LONGEST_NAME
from semel.stores.django.connection import PARAMSTYLE, DjangoConnection, dialect_of
from semel.stores.portable.dialects import ColumnType
from semel.stores.portable.schema import PortableSchema, PortableTable


class BytesField(models.BinaryField):
    """Bytes, which with a `max_length` can be indexed on MySQL too."""

    def db_type(self, connection: Any) -> Any:
        """Return the column's type."""
        if connection.vendor == "mysql" and self.max_length is not None:
            return f"varbinary({self.max_length})"
        return super().db_type(connection)

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> bytes | None:
        """Return bytes, whatever the driver has."""
        return bytes(value) if value is not None else None


class StepNameField(models.TextField):
    """A text with an index that tells every byte apart: on MySQL its UTF-8 in bytes."""

    def db_type(self, connection: Any) -> Any:
        """Return the column's type."""
        if connection.vendor == "mysql":
            return f"varbinary({LONGEST_NAME})"
        return super().db_type(connection)

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        """Return the text."""
        return value.decode() if isinstance(value, bytes) else value


_FIELDS: Final[Mapping[ColumnType, Any]] = {
    ColumnType.SERIAL: lambda **options: models.BigAutoField(primary_key=True),
    ColumnType.SMALLINT: models.SmallIntegerField,
    ColumnType.INTEGER: models.IntegerField,
    ColumnType.DOUBLE: models.FloatField,
    ColumnType.KEY: lambda **options: BytesField(max_length=16, **options),
    ColumnType.SHORT_BYTES: lambda **options: BytesField(max_length=64, **options),
    ColumnType.BYTES: BytesField,
    ColumnType.TEXT: models.TextField,
    ColumnType.NAME: StepNameField,
}
_OPTIONS: Final[Mapping[str, dict[str, Any]]] = {
    "state": {"choices": [(state.value, state.name.lower().replace("_", " ")) for state in State]},
}


def fields(table: PortableTable) -> dict[str, Any]:
    """Return the fields of a model by their names."""
    return {
        column.name: _FIELDS[column.type](null=column.null, **_OPTIONS.get(column.name, {}))
        for column in table.columns
    }


def indexes(table: PortableTable) -> list[models.Index]:
    """Return the indexes of a model. Which of them are partial, its database knows."""
    return [models.Index(fields=index.columns, name=index.name) for index in table.indexes]


def constraints(table: PortableTable) -> list[models.UniqueConstraint]:
    """Return the constraints of a model."""
    return [
        models.UniqueConstraint(fields=unique.columns, name=unique.name) for unique in table.uniques
    ]


def schema_of(connection: Any) -> PortableSchema:
    """Return the portable tables of the database that a connection is to."""
    return PortableSchema(dialect_of(connection), PARAMSTYLE)


def has_records(alias: str) -> bool:
    """Whether `SEMEL` keeps its records in this database through `DjangoStore`.

    Settings that cannot be read are taken for those of `DjangoStore`: the checks name the fault.
    """
    from semel.stores.django.store import DjangoStore
    from semel.web.django.conf import configured

    try:
        store = configured().idempotency.store
    except Exception:  # noqa: BLE001  # whatever an import of theirs raises
        return True
    return isinstance(store, DjangoStore) and store.alias == alias


def migrate_tables(apps: Any, schema_editor: Any) -> None:
    """Bring the tables up to date, whoever has made them; for `RunPython` in a migration.

    Only where they are used: a project whose `SEMEL` names another store, which may have tables of
    the same names here, is left alone. Raises `StoreSetupError` where the tables are another
    store's.
    """
    connection = schema_editor.connection
    if has_records(connection.alias):
        schema_of(connection).migrate(DjangoConnection(connection))


def drop_tables(apps: Any, schema_editor: Any) -> None:
    """Drop the tables; the way back of the first migration.

    Raises `StoreSetupError` where they have rows: other services may share them.
    """
    connection = schema_editor.connection
    schema_of(connection).drop(DjangoConnection(connection))
