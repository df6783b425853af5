"""Stores of idempotency records, and the factory that opens one by its URL."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from semel.core.commands import StoreError, StoreUnavailable, StoreUnknown
from semel.stores.base import Store, StoreSetupError, Transaction

__all__ = [
    "Store",
    "StoreError",
    "StoreSetupError",
    "StoreUnavailable",
    "StoreUnknown",
    "Transaction",
    "open_store",
]


def open_store(given: object) -> Store:
    """Return the store that is given, or that a URL names; it is not opened before `start`.

    A URL may be an object whose text it is, such as pydantic's and SQLAlchemy's. An
    SQLAlchemy engine, or a sessionmaker bound to one, gives an `SQLAlchemyStore`.

    - `memory://`, with `?max_records=1000000`: this process only, gone with it.
    - `sqlite:///relative.db`, `sqlite:////absolute.db`, with `?synchronous=full|normal`.

    - `postgresql://user@host/database`, with `?semel_pool=10&semel_timeout=10&semel_migrate=yes`
      among what libpq takes.
    - `redis://host:6379/0`, `rediss://`, with `?prefix=semel&timeout=5`; `redis+cluster://` or
      `rediss+cluster://` and any node of a cluster.

    Raises `StoreSetupError` for what names none.
    """
    if isinstance(given, str):
        return _by_url(given)
    if callable(getattr(type(given), "aexecute", None)):  # isinstance() would ask for its settings
        store: Any = given
        return store  # type: ignore[no-any-return]
    kind = type(given)
    package = kind.__module__.partition(".")[0]
    if package == "sqlalchemy":
        return _of_sqlalchemy(given)
    if package in ("pydantic", "pydantic_core", "yarl"):
        return _by_url(str(given))
    fix = "give a URL (sqlite:///shop.db, postgresql://host/database, redis://host/0) or a Store"
    if isinstance(given, os.PathLike):
        fix = f"for a file give its URL, sqlite:///{os.fspath(given)}"
    raise StoreSetupError(f"store: {kind.__module__}.{kind.__qualname__} is none; {fix}")


def _of_sqlalchemy(given: Any) -> Store:
    from sqlalchemy import URL
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
    from sqlalchemy.orm import sessionmaker

    from semel.stores.sqlalchemy.store import SQLAlchemyStore

    if isinstance(given, URL):
        return _by_url(given.render_as_string(hide_password=False))
    if isinstance(given, Engine | AsyncEngine):
        return SQLAlchemyStore(given)
    if isinstance(given, sessionmaker | async_sessionmaker):
        engine = given.kw.get("bind")
        if isinstance(engine, Engine | AsyncEngine):
            return SQLAlchemyStore(engine, sessions=given)
        raise StoreSetupError(
            "store: the sessionmaker is bound to no engine; give"
            " SQLAlchemyStore(engine, sessions=...) from semel.stores.sqlalchemy"
        )
    raise StoreSetupError(
        f"store: {type(given).__qualname__} of SQLAlchemy is none; give its engine"
    )


def _by_url(url: str) -> Store:
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme == "memory" and not parts.path.strip("/"):
        from semel.stores.memory import MemoryStore

        return MemoryStore(**_options(url, options, max_records=int))
    if parts.scheme == "sqlite":
        from semel.stores.sqlite.store import SQLiteStore

        if parts.netloc or len(parts.path) < 2:
            raise StoreSetupError(
                f"{url!r}: write sqlite:///relative.db or sqlite:////absolute/path.db"
            )
        return SQLiteStore(parts.path[1:], **_options(url, options, synchronous=str))
    if parts.scheme in ("postgresql", "postgres"):
        return _postgresql(url)
    scheme, _, kind = parts.scheme.partition("+")
    if scheme in ("redis", "rediss", "unix") and kind in ("", "cluster"):
        try:
            from semel.stores.redis.store import RedisStore
        except ImportError as error:
            raise StoreSetupError(f"{url!r} needs redis: pip install 'semel[redis]'") from error
        return RedisStore(
            urlunsplit(parts._replace(scheme=scheme, query="")),
            cluster=kind == "cluster",
            **_options(url, options, prefix=str, timeout=float),
        )
    dialect, _, driver = parts.scheme.partition("+")
    if dialect in ("mysql", "mariadb") or driver:
        make = "create_async_engine" if driver.startswith(("async", "aio")) else "create_engine"
        raise StoreSetupError(
            f"{parts.scheme}:// is a URL of SQLAlchemy: give its engine,"
            f" SQLAlchemyStore({make}(url)), from semel.stores.sqlalchemy"
        )
    raise StoreSetupError(
        f"{url!r} names no store; give memory://, sqlite:///path.db, postgresql://host/database or"
        " redis://host/0"
    )


def _postgresql(url: str) -> Store:
    """libpq's own options stay in the URL; those that begin with semel_ are the store's."""
    try:
        from semel.stores.postgres.store import PostgreSQLStore
    except ImportError as error:
        raise StoreSetupError(f"{url!r} needs psycopg: pip install 'semel[postgres]'") from error
    parts = urlsplit(url)
    options = parse_qsl(parts.query, keep_blank_values=True)
    own = {name[6:]: value for name, value in options if name.startswith("semel_")}
    rest = urlencode([(name, value) for name, value in options if not name.startswith("semel_")])
    known = _options(
        url, own, pool=int, timeout=float, migrate=lambda text: text not in ("no", "off", "0")
    )
    if "pool" in known:
        known["pool_size"] = known.pop("pool")
    return PostgreSQLStore(urlunsplit(parts._replace(query=rest)), **known)


def _options(url: str, given: dict[str, str], **known: Any) -> dict[str, Any]:
    for name in given:
        if name not in known:
            raise StoreSetupError(f"{url!r}: unknown option {name!r}; known: {', '.join(known)}")
    try:
        return {name: known[name](value) for name, value in given.items()}
    except ValueError as error:
        raise StoreSetupError(f"{url!r}: {error}") from error
