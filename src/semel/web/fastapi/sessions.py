"""`joined`: an application's session dependency, in the operation's transaction."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import Annotated, Any, Final, TypeVar

from anyio.to_thread import run_sync
from fastapi import Depends, Request
from sqlalchemy.util import greenlet_spawn

from semel.idempotency import Idempotency
from semel.operation import Operation
from semel.runtime.drivers import AsyncDriver, current
from semel.sessions.joining import (
    Driver,
    join,
    joining,
    operation_of,
    see_sessions_made,
    sessions_in,
    takes_threads,
)
from semel.sessions.watch import watch
from semel.stores.base import StoreSetupError
from semel.web.fastapi.dependencies import take_place
from semel.web.fastapi.exits import JOINED

__all__ = ["joined"]

Dependency = TypeVar("Dependency", bound=Callable[..., Any])

_TURN: Final = "semel_turn"


def joined(idempotency: Idempotency, dependency: Dependency) -> Dependency:
    """Have a session dependency give the operation's session in operations; return what it becomes.

        get_db = joined(idempotency, get_db)

    `dependency` is a function as FastAPI takes one: a generator or an async generator that yields a
    session of SQLAlchemy's (SQLModel's), or a function that returns one; with dependencies of its
    own. What comes back is of the same shape, for FastAPI, its overrides in tests, and code that
    calls it.

    In an operation (a request with a key, on a route that is covered) the dependency's own session
    is made as ever, by its own class and options, and stands in the operation's transaction: its
    `commit()` releases a savepoint, its `rollback()` goes back to it, and both become real with the
    record. What stands after the `yield` runs before the record, whatever the dependency's scope;
    what it raises undoes the operation. Without an operation nothing changes. On a store that has
    no transactions for others (Redis, memory) the session is the application's own, and its exit
    comes before the record too.

    Raises `TypeError` for what is no function. In an operation `StoreSetupError` where the session
    is of another database than the records, or of another kind than the store's engine.
    """
    if not callable(dependency):
        raise TypeError(f"joined: give the dependency itself, such as get_db, not {dependency!r}")
    see_sessions_made()
    watch()
    made = _wrapped(idempotency, dependency)
    made.__signature__ = _signature(dependency)  # type: ignore[attr-defined]
    setattr(made, JOINED, True)
    return made  # type: ignore[return-value]


def _wrapped(idempotency: Idempotency, dependency: Callable[..., Any]) -> Callable[..., Any]:
    code = dependency
    if not (inspect.isroutine(code) or isinstance(code, functools.partial)):
        code = type(dependency).__call__
    if inspect.isasyncgenfunction(code):
        return _async_generator(idempotency, dependency)
    if inspect.isgeneratorfunction(code):
        return _generator(idempotency, dependency)
    if inspect.iscoroutinefunction(code):
        return _coroutine(idempotency, dependency)
    return _function(idempotency, dependency)


def _signature(dependency: Callable[..., Any]) -> inspect.Signature:
    """That of the dependency, its annotations evaluated, with one more dependency."""
    try:
        signature = inspect.signature(dependency, eval_str=True)
    except NameError:  # imported for type checkers only
        signature = inspect.signature(dependency)
    parameters = list(signature.parameters.values())
    turn = inspect.Parameter(
        _TURN, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[None, Depends(_turn)]
    )
    after = [p for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD]
    before = [p for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    return signature.replace(parameters=[*before, turn, *after])


async def _turn(request: Request) -> None:
    """Wait for a thread to be left over, where sessions are plain ones.

    An async handler that uses a plain session would stop the event loop while it waits for the
    transaction, and with it the operation that it waits for: there it is begun beforehand.
    """
    driver = current.get()
    if isinstance(driver, AsyncDriver) and takes_threads(driver):
        await take_place(request.scope, Operation(driver))
        if inspect.iscoroutinefunction(request.scope.get("endpoint")):
            await run_sync(driver.begun)


def _generator(idempotency: Idempotency, dependency: Callable[..., Any]) -> Callable[..., Any]:
    manage = contextmanager(dependency)

    @functools.wraps(dependency)
    def sessions(*arguments: Any, **named: Any) -> Iterator[Any]:
        named.pop(_TURN, None)
        driver = _driver_of(idempotency)
        manager = manage(*arguments, **named)
        if driver is None:
            with manager as value:
                yield value
            return
        with _Stay(manager, driver) as stay:
            yield stay.enter(idempotency)

    return sessions


def _async_generator(
    idempotency: Idempotency, dependency: Callable[..., Any]
) -> Callable[..., Any]:
    manage = asynccontextmanager(dependency)

    @functools.wraps(dependency)
    async def sessions(*arguments: Any, **named: Any) -> AsyncIterator[Any]:
        named.pop(_TURN, None)
        driver = _driver_of(idempotency)
        manager = manage(*arguments, **named)
        if driver is None:
            async with manager as value:
                yield value
            return
        async with _AsyncStay(manager, driver) as stay:
            yield await stay.enter(idempotency)

    return sessions


def _coroutine(idempotency: Idempotency, dependency: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(dependency)
    async def session(*arguments: Any, **named: Any) -> Any:
        named.pop(_TURN, None)
        driver = operation_of(idempotency)
        if driver is None:
            return await dependency(*arguments, **named)
        with joining(driver) as found:
            value = await dependency(*arguments, **named)
        await greenlet_spawn(_join_all, value, found, driver)
        return value

    return session


def _function(idempotency: Idempotency, dependency: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(dependency)
    def session(*arguments: Any, **named: Any) -> Any:
        named.pop(_TURN, None)
        driver = operation_of(idempotency)
        if driver is None:
            return dependency(*arguments, **named)
        with joining(driver) as found:
            value = dependency(*arguments, **named)
        _join_all(value, found, driver)
        return value

    return session


def _driver_of(idempotency: Idempotency) -> Driver | None:
    """Return the operation whose record the dependency's exit has to come before."""
    driver = current.get()
    if driver is None or driver.finishing or driver.runtime.store is not idempotency.store:
        return None
    return driver


