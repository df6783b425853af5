"""Brings the tables and functions in a PostgreSQL database up to date."""

from __future__ import annotations

import logging

import psycopg

from semel.failpoints import failpoint
from semel.stores import statements as sql
from semel.stores.base import StoreSetupError

log = logging.getLogger("semel")

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


def migrate(connection: psycopg.Connection, lock_timeout: float = 5.0) -> list[int]:
    """Apply what is missing, all in one transaction; return the numbers.

    `lock_timeout`: seconds to wait for other sessions' locks, so that a migration never queues all
    traffic behind itself. Raises `StoreSetupError` with what to do.
    """
    try:
        with connection.transaction():
            connection.execute(f"set local lock_timeout = '{int(lock_timeout * 1000)}ms'")
            connection.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
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
