"""Sessions that are the operation's where there is one, and the application's own elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, Final, TypeVar

try:
    from sqlalchemy import event
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
    from sqlalchemy.orm import Session, SessionTransaction, scoped_session, sessionmaker
    from sqlalchemy.util import await_only
    from sqlalchemy.util.concurrency import in_greenlet
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "semel.sessions needs SQLAlchemy 2: pip install 'semel[sqlalchemy]'"
    ) from error

from semel.idempotency import Idempotency
from semel.runtime.drivers import AsyncDriver, ThreadDriver, current
from semel.runtime.transactions import OVER, OperationOver
from semel.sessions.watch import watch
from semel.stores.base import StoreSetupError
from semel.stores.sqlalchemy.handed import OperationConnection
from semel.stores.sqlalchemy.joined import PIN, Pin, leave_transaction
from semel.stores.sqlalchemy.transaction import NEEDS_ASYNC, NEEDS_SYNC

__all__ = ["join_sessionmaker"]

Driver = AsyncDriver | ThreadDriver
Factory = TypeVar("Factory")

_JOINED: Final = "_semel_joined"
_GIVE: Final = (
    "join_sessionmaker: give a sessionmaker, async_sessionmaker, scoped_session or"
    " async_scoped_session, not {!r}"
)
_ANOTHER_STORE: Final = (
    "the records are in {name}://, whose transaction a session of SQLAlchemy's cannot join: give"
    " Idempotency(SQLAlchemyStore(engine)) with the engine of the session. Where the application"
    " has the driver's own connections, give op.connection() in their place wherever there is an"
    " operation (semel.web.fastapi.OptionalAsyncOp)"
)


def operation_of(idempotency: Idempotency) -> Driver | None:
    """Return the operation that runs here under these rules and can hold a session.

    None too where the store shares no transaction with anybody: a session is then the
    application's own. Raises `StoreSetupError` for a store with transactions of another kind.
    """
    driver = current.get()
    if driver is None or driver.finishing or driver.runtime.store is not idempotency.store:
        return None
    store = driver.runtime.store
    if hasattr(store, "sync_engine"):
        return driver
    if store.atomic:
        raise StoreSetupError(_ANOTHER_STORE.format(name=store.name))
    return None


def takes_threads(driver: Driver) -> bool:
    """Say whether the operation's sessions are plain ones, which wait on a thread."""
    return not driver.finishing and getattr(driver.runtime.store, "is_async", True) is False


def join(session: Session, driver: Driver) -> None:
    """Have a session as the operation's from here on: after its end it refuses to work."""
    if PIN in session.__dict__:
        return
    Pin(session, driver.runtime.store.sync_engine, _Begun(driver))  # type: ignore[attr-defined]
    driver.taken = True  # nothing is written elsewhere, even where nothing is written
    leave_transaction(session)


class _Begun:
    """Begins the operation's transaction when a session first needs it."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def __call__(self, pin: Pin) -> OperationConnection:
        """Begin it; below an `AsyncSession` SQLAlchemy runs in a greenlet, which may await."""
        driver = self._driver
        if driver.finishing:
            raise OperationOver(OVER)
        store: Any = driver.runtime.store
        if store.is_async:
            if not isinstance(driver, AsyncDriver) or not in_greenlet():
                raise StoreSetupError(NEEDS_SYNC)
            transaction: Any = await_only(driver.abegun())
        else:
            if in_greenlet():
                raise StoreSetupError(NEEDS_ASYNC)
            transaction = driver.begun()
        joined: OperationConnection = transaction.join(pin)
        return joined


# --- a factory's sessions ------------------------------------------------------------------


def join_sessionmaker(sessions: Factory, idempotency: Idempotency) -> Factory:
    """Have the sessions of a factory join the operation that they are used in; return the factory.

        Sessions = join_sessionmaker(sessionmaker(engine), idempotency)

    For units of work (`with Sessions.begin() as session`) and for sessions that a handler opens by
    itself. `sessions` is a `sessionmaker`, an `async_sessionmaker`, or a `scoped_session` of
    either, and is changed in place: those who have imported it have the same. In an operation each
    of its sessions is a part of the operation's transaction: its `commit()` releases a savepoint,
    its `rollback()` goes back to it, and what it has not committed by the end of the operation is
    rolled back. Outside of operations, and in background tasks, nothing changes.

    Raises `TypeError` for something else; sessions raise `StoreSetupError` where they are not of
    the operation's database.
    """
    factory = sessions
    if isinstance(sessions, (scoped_session, async_scoped_session)):
        factory = sessions.session_factory  # type: ignore[assignment]
    _join_class(_class_of(factory), idempotency)
    if isinstance(sessions, (scoped_session, async_scoped_session)):
        sessions.registry = _Registry(sessions.registry, idempotency)  # type: ignore[assignment]
    watch()
    return sessions


def _class_of(factory: object) -> type[Session]:
    """Return the class of the factory's sessions, which no other factory has."""
    if isinstance(factory, sessionmaker):
        return factory.class_
    if not isinstance(factory, async_sessionmaker):
        raise TypeError(_GIVE.format(factory))
    kind: type[Session] = factory.kw.get("sync_session_class") or factory.class_.sync_session_class
    if _JOINED not in vars(kind):
        kind = type(kind.__name__, (kind,), {})
        factory.configure(sync_session_class=kind)
    return kind


