"""Tools for the tests of a service that uses Semel, and of a store.

- Servers of the test's own, on free ports, that can be crashed, paused and started again:
  `with running(PostgreSQL) as server`. A program that is not here raises `ProgramMissing`, which
  says how to install it.
- `Proxy`: a network that delays, loses and cuts.
- `in_memory` and `joined`: a service's operations in memory, or in a test's own transaction.
- `semel.testing.pytest_plugin`: `pytest --semel-twice`.
- `semel.testing.store_contract`: the tests that every store passes, for one of your own. It alone
  needs `pytest` and `hypothesis`.
- `semel.failpoints`: named points at which a process is killed, stopped or delayed.
"""

from semel.testing.joined import joined
from semel.testing.programs import ProgramMissing
from semel.testing.proxy import Proxy
from semel.testing.servers import (
    S3,
    MariaDB,
    Nats,
    PgBouncer,
    PostgreSQL,
    Server,
    Standby,
    Valkey,
    ValkeyCluster,
    free_port,
    running,
)
from semel.testing.stand_in import in_memory

__all__ = [
    "S3",
    "MariaDB",
    "Nats",
    "PgBouncer",
    "PostgreSQL",
    "ProgramMissing",
    "Proxy",
    "Server",
    "Standby",
    "Valkey",
    "ValkeyCluster",
    "free_port",
    "in_memory",
    "joined",
    "running",
]
