"""Sessions that are part of an operation's transaction, however they choose their engine."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import URL, event, exc
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session, SessionTransaction

from semel.stores.base import StoreSetupError
from semel.stores.sqlalchemy.handed import OVER, OperationConnection
from semel.stores.sqlalchemy.savepoints import reads

PIN: Final = "_semel_pin"
"""Where a session has its `Pin`."""


class SessionConnection(Connection):
    """A session's own connection within the operation's: its transaction is a savepoint.

    `commit()` releases the savepoint and `rollback()` goes back to it, whoever asks: the session,
    or a handler that has `session.connection()`.
    """

    def __init__(self, operation: OperationConnection, options: dict[str, Any]) -> None:
        self._operation = operation
        self._savepoint = ""
        super().__init__(operation.engine, operation.connection)
        event.listen(self, "before_cursor_execute", self._note)
        if options:
            self.execution_options(**options)

    @property
    def pending(self) -> bool:
        """Whether something was written that is not committed."""
        return self._operation.savepoints.has_written(self, self._savepoint)

    def _note(self, _: Connection, cursor: object, statement: str, *rest: object) -> None:
        self._operation.note(statement)
        if not reads(statement):
            self._operation.savepoints.wrote(self)

    def _execute_context(self, *arguments: Any, **options: Any) -> Any:
        with self._operation.statement():
            return super()._execute_context(*arguments, **options)

    def _say(self, do: Callable[[Connection, str], None], name: str) -> None:
        with self._operation.as_semel():
            do(self._operation, name)

    # SQLAlchemy's own ways to a transaction's beginning and ends.

    def _begin_impl(self, transaction: object) -> None:
        if self._operation.over:
            raise exc.ResourceClosedError(OVER)
        self._savepoint = self._operation.savepoints.open(self)
        self._say(self.dialect.do_savepoint, self._savepoint)

    def _begin_twophase_impl(self, transaction: object) -> None:
        self._begin_impl(transaction)

    def _commit_impl(self) -> None:
        if self._operation.over:
            raise exc.ResourceClosedError(OVER)
        if self._operation.savepoints.release(self, self._savepoint):
            self._say(self.dialect.do_release_savepoint, self._savepoint)

    def _rollback_impl(self) -> None:
        if self._undoes(self._savepoint):
            self._say(self.dialect.do_rollback_to_savepoint, self._savepoint)

    def _savepoint_impl(self, name: str | None = None) -> str:
        return super()._savepoint_impl(self._operation.savepoints.open(self))

    def _release_savepoint_impl(self, name: str) -> None:
        if self._operation.savepoints.release(self, name):
            super()._release_savepoint_impl(name)

    def _rollback_to_savepoint_impl(self, name: str) -> None:
        if self._undoes(name):
            super()._rollback_to_savepoint_impl(name)

    def _undoes(self, name: str) -> bool:
        if self._operation.over or self._operation.invalidated:
            return False
        try:
            return self._operation.savepoints.undo(self, name)
        except exc.InvalidRequestError as error:
            self._operation.broken = str(error)
            raise

    def _revalidate_connection(self) -> Any:
        raise exc.ResourceClosedError(OVER)

    def execution_options(self, **options: Any) -> Any:
        """As SQLAlchemy's; the isolation level is the operation's."""
        if "isolation_level" in options:
            raise exc.InvalidRequestError(
                "isolation_level: the operation's transaction has begun, with that of its engine;"
                " give SQLAlchemyStore an engine that was made with the level"
            )
        return super().execution_options(**options)

    def invalidate(self, exception: BaseException | None = None) -> None:
        """Give the operation's connection up: the session's error says that it is broken."""
        self._operation.discard()

    def close(self) -> None:
        """Undo what is not committed; the connection is the operation's."""
        transaction = self.get_transaction()
        if transaction is not None:
            transaction.close()

    def detach(self) -> None:
        """Refuse: the connection is the operation's."""
        raise exc.InvalidRequestError("detach: the connection is the operation's")


