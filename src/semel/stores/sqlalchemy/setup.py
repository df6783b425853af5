"""Checks of the engine, the server and the tables, before the first command."""

from __future__ import annotations

import logging
from typing import Any, Final

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import sessionmaker

from semel.stores.base import StoreSetupError
from semel.stores.portable.dialects import DIALECTS
from semel.stores.portable.schema import PortableSchema
from semel.stores.retry import CommandRetry
from semel.stores.sqlalchemy.connection import (
    SQLAlchemyConnection,
    begin_immediate,
    paramstyle_of,
)
from semel.stores.sqlalchemy.errors import FAILURES
from semel.stores.sqlalchemy.tables import MYSQL

log = logging.getLogger("semel")

_AUTOCOMMIT: Final = (
    "an engine in AUTOCOMMIT has no transaction for your writes and the record to share: give"
    " SQLAlchemyStore one without it"
)


def check_engine(engine: Any, sessions: Any) -> None:
    """Refuse what cannot be used. Raises `StoreSetupError`."""
    if not isinstance(engine, (Engine, AsyncEngine)):
        raise StoreSetupError(
            f"engine: give create_engine(…) or create_async_engine(…), not {engine!r}"
        )
    wanted = async_sessionmaker if isinstance(engine, AsyncEngine) else sessionmaker
    if sessions is not None and not isinstance(sessions, wanted):
        raise StoreSetupError(f"sessions: give a {wanted.__name__} for this engine")
    if engine.dialect.name not in DIALECTS:
        raise StoreSetupError(
            f"{engine.dialect.name!r} is not known: PostgreSQL, MySQL, MariaDB and SQLite are"
        )
    if "AUTOCOMMIT" in _chosen_levels(engine):
        raise StoreSetupError(_AUTOCOMMIT)


def check_server(connection: Connection) -> None:
    """Refuse a server that cannot do what is needed. Raises `StoreSetupError`."""
    dialect = connection.dialect
    if "AUTOCOMMIT" in _chosen_levels(connection.engine):
        raise StoreSetupError(_AUTOCOMMIT)
    if dialect.name in MYSQL:
        version = tuple(part for part in dialect.server_version_info or () if isinstance(part, int))
        mariadb = bool(getattr(dialect, "is_mariadb", False))
        if version < ((10, 6) if mariadb else (8, 0)):
            raise StoreSetupError(
                f"{'.'.join(map(str, version))} is too old: MariaDB 10.6 or MySQL 8.0, which skip"
                " locked rows and remember after a restart which tokens were given out"
            )


def _chosen_levels(engine: Engine | AsyncEngine) -> tuple[Any, Any]:
    """The isolation levels that its maker has chosen, if any: by an option, by `create_engine`."""
    made = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    chosen = made.get_execution_options().get("isolation_level")
    return chosen, getattr(made.dialect, "_on_connect_isolation_level", None)


def warn_of_snapshots(connection: Connection, engine: Engine) -> None:
    """Log a warning where the transactions of operations refuse to write over a renewed lease."""
    dialect = engine.dialect
    chosen, on_connect = _chosen_levels(engine)
    level = chosen or on_connect or connection.dialect.default_isolation_level
    snapshots = dialect.name == "postgresql" and level in ("REPEATABLE READ", "SERIALIZABLE")
    if dialect.name in MYSQL and getattr(dialect, "is_mariadb", False):
        row = connection.exec_driver_sql("show variables like 'innodb_snapshot_isolation'")
        snapshots = level != "READ COMMITTED" and any(on == "ON" for _, on in row)
        connection.rollback()
    if snapshots:
        log.warning(
            "operations run at %s: one that takes longer than a third of its lease can never"
            " commit, for its renewal comes after its snapshot; raise Policy(lease=…), or use"
            " READ COMMITTED",
            level,
        )


def set_up_tables(connection: Connection, url: object, *, create: bool) -> None:
    """Bring the tables up to date; without `create`, check them. Raises `StoreSetupError`."""
    dialect = connection.dialect
    schema = PortableSchema(DIALECTS[dialect.name], paramstyle_of(dialect))
    tables = SQLAlchemyConnection(connection)
    if not create:
        lacking = schema.check(tables)
        connection.rollback()
        if lacking:
            raise StoreSetupError(
                f"{url!r} lacks {', '.join(lacking)}: run your Alembic migration with"
                " semel.stores.sqlalchemy.metadata in its target_metadata, or say"
                " create_tables=True"
            )
        return

    def migrate() -> None:
        try:
            current = not schema.plan(tables)
            connection.rollback()
            if current:  # no lock is taken for nothing, nor waited for
                return
            if dialect.name == "sqlite":
                begin_immediate(connection)
            schema.migrate(tables)
            connection.commit()
        except BaseException:
            connection.rollback()
            raise

    # Another process may be creating them.
    CommandRetry(lambda error: isinstance(error, FAILURES), limit=2, pause=0.16).run(migrate)
