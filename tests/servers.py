"""The real servers of this test process, each started when it is first asked for.

Where a server's programs are missing, the test that asks for it is skipped (`tests/conftest.py`).
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from functools import cache
from typing import TypeVar

from semel.testing.servers import (
    S3,
    MariaDB,
    Nats,
    PgBouncer,
    PostgreSQL,
    Server,
    Valkey,
    ValkeyCluster,
)

S = TypeVar("S", bound=Server | ValkeyCluster)


def _started(make: Callable[[], S]) -> S:
    server = make()
    atexit.register(server.close)
    server.start()
    return server


@cache
def postgresql() -> PostgreSQL:
    return _started(PostgreSQL)


@cache
def pgbouncer() -> PgBouncer:
    return _started(lambda: PgBouncer(postgresql()))


@cache
def valkey() -> Valkey:
    return _started(Valkey)


@cache
def valkey_cluster() -> ValkeyCluster:
    return _started(ValkeyCluster)


@cache
def mariadb() -> MariaDB:
    return _started(MariaDB)


@cache
def nats() -> Nats:
    return _started(Nats)


@cache
def s3() -> S3:
    return _started(S3)
