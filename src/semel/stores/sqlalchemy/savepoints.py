"""Savepoints of several sessions on one connection, each a transaction of its session's."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from sqlalchemy import exc

_READS: Final = re.compile(
    r"\s*\(*\s*(?:select|show|explain|savepoint|release|rollback|values)\b", re.IGNORECASE
)
INTERLEAVED: Final = (
    "two sessions of one operation have written in turns, and one of them rolls back: in the one"
    " transaction that they share its writes cannot be undone without the other's. Commit or roll"
    " back one session before the other writes, or use one session"
)


def reads(statement: str) -> bool:
    """Whether a statement writes nothing, by its first word."""
    return _READS.match(statement) is not None


class _Savepoint(NamedTuple):
    owner: object
    at: int
    wrote: int
    """When its owner had written last."""


class Savepoints:
    """Which sessions have a savepoint open, and when each has written last.

    Sessions of their own connections would not know of each other. On one connection a ROLLBACK
    TO undoes what *every* session has done since, and a RELEASE ends every savepoint since: neither
    is said where it would take away what another session holds.
    """

    def __init__(self) -> None:
        self._now = 0
        self._names = 0
        self._open: dict[str, _Savepoint] = {}
        self._gone: dict[str, int] = {}
        """Savepoints that another session's rollback has ended: when they were opened."""
        self._wrote: dict[object, int] = {}

    def open(self, owner: object) -> str:
        """Note a savepoint of `owner` and return its name."""
        self._now += 1
        self._names += 1
        name = f"semel_{self._names}"
        self._open[name] = _Savepoint(owner, self._now, self._wrote.get(owner, 0))
        return name

    def wrote(self, owner: object) -> None:
        """Note that `owner` has written."""
        self._now += 1
        self._wrote[owner] = self._now

    def has_written(self, owner: object, name: str) -> bool:
        """Whether `owner` has written since its savepoint of this name."""
        savepoint = self._open.get(name)
        return savepoint is not None and self._wrote.get(owner, 0) > savepoint.at

    def release(self, owner: object, name: str) -> bool:
        """Note the end of a savepoint; return whether RELEASE is to be said."""
        self._gone.pop(name, None)
        ended = self._open.pop(name, None)
        return ended is not None and not self._others_since(ended)

    def undo(self, owner: object, name: str) -> bool:
        """Note the end of a savepoint; return whether ROLLBACK TO is to be said.

        Raises `sqlalchemy.exc.InvalidRequestError` where it would undo what others have written.
        """
        ended = self._open.pop(name, None)
        at = ended.at if ended is not None else self._gone.pop(name, self._now)
        own = self._wrote.get(owner, 0) > at
        others = any(last > at for other, last in self._wrote.items() if other is not owner)
        if own and (others or ended is None):
            raise exc.InvalidRequestError(INTERLEAVED)
        if ended is None or others:
            return False
        for inner in self._others_since(ended):
            self._gone[inner] = self._open.pop(inner).at
        self._wrote[owner] = ended.wrote
        return True

    def _others_since(self, ended: _Savepoint) -> list[str]:
        return [
            name
            for name, savepoint in self._open.items()
            if savepoint.at > ended.at and savepoint.owner is not ended.owner
        ]

    def forget(self) -> None:
        """All is undone: no savepoint is there, and nobody has written."""
        self._gone = dict.fromkeys([*self._open, *self._gone], self._now)
        self._open.clear()
        self._wrote.clear()
