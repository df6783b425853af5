"""Permissions of handlers' statements on the one writer, whose connection all operations share."""

from __future__ import annotations

import sqlite3
from typing import Final

_ENDS: Final = (
    "the transaction belongs to the operation and commits with its response: leave BEGIN, COMMIT"
    " and ROLLBACK out; connection.rollback() undoes what was written, SAVEPOINT is yours"
)
_ATTACHES: Final = (
    "the connection is the one writer of all operations, so no database can be attached to it or"
    " detached: open a connection of your own with sqlite3.connect()"
)
_PRAGMA: Final = (
    "PRAGMA {name} = {value} would stay with the connection, which is the one writer of all"
    " operations: set it on connections of your own"
)
_ASKS: Final = frozenset(
    {
        "table_info",
        "table_xinfo",
        "table_list",
        "index_list",
        "index_info",
        "index_xinfo",
        "foreign_key_list",
        "foreign_key_check",
        "integrity_check",
        "quick_check",
        "user_version",
        "application_id",
        "optimize",
        "defer_foreign_keys",
    }
)
"""Pragmas whose value is a question, is kept in the file, or ends with the transaction."""
_ALREADY: Final = {
    "foreign_keys": frozenset({"1", "on", "true", "yes"}),
    "journal_mode": frozenset({"wal"}),
    "encoding": frozenset({"utf-8", "utf8"}),
}
"""What is so already."""
_TEMPORARY: Final = frozenset(
    {
        sqlite3.SQLITE_CREATE_TEMP_INDEX,
        sqlite3.SQLITE_CREATE_TEMP_TABLE,
        sqlite3.SQLITE_CREATE_TEMP_TRIGGER,
        sqlite3.SQLITE_CREATE_TEMP_VIEW,
    }
)
_ATTACHING: Final = frozenset({sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH})
_CREATE_VTABLE: Final = 29
_MADE: Final = (
    "select type, name from sqlite_temp_master where type in ('table', 'view', 'trigger')"
    " and name not like 'sqlite\\_%' escape '\\' order by type = 'table'"
)


class Permissions:
    """What SQLite asks before it prepares a statement (`sqlite3_set_authorizer`)."""

    def __init__(self) -> None:
        self.internal = False
        """Whether the statements are Semel's own: all is allowed."""
        self.lent = False
        """Whether a handler has the connection: what it sets would stay for the next."""
        self.refusal: str | None = None
        """Why the last statement was refused, if one was."""
        self.temporary = False
        """Whether something was made that stays with the connection."""

    def authorize(
        self,
        action: int,
        first: str | None,
        second: str | None,
        database: str | None,
        _: str | None,
    ) -> int:
        """Refuse what would end the transaction or a turn under us, or outlive its operation."""
        if self.internal:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_TRANSACTION:
            return self._refuse(_ENDS)
        if action == sqlite3.SQLITE_SAVEPOINT and (second or "").lower() == "semel_turn":
            return self._refuse(_ENDS)
        return self._keep(action, first, second, database) if self.lent else sqlite3.SQLITE_OK

    def _keep(
        self, action: int, first: str | None, second: str | None, database: str | None
    ) -> int:
        """Keep the connection as it is."""
        if action in _TEMPORARY or (action == _CREATE_VTABLE and database == "temp"):
            self.temporary = True
        elif action in _ATTACHING:
            return self._refuse(_ATTACHES)
        elif action == sqlite3.SQLITE_PRAGMA and second is not None:
            name = (first or "").lower()
            if name not in _ASKS and second.lower() not in _ALREADY.get(name, ()):
                return self._refuse(_PRAGMA.format(name=name, value=second))
        return sqlite3.SQLITE_OK

    def _refuse(self, why: str) -> int:
        self.refusal = why
        return sqlite3.SQLITE_DENY

    def taken_back(self) -> None:
        """Note that the handler has the connection no more, and has left nothing."""
        self.lent = self.temporary = False
        self.refusal = None

    def explain(self, error: sqlite3.DatabaseError) -> sqlite3.DatabaseError:
        """Return an error that says why a statement was refused, or the error itself."""
        why, self.refusal = self.refusal, None
        if why is None or str(error) != "not authorized":
            return error
        return sqlite3.ProgrammingError(f"not authorized: {why}")


def drop_temporary(connection: sqlite3.Connection) -> None:
    """Drop what a handler has made of temporary tables, views and triggers."""
    for kind, name in connection.execute(_MADE).fetchall():
        quoted = name.replace('"', '""')
        connection.execute(f'drop {kind} if exists temp."{quoted}"')
