"""The store of records in Redis or Valkey: shared by all servers, never atomic with effects.

One script a command, fenced by the token, by the server's clock. What Redis promises of a write is
all that is promised here: with `appendfsync everysec` a crash loses the last second, a failover
what had not been copied, and a key that is lost runs again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

from redis.exceptions import ResponseError

from semel.after_fork import call_after_fork
from semel.core.commands import (
    Abandoned,
    Claim,
    Open,
    Remembered,
    Reply,
    StoreCommand,
    StoreError,
    StoreUnavailable,
    Sweep,
)
from semel.stores.base import StoreSetupError
from semel.stores.per_loop import PerLoop
from semel.stores.redis.clients import LoopClient, RedisSettings, ThreadClient, translated
from semel.stores.redis.commands import ScriptCall, calls, reply

log = logging.getLogger("semel")

OLDEST: Final = 6
CHECK_EVERY: Final = 30.0
"""Seconds between looks at whether the server has been told to evict."""

_UNMARK: Final = """
local at = redis.call('ZSCORE', KEYS[1], ARGV[1])
if at and tonumber(at) <= tonumber(ARGV[2]) then redis.call('ZREM', KEYS[1], ARGV[1]) end
"""


class RedisStore:
    """`redis://host:6379/0`, `rediss://`, `unix://`; Redis 6 or newer, or Valkey.

    `prefix`: what its keys begin with. `timeout`: seconds for a connection and for a reply.
    `connections`: of this process's threads, and of each event loop; to each server of a cluster.
    `cluster`: the URL names one node of a Redis Cluster (`redis+cluster://host:6379`); the others
    are found through it. `clock` is for tests; without it the server's own clock counts.

    Refuses a server that evicts: a key that is evicted would run again.
    """

    name = "redis"
    atomic = False
    lookup_first = False
    opens = False
    expires_itself = True
    file = None

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "semel",
        timeout: float = 5.0,
        connections: int = 32,
        cluster: bool = False,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._settings = RedisSettings(url, prefix, timeout, connections, cluster, clock)
        self._clock = clock
        self._index = f"{prefix}:remembered"
        """The keys whose requests are remembered, by the end of their leases: a hint, no more.

        It may lie in another part of a cluster, so it is written before the claim and checked
        against the record when it is read.
        """
        self._refusal: str | None = None
        self._checked = 0.0
        self._forget()
        call_after_fork(self._forget)

    def for_a_thread(self) -> RedisStore:
        """Return a store of the same server; see `store_for_a_thread`."""
        known = self._settings
        return RedisStore(
            known.url,
            prefix=known.prefix,
            timeout=known.timeout,
            cluster=known.cluster,
            clock=self._clock,
        )

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._sync: ThreadClient | None = None
        self._loops = PerLoop(lambda loop: LoopClient(loop, self._settings))

    def now(self) -> float:
        """Return the server's clock."""
        node = next(self._threads().nodes())
        with translated():
            seconds, micros = node.time()
        return float(seconds) + micros / 1e6

    # --- opening and closing ---------------------------------------------------------------

    def start(self) -> None:
        """Connect and check every server. Raises `StoreSetupError`."""
        try:
            for node in self._threads().nodes():
                with translated():
                    self._check(node)
        except StoreError as error:
            raise StoreSetupError(f"{self.name}: {error}") from error
        self._refusal = None

    def _check(self, node: Any) -> None:
        info: Any = node.info("server")
        version = str(info.get("valkey_version") or info.get("redis_version"))
        if int(version.split(".")[0]) < OLDEST:
            raise StoreSetupError(f"Redis {version} is too old; {OLDEST} or newer is needed")
        if node.info("cluster").get("cluster_enabled") and not self._settings.cluster:
            raise StoreSetupError("the server is part of a Redis Cluster: use redis+cluster://")
        refusal = _eviction(node)
        if refusal is not None:
            raise StoreSetupError(refusal)
        try:
            settings: Any = node.config_get("append*")
        except ResponseError:
            log.warning("Redis: CONFIG is not allowed, so what it promises of a write is not known")
            return
        kept = "nothing survives a crash of the server"
        if settings.get("appendonly") == "yes":
            kept = {
                "always": "every write survives a crash of the server",
                "everysec": "a crash of the server may lose the last second",
            }.get(settings["appendfsync"], "a crash of the server may lose what was not written")
        log.info("Redis %s: %s; a failover may lose what was not copied", version, kept)

    def stop(self) -> None:
        """Close the connections."""
        with self._lock:
            threads, self._sync = self._sync, None
        if threads is not None:
            threads.close()
        for each in self._loops.pop_all().values():
            each.close()

    def _threads(self) -> ThreadClient:
        threads = self._sync
        if threads is None:
            with self._lock, translated():  # a cluster is looked at as soon as it is named
                if self._sync is None:
                    self._sync = ThreadClient(self._settings)
                threads = self._sync
        return threads

    # --- commands --------------------------------------------------------------------------

    def execute(self, command: StoreCommand) -> Reply:
        """Carry out one command."""
        if isinstance(command, Sweep):
            return self._swept()
        self._require_kept()
        threads = self._threads()
        if isinstance(command, Abandoned):
            return self._abandoned(command, threads)
        if isinstance(command, Claim) and command.request is not None:
            with translated():
                threads.client.zadd(self._index, {command.key.hex(): self._lapse(command)})
        return reply(command, threads.call(calls(command)))

    async def aexecute(self, command: StoreCommand) -> Reply:
        """Carry out one command; those of a moment go in one message."""
        if isinstance(command, (Sweep, Abandoned)):
            return await asyncio.to_thread(self.execute, command)
        self._require_kept()
        client = self._loops.get()
        if isinstance(command, Claim) and command.request is not None:
            await client.index(self._index, command.key.hex(), self._lapse(command))
        todo = calls(command)
        if len(todo) == 1:
            return reply(command, [await client.ask(todo[0])])
        return reply(command, await asyncio.gather(*map(client.ask, todo)))

    def _require_kept(self) -> None:
        if self._refusal is not None:
            raise StoreUnavailable(self._refusal)

    def _lapse(self, command: Claim) -> float:
        return (self._clock or time.time)() + command.lease

    def _swept(self) -> int:
        """The server expires by itself; look whether it still keeps what it should."""
        if time.monotonic() - self._checked > CHECK_EVERY:
            self.check()
            if self._refusal is not None:
                log.error("%s", self._refusal)
        return 0

    def check(self) -> None:
        """Look at once whether a server evicts; commands are refused while one does."""
        self._checked = time.monotonic()
        with translated():
            found = [_eviction(node) for node in self._threads().nodes()]
        self._refusal = next((refusal for refusal in found if refusal is not None), None)

    def _abandoned(self, command: Abandoned, threads: ThreadClient) -> tuple[Remembered, ...]:
        before = (self._clock or self.now)() - command.idle
        client = threads.client
        with translated():
            names: Any = client.zrangebyscore(self._index, "-inf", before, 0, command.limit * 4)
        abandoned: list[Remembered] = []
        gone: list[bytes] = []
        later: dict[bytes, float] = {}
        for name in names:
            key = bytes.fromhex(name.decode())
            told = threads.call([ScriptCall("remembered", key)])[0]
            if not told:
                gone.append(name)
                continue
            token, attempt, request, lease, now = told
            if float(lease) > float(now) - command.idle:
                later[name] = float(lease)
                continue
            abandoned.append(Remembered(key, int(token), int(attempt), request))
        with translated():
            if later:
                client.zadd(self._index, later, xx=True)
            for name in gone:
                # Not where it has been claimed anew meanwhile: its mark is newer then.
                client.eval(_UNMARK, 1, self._index, name, str(before))
        return tuple(abandoned[: command.limit])

    # --- atomic ----------------------------------------------------------------------------

    def begin(self) -> NoReturn:
        """Refuse: your writes are in another database."""
        raise StoreSetupError(
            "redis:// shares no transaction with your writes: use postgresql:// or sqlite:/// for"
            " op.connection(), or op.step() for what can be asked for twice under one key"
        )

    async def abegin(self) -> NoReturn:
        """Refuse, as `begin` does."""
        self.begin()

    def open(self, command: Open) -> NoReturn:
        """Refuse, as `begin` does."""
        self.begin()

    async def aopen(self, command: Open) -> NoReturn:
        """Refuse, as `begin` does."""
        self.begin()


def _eviction(node: Any) -> str | None:
    """Say why a server cannot be trusted with keys, or None."""
    try:
        policy: Any = node.config_get("maxmemory-policy")
    except ResponseError:
        return None  # not allowed to ask
    name = policy.get("maxmemory-policy", "noeviction")
    if name == "noeviction":
        return None
    return (
        f"Redis evicts keys (maxmemory-policy {name}), and an evicted key would run again: set"
        " maxmemory-policy noeviction, or give Semel a server of its own"
    )
