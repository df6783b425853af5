"""What a store is, and how to open one by its URL."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from semel.core.commands import Complete, Found, Open, Reply, StoreCommand


class StoreSetupError(ValueError):
    """The store cannot be used as asked; the message says why and what to do."""


class Transaction(Protocol):
    """A business transaction in the database that holds the records.

    A store whose transactions carry sessions of an ORM gives them a `session` and `async_session`.
    """

    token: int | None
    """The fencing token under which the transaction itself is the claim (`Store.open`)."""

    @property
    def connection(self) -> Any:
        """The native connection for plain code (`Any`: each store has its own kind)."""

    @property
    def async_connection(self) -> Any:
        """The same for async code: its methods are awaited."""

    def complete(self, command: Complete) -> bool:
        """Write the completion and commit, both or neither. False: fenced, rolled back."""

    async def acomplete(self, command: Complete) -> bool:
        """As `complete`, without blocking the event loop."""

    def rollback(self) -> None:
        """Undo everything. Does not block for long and never raises."""


@runtime_checkable
class Store(Protocol):
    """Keeps records. Every command is all or nothing, and durable when it returns.

    Commands raise `StoreUnavailable` where they were definitely not carried out, `StoreUnknown`
    where that cannot be told.
    """

    name: str
    """Its kind, for logs and errors."""
    atomic: bool
    """Whether it offers transactions that hold business writes."""
    lookup_first: bool
    """Whether a read costs so little that it comes before each claim."""
    expires_itself: bool
    """Whether what is due has its effect at once, without a `Sweep`."""
    opens: bool
    """Whether a transaction can be the claim itself, so that an operation commits only once."""

    def now(self) -> float:
        """Return the store's clock, in seconds. Asked only of stores that are `lookup_first`."""

    def start(self) -> None:
        """Open it and bring its tables up to date. Raises `StoreSetupError`."""

    def stop(self) -> None:
        """Close it. Commands may still be given after another `start`."""

    def execute(self, command: StoreCommand) -> Reply:
        """Carry out one command on the calling thread."""

    async def aexecute(self, command: StoreCommand) -> Reply:
        """Carry out one command without blocking the event loop."""

    def begin(self) -> Transaction:
        """Begin a transaction. Raises `StoreSetupError` where the store is not `atomic`."""

    async def abegin(self) -> Transaction:
        """As `begin`, without blocking the event loop."""

    def open(self, command: Open) -> Transaction | Found | None:
        """Begin a transaction that holds the key; see `Open`. Only where the store `opens`."""

    async def aopen(self, command: Open) -> Transaction | Found | None:
        """As `open`, without blocking the event loop."""


def open_store(url: str) -> Store:
    """Return the store that a URL names; it is not opened before `start`.

    - `memory://`, with `?max_records=1000000`: this process only, gone with it.
    - `sqlite:///relative.db`, `sqlite:////absolute.db`, with `?synchronous=full|normal`.

    - `postgresql://user@host/database`, with `?semel_pool=10&semel_timeout=10&semel_migrate=yes`
      among what libpq takes.
    - `redis://host:6379/0`, `rediss://`, with `?prefix=semel&timeout=5`; `redis+cluster://` or
      `rediss+cluster://` and any node of a cluster.

    Raises `StoreSetupError` for a URL that names none.
    """
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme == "memory" and not parts.path.strip("/"):
        from semel.stores.memory import MemoryStore

        return MemoryStore(**_options(url, options, max_records=int))
    if parts.scheme == "sqlite":
        from semel.stores.sqlite import SQLiteStore

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
            from semel.stores.redis import RedisStore
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
        from semel.stores.postgres import PostgreSQLStore
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