class Pin:
    """Holds a session to an operation's transaction, whatever engine it would choose.

    `begun` gives the operation's connection, and begins its transaction where need be. The
    session's own choice (`bind`, `binds`, a `get_bind` of its class) is still asked: where it is
    the operation's database, the operation's transaction is meant; queries to another database go
    there; a write to another database is refused, as it would be no part of the operation.

    Raises `StoreSetupError` for a session whose own `bind` is another database.
    """

    def __init__(
        self, session: Session, engine: Engine, begun: Callable[[Pin], OperationConnection]
    ) -> None:
        if session.bind is not None and not same_database(session.bind.engine, engine):
            raise StoreSetupError(_another(session.bind.engine, engine))
        self.session = session
        self.connection: SessionConnection | None = None
        self._engine = engine
        self._begun = begun
        self._choose = session.get_bind
        self._elsewhere: set[Engine] = set()
        self._twophase = session.twophase
        self._dispatch = session.dispatch
        session.get_bind = self.get_bind  # type: ignore[method-assign]
        session.twophase = False
        session.__dict__[PIN] = self
        session.__dict__["dispatch"] = _Dispatch(session, self)
        event.listen(session, "after_begin", self._began)

    def take_off(self) -> None:
        """Let the session be as it was."""
        session = self.session
        event.remove(session, "after_begin", self._began)
        session.__dict__.pop("get_bind", None)
        session.__dict__.pop(PIN, None)
        session.__dict__["dispatch"] = self._dispatch
        session.twophase = self._twophase

    @property
    def live(self) -> bool:
        """Whether it holds its session still."""
        return self.session.__dict__.get(PIN) is self

    def get_bind(self, *arguments: Any, **named: Any) -> Engine | Connection:
        """Return the operation's connection, or an engine of another database to read from."""
        try:
            chosen = self._choose(*arguments, **named)
        except exc.UnboundExecutionError:
            return self._own({})
        if chosen is self.connection and chosen is not None:
            return self._own({})
        engine = chosen.engine
        if same_database(engine, self._engine):
            return self._own({} if engine is self._engine else _options(engine))
        clause = named.get("clause")
        if getattr(clause, "is_select", False) and not self.session._flushing:
            self._elsewhere.add(engine)
            return chosen
        raise StoreSetupError(_another(engine, self._engine))

    def _own(self, options: dict[str, Any]) -> SessionConnection:
        if self.connection is None:
            self.connection = SessionConnection(self._begun(self), options)
        return self.connection

    def _began(self, session: Session, transaction: object, connection: Connection) -> None:
        if connection is self.connection:
            return
        event.listen(connection, "before_cursor_execute", self._only_reads)
        if connection.engine not in self._elsewhere:
            self._refuse(connection.engine)

    def _only_reads(self, connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        if not reads(statement):
            self._refuse(connection.engine)

    def _refuse(self, engine: Engine) -> None:
        message = _another(engine, self._engine)
        self._begun(self).broken = message  # whoever swallows the error does not commit
        raise StoreSetupError(message)

    @property
    def pending(self) -> bool:
        """Whether the session has written something, or means to, that it has not committed."""
        session, connection = self.session, self.connection
        written = connection is not None and session.in_transaction() and connection.pending
        return written or bool(session.new or session.dirty or session.deleted)

    def committed(self, call: Callable[[], None]) -> None:
        """Have `call` called when the operation commits."""
        if self.connection is None:
            call()
        else:
            self.connection._operation.committed.append(call)


class _Dispatch:
    """A session's listeners, of which those of `after_commit` wait for the real commit."""

    def __init__(self, session: Session, pin: Pin) -> None:
        self.__dict__.update(_of=session.dispatch, after_commit=_AfterCommit(session.dispatch, pin))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._of, name, value)


class _AfterCommit:
    def __init__(self, dispatch: Any, pin: Pin) -> None:
        self._of = dispatch
        self._pin = pin

    def __call__(self, session: Session) -> None:
        listeners = self._of.after_commit
        if listeners:
            self._pin.committed(lambda: listeners(session))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of.after_commit, name)

    def __bool__(self) -> bool:
        return bool(self._of.after_commit)

    def for_modify(self, _: object) -> Any:
        return self._of.after_commit.for_modify(self._of)


def leave_transaction(session: Session) -> None:
    """Have a session that has begun before its operation go on in the operation's transaction.

    What it has flushed so far was done before the operation, and is committed by itself; what is
    pending in it is not.
    """
    transaction = session.get_transaction()
    while isinstance(transaction, SessionTransaction):
        held = transaction._connections
        for connection, begun, _, ours in set(held.values()):
            if isinstance(connection, SessionConnection):
                return
            if begun.is_active:
                begun.commit()
            if ours:
                connection.close()
        held.clear()
        transaction = transaction.parent


def same_database(one: Engine, other: Engine) -> bool:
    """Whether two engines reach one database, by whichever driver and as whomever."""
    if one.pool is other.pool:
        return True
    place = place_of_url(one.url)
    return place is not None and place == place_of_url(other.url)


def place_of_url(url: URL) -> tuple[object, ...] | None:
    """Return which database a URL names, or None for one that nobody else can reach."""
    backend = url.get_backend_name()
    name = url.database or ""
    if backend == "sqlite":
        path = name.removeprefix("file:").partition("?")[0]
        return None if path in ("", ":memory:") else (backend, os.path.realpath(path))
    host = url.host or url.query.get("host") or ""
    port = url.port or url.query.get("port") or _PORTS.get(backend)
    return (backend, "" if host in _LOCAL else host, str(port), name or url.username)


_LOCAL: Final = ("localhost", "127.0.0.1", "::1")
_PORTS: Final = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}


def _options(engine: Engine) -> dict[str, Any]:
    """What statements of another engine for the same database are carried out with."""
    options = dict(engine.get_execution_options())
    if "isolation_level" in options:
        raise StoreSetupError(
            f"a session's engine has isolation_level={options['isolation_level']!r}: in an"
            " operation it is that of the operation's engine. Give SQLAlchemyStore that engine, or"
            " leave this session out of the operation"
        )
    return options


def _another(engine: Engine, own: Engine) -> str:
    return (
        f"a session writes to {engine.url!r}, and its operation is on {own.url!r}: that would be no"
        " part of the operation. Give SQLAlchemyStore the engine of the session, or write there by"
        " a session of its own, in a step (op.step)"
    )
