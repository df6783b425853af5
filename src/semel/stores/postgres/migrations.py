"""Migrations of the tables and functions in a PostgreSQL database, and checks of them."""

from __future__ import annotations

import logging
from typing import Final

import psycopg

from semel.core.record import COLUMNS
from semel.failpoints import failpoint
from semel.stores import statements as sql
from semel.stores.base import StoreSetupError
from semel.stores.schema import COLUMNS_OF, refuse_foreign, require_columns

log = logging.getLogger("semel")

_NEEDED: Final = {**COLUMNS_OF, "semel_found": (*COLUMNS, "now", "won")}
"""The tables, and the type that functions return."""
_LOCK = 0x53656D656C  # "Semel"; held until the transaction ends, so a crash frees it


def missing(connection: psycopg.Connection) -> list[int]:
    """Return the numbers of the migrations that this database lacks."""
    row = connection.execute("select to_regclass('semel_migration')").fetchone()
    newest = 0
    if row is not None and row[0] is not None:
        (newest,) = connection.execute(
            "select coalesce(max(number), 0) from semel_migration"
        ).fetchone() or (0,)
    known = [number for number, _ in sql.migrations("postgres")]
    if newest > known[-1]:
        log.warning(
            "the database has migration %d, this version of Semel knows %d: a newer one was here",
            newest,
            known[-1],
        )
    return [number for number in known if number > newest]


def refuse_foreign_tables(connection: psycopg.Connection) -> None:
    """Raise `StoreSetupError` where the tables belong to another kind of store.

    Looked for where they would be created; a schema further down the search path is not met.
    """
    rows = connection.execute(
        "select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = current_schema()"
        " and c.relname in ('semel_record', 'semel_migration', 'semel_schema')"
    )
    names = {name for (name,) in rows}
    if "semel_record" not in names:
        return
    portable = (
        "semel_schema" in names
        and connection.execute("select 1 from semel_schema where kind = 'portable'").fetchone()
    )
    if portable or "semel_migration" not in names:
        refuse_foreign("postgresql://", "a database or a schema (search_path)")


def require_all_columns(connection: psycopg.Connection) -> None:
    """Raise `StoreSetupError` where something lacks a column that this version needs."""
    found: dict[str, set[str]] = {}
    for table in _NEEDED:
        columns = connection.execute(
            "select attname from pg_attribute where attrelid = to_regclass(%s)"
            " and attnum > 0 and not attisdropped",
            (table,),
        )
        found[table] = {name for (name,) in columns}
    require_columns(found, _NEEDED)


def migrate(connection: psycopg.Connection, lock_timeout: float = 5.0) -> list[int]:
    """Apply what is missing, all in one transaction; return the numbers.

    `lock_timeout`: seconds to wait for other sessions' locks, so that a migration never queues all
    traffic behind itself. Raises `StoreSetupError` with what to do.
    """
    try:
        with connection.transaction():
            connection.execute(f"set local lock_timeout = '{int(lock_timeout * 1000)}ms'")
            connection.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
            refuse_foreign_tables(connection)
            connection.execute(
                "create table if not exists semel_migration"
                " (number integer primary key, applied_at timestamptz not null default now())"
            )
            todo = missing(connection)
            for number, script in sql.migrations("postgres"):
                if number in todo:
                    connection.execute(script.encode())
                    failpoint("in_migration")
                    connection.execute("insert into semel_migration values (%s)", (number,))
            return todo
    except psycopg.errors.InsufficientPrivilege as error:
        raise StoreSetupError(
            f"PostgreSQL: {error}: let a role that may create tables run `semel migrate` once"
        ) from error
    except psycopg.errors.LockNotAvailable as error:
        raise StoreSetupError(
            f"PostgreSQL: another session held a lock for {lock_timeout} s; nothing was changed,"
            " run `semel migrate` again"
        ) from error
