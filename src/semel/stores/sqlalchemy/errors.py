"""The meaning of errors from below SQLAlchemy: done, not done, or not known; to be tried again."""

from __future__ import annotations

import sqlite3
from typing import Final

from sqlalchemy import exc

from semel.core.commands import StoreError, StoreUnavailable, StoreUnknown
from semel.stores.mysql_errors import cut_off

FAILURES: Final = (exc.SQLAlchemyError, OSError)
"""The drivers' errors, a timeout (`TimeoutError`) included; asyncpg refuses with `OSError`."""

_AGAIN: Final = frozenset(
    {
        "40001",  # serialization failure
        "40P01",  # deadlock
        "55P03",
        1020,  # changed since last read: MariaDB's innodb_snapshot_isolation
        1205,  # waited too long for a lock
        1213,  # deadlock
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
    }
)


def _code(error: BaseException) -> str | int | None:
    """The SQLSTATE (PostgreSQL), error number (MySQL) or primary result code (SQLite)."""
    cause = getattr(error, "orig", None)
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if isinstance(state, str):
        return state
    code = getattr(cause, "sqlite_errorcode", None)
    if isinstance(code, int):
        return code & 0xFF
    arguments = getattr(cause, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else None


def _reported(error: BaseException) -> bool:
    """Whether the database itself has said that it did not do it."""
    code = _code(error)
    if getattr(error, "connection_invalidated", False) or code is None:
        return False
    if isinstance(code, str):
        return not code.startswith(("08", "57P"))
    if code < 1000:
        return code != sqlite3.SQLITE_IOERR
    return not cut_off(code)


def again(error: BaseException, *, committing: bool) -> bool:
    """Whether a whole transaction that ended so may be given again.

    Before its commit was sent nothing of it can have been done, whatever became of its connection.
    """
    if _code(error) in _AGAIN:
        return True
    return not committing and (
        isinstance(error, exc.IntegrityError)  # another inserted the same row between two looks
        or bool(getattr(error, "connection_invalidated", False))
    )


def translate(error: BaseException, *, committing: bool) -> StoreError:
    """Map an error to `StoreUnavailable` (certainly not done) or `StoreUnknown` (may be done).

    `committing`: the commit had been sent.
    """
    if isinstance(error, StoreError):
        return error
    cause = getattr(error, "orig", None) or error
    text = f"SQLAlchemy: {type(cause).__name__}: {str(cause).strip()}"
    if not committing or _reported(error):
        return StoreUnavailable(text)
    return StoreUnknown(text)