def _join_class(kind: type[Session], idempotency: Idempotency) -> None:
    if vars(kind).get(_JOINED) is idempotency:
        return
    choose = kind.get_bind

    def enter(session: Session) -> bool:
        driver = operation_of(idempotency) if PIN not in session.__dict__ else None
        if driver is not None:
            join(session, driver)
        return driver is not None

    def get_bind(self: Session, *arguments: Any, **named: Any) -> Any:
        # Asked before a session begins by itself.
        return (self.get_bind if enter(self) else partial(choose, self))(*arguments, **named)

    def begins(session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            enter(session)

    def ends(session: Session, transaction: SessionTransaction) -> None:
        pin = session.__dict__.get(PIN)
        if transaction.parent is None and pin is not None:
            pin.take_off()  # where it is used next, it may be another operation, or none

    kind.get_bind = get_bind  # type: ignore[method-assign]
    event.listen(kind, "after_transaction_create", begins)
    event.listen(kind, "after_transaction_end", ends)
    setattr(kind, _JOINED, idempotency)


class _Registry:
    """A scoped session's registry: one that has begun before its operation goes on within it."""

    def __init__(self, registry: Any, idempotency: Idempotency) -> None:
        self._registry = registry
        self._idempotency = idempotency

    def __call__(self) -> Any:
        session = self._registry()
        if current.get() is not None:
            sync = session.sync_session if isinstance(session, AsyncSession) else session
            if sync.in_transaction() and PIN not in sync.__dict__:
                driver = operation_of(self._idempotency)
                if driver is not None:
                    join(sync, driver)
        return session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)


# --- sessions that are made in a function -------------------------------------------------------

_JOINING: ContextVar[tuple[Driver, list[Session]] | None] = ContextVar(
    "semel_joining", default=None
)


@contextmanager
def joining(driver: Driver) -> Iterator[list[Session]]:
    """Have every session that is made in this block join the operation; gives them."""
    found: list[Session] = []
    before = _JOINING.set((driver, found))
    try:
        yield found
    finally:
        _JOINING.reset(before)


def see_sessions_made() -> None:
    """Have `joining` see sessions of every class. SQLAlchemy has no event for their making."""
    make = Session.__init__
    if hasattr(make, _JOINED):
        return

    @wraps(make)
    def made(self: Session, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        here = _JOINING.get()
        if here is not None:
            driver, found = here
            join(self, driver)
            found.append(self)

    setattr(made, _JOINED, True)
    Session.__init__ = made  # type: ignore[method-assign]


def sessions_in(value: object) -> list[Session]:
    """Return the sessions that a value is, or has as items or attributes."""
    if isinstance(value, AsyncSession):
        return [value.sync_session]
    if isinstance(value, Session):
        return [value]
    if isinstance(value, (async_scoped_session, scoped_session)):
        return sessions_in(value())
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, (list, tuple)):
        parts = list(value)
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    held = (part for part in parts if isinstance(part, (Session, AsyncSession)))
    return [session for part in held for session in sessions_in(part)]
