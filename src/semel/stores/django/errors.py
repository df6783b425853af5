"""The meaning of Django's database errors: done, not done, or not known; to be tried again."""

from __future__ import annotations

import sqlite3
from typing import Final

from django.db import DatabaseError

from semel.core.commands import StoreError, StoreUnavailable, StoreUnknown
from semel.stores.mysql_errors import cut_off
from semel.stores.sqlite.file import translate as translate_sqlite

_UNDONE: Final = frozenset({"40001", "40P01", 1020, 1213})
"""Serialization failures and deadlocks: PostgreSQL's codes, and MySQL's. 1020 is MariaDB's, under
innodb_snapshot_isolation."""


def undone(error: Exception) -> bool:
    """Whether the database has undone it because of others, so that it may be given again."""
    return _code(error) in _UNDONE and not isinstance(error, StoreError)


def translate(error: Exception, *, sent: bool) -> StoreError:
    """Map an error to `StoreUnavailable` (certainly not done) or `StoreUnknown` (may be done).

    `sent`: the database may have done it before the connection was lost.
    """
    if isinstance(error, StoreError):
        return error
    cause = error.__cause__
    if isinstance(cause, sqlite3.Error):
        return translate_sqlite(cause, at_commit=sent)
    if sent and _lost(error):
        return StoreUnknown(str(error))
    return StoreUnavailable(str(error))


def _lost(error: Exception) -> bool:
    """Whether the connection went, and with it the answer."""
    if not isinstance(error, DatabaseError):
        return False  # InterfaceError: it was closed before
    code = _code(error)
    if isinstance(code, str):
        return code[:2] in ("08", "57")
    return code is None or cut_off(code)


def _code(error: Exception) -> str | int | None:
    cause = error.__cause__ or error
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if state is not None:
        return str(state)
    first = cause.args[0] if cause.args else None
    return first if isinstance(first, int) else None
