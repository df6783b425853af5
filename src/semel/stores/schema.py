"""Checks that the tables in a database are this kind of store's, and have its columns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from semel.core.record import COLUMNS
from semel.stores.base import StoreSetupError

__all__ = ["COLUMNS_OF", "refuse_foreign", "require_columns"]

COLUMNS_OF: Final[dict[str, tuple[str, ...]]] = {
    "semel_record": (*COLUMNS, "request"),
    "semel_step": ("key", "name", "result", "purge_at"),
}
"""The tables of a store, and the columns that this version of Semel needs in each."""


def refuse_foreign(kind: str, place: str) -> None:
    """Raise `StoreSetupError`: the tables belong to another kind of store than `kind`.

    `place`: what to give each service of its own, a database or a file.
    """
    raise StoreSetupError(
        f"its tables are those of another kind of store (SQLAlchemyStore or DjangoStore) than"
        f" {kind}, and neither would find the other's keys: give each service {place} of its own,"
        " or use the same kind of store in both"
    )


def require_columns(
    found: Mapping[str, Collection[str]], needed: Mapping[str, Collection[str]] = COLUMNS_OF
) -> None:
    """Raise `StoreSetupError`, naming them, where tables lack columns that are needed."""
    lacking = [
        f"{table}.{column}"
        for table, columns in needed.items()
        for column in columns
        if column not in found.get(table, ())
    ]
    if lacking:
        raise StoreSetupError(
            f"its tables lack {', '.join(lacking)}, although all migrations are noted as applied:"
            " somebody has altered them; restore them from a backup, or drop semel_record,"
            " semel_step and semel_migration to begin anew (their keys are forgotten)"
        )