def _join_all(value: object, begun: list[Any], driver: Driver) -> None:
    found = sessions_in(value)
    if not found and not begun:
        raise StoreSetupError(
            f"joined: the dependency gives {type(value).__name__}, in which there is no session of"
            " SQLAlchemy's: have its sessionmaker join"
            " (semel.sessions.join_sessionmaker(Sessions, idempotency)), or give op.connection()"
        )
    for session in found:
        join(session, driver)


class _Stay:
    """A plain dependency's time in an operation: it is left once, before the record."""

    def __init__(self, manager: AbstractContextManager[Any], driver: Driver) -> None:
        self._manager = manager
        self._driver = driver
        self._inside = False

    def __enter__(self) -> _Stay:
        return self

    def enter(self, idempotency: Idempotency) -> Any:
        """Return what the dependency yields."""
        driver = operation_of(idempotency)
        if driver is None:
            value = self._manager.__enter__()
        else:
            with joining(driver) as found:
                value = self._manager.__enter__()
        self._inside = True
        self._driver.exits.append(self._leave)
        if driver is not None:
            _join_all(value, found, driver)
        return value

    async def _leave(self) -> None:
        if self._inside:
            self._inside = False
            await run_sync(self._manager.__exit__, None, None, None)

    def __exit__(self, *error: Any) -> bool:
        if not self._inside:
            return False
        self._inside = False
        return bool(self._manager.__exit__(*error))


class _AsyncStay:
    """An async dependency's time in an operation."""

    def __init__(self, manager: AbstractAsyncContextManager[Any], driver: Driver) -> None:
        self._manager = manager
        self._driver = driver
        self._inside = False

    async def __aenter__(self) -> _AsyncStay:
        return self

    async def enter(self, idempotency: Idempotency) -> Any:
        """Return what the dependency yields."""
        driver = operation_of(idempotency)
        if driver is None:
            value = await self._manager.__aenter__()
        else:
            with joining(driver) as found:
                value = await self._manager.__aenter__()
        self._inside = True
        self._driver.exits.append(self._leave)
        if driver is not None:
            await greenlet_spawn(_join_all, value, found, driver)
        return value

    async def _leave(self) -> None:
        if self._inside:
            self._inside = False
            await self._manager.__aexit__(None, None, None)

    async def __aexit__(self, *error: Any) -> bool:
        if not self._inside:
            return False
        self._inside = False
        return bool(await self._manager.__aexit__(*error))
