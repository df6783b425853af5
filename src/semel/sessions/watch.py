"""Writes beside an operation, and commits after its record, seen as they happen."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from semel.runtime.drivers import AsyncDriver, ThreadDriver, current
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.stores.sqlalchemy.engines import COMMANDS
from semel.stores.sqlalchemy.handed import OperationConnection
from semel.stores.sqlalchemy.joined import SessionConnection, place_of_url, same_database
from semel.stores.sqlalchemy.savepoints import reads

__all__ = ["watch"]

log = logging.getLogger("semel")

_LATE: Final = (
    "operation %s: a transaction that it began on %s was committed after its record. Had the"
    " process died in between, its response would be replayed without this effect. Commit before"
    " the response is made: by semel.web.fastapi.joined(idempotency, dependency), or"
    ' Depends(dependency, scope="function")'
)
_ELSEWHERE: Final = (
    'operation %s: guarantee="atomic", and its handler writes on another connection than the'
    " operation's (%s), which commits by itself: use op.session(), or have the session join"
    " (semel.web.fastapi.joined, semel.sessions.join_sessionmaker)"
)
_MOST: Final = 1000
"""Statements that are remembered, so that each is told of once."""


@dataclass(slots=True)
class _BegunIn:
    driver: AsyncDriver | ThreadDriver
    wrote: bool = False


_BEGUN: WeakKeyDictionary[Connection, _BegunIn] = WeakKeyDictionary()
"""Transactions that operations have begun beside their own."""
_TOLD: set[tuple[str, str]] = set()


def watch() -> None:
    """Watch the transactions of every engine of this process. More calls do nothing more."""
    if not event.contains(Engine, "begin", _begins):
        event.listen(Engine, "begin", _begins)
        event.listen(Engine, "before_cursor_execute", _executes)
        event.listen(Engine, "commit", _commits)
        event.listen(Engine, "rollback", _ends)


def _begins(connection: Connection) -> None:
    driver = current.get()
    if driver is None or driver.finishing:
        return
    if not isinstance(connection, (OperationConnection, SessionConnection)):
        if COMMANDS not in connection.get_execution_options():
            _BEGUN[connection] = _BegunIn(driver)


def _executes(connection: Connection, cursor: object, statement: str, *_: Any) -> None:
    if not _BEGUN:
        return
    begun = _BEGUN.get(connection)
    if begun is None or reads(statement):
        return
    begun.wrote = True
    driver = begun.driver
    if driver.policy.guarantee == "atomic" and not driver.finishing:
        _tell_elsewhere(driver, connection.engine, statement)


def _tell_elsewhere(driver: AsyncDriver | ThreadDriver, engine: Engine, statement: str) -> None:
    store = driver.runtime.store
    if isinstance(store, SQLAlchemyStore):
        same = same_database(engine, store.sync_engine)
    else:
        file = store.file
        same = file is not None and place_of_url(engine.url) == ("sqlite", str(file))
    told = (str(engine.url), statement)
    if same and told not in _TOLD and len(_TOLD) < _MOST:
        _TOLD.add(told)
        log.error(_ELSEWHERE, driver.key[:6].hex(), " ".join(statement.split())[:100])


def _commits(connection: Connection) -> None:
    if not _BEGUN:
        return
    begun = _BEGUN.pop(connection, None)
    if begun is not None and begun.wrote and begun.driver.finishing:
        log.error(_LATE, begun.driver.key[:6].hex(), repr(connection.engine.url))


def _ends(connection: Connection) -> None:
    if _BEGUN:
        _BEGUN.pop(connection, None)
