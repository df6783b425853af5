"""Records in Redis or Valkey: fast, shared by any number of servers, and never atomic with effects.

One script a command, fenced by the token, by the server's clock. What Redis promises of a write is
all that is promised here: with `appendfsync everysec` a crash loses the last second, a failover
what had not been copied, and a key that is lost runs again.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as NoAnswer
from redis.retry import Retry

from semel.after_fork import call_after_fork
from semel.core.commands import (
    Abandoned,
    Claim,
    Claimed,
    Complete,
    ForgetStep,
    Found,
    Lookup,
    Open,
    Park,
    Recorded,
    RecordStep,
    Release,
    Remembered,
    Renew,
    Reply,
    Settle,
    Steps,
    StoreCommand,
    StoreError,
    StoreUnavailable,
    StoreUnknown,
    Sweep,
    Takeover,
)
from semel.core.record import Record, State, decode_response, encode_response
from semel.stores import StoreSetupError, lua
from semel.stores.lanes import Lane

log = logging.getLogger("semel")

OLDEST: Final = 6
CHECK_EVERY: Final = 30.0
"""Seconds between looks at whether the server has been told to evict."""

_UNMARK: Final = """
local at = redis.call('ZSCORE', KEYS[1], ARGV[1])
if at and tonumber(at) <= tonumber(ARGV[2]) then redis.call('ZREM', KEYS[1], ARGV[1]) end
"""

Call = tuple[str, bytes, tuple[Any, ...]]
"""A script's name, the record's key, and its arguments."""


class _Script:
    def __init__(self, name: str) -> None:
        self.text = lua.load(name)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


SCRIPTS: Final = {
    name: _Script(name)
    for name in (
        *("lookup", "claim", "takeover", "complete", "release", "park", "renew", "settle"),
        *("remembered", "steps", "record_step", "forget_step"),
    )
}


class RedisStore:
    """`redis://host:6379/0`, `rediss://`, `unix://`; Redis 6 or newer, or Valkey.

    `prefix`: what its keys begin with. `timeout`: seconds for a connection and for an answer.
    `connections`: of this process's threads, and of each event loop. `clock` is for tests; without
    it the server's own clock counts.

    Refuses a server that evicts: a key that is evicted would run again.
    """

    name = "redis"
    atomic = False
    lookup_first = False
    opens = False
    expires_itself = True

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "semel",
        timeout: float = 5.0,
        connections: int = 32,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._url = url
        self._prefix = prefix
        self._timeout = timeout
        self._connections = connections
        self._clock = clock
        self._refusal: str | None = None
        self._checked = 0.0
        self._forget()
        call_after_fork(self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._sync: redis.Redis | None = None
        self._loops: dict[asyncio.AbstractEventLoop, _Loop] = {}

    def now(self) -> float:
        """Return the server's clock."""
        seconds, micros = self._client().time()
        return float(seconds) + micros / 1e6

    # --- opening and closing ---------------------------------------------------------------

    def start(self) -> None:
        """Connect and check the server. Raises `StoreSetupError`."""
        try:
            self._check(self._client())
        except RedisError as error:
            raise StoreSetupError(f"{self.name}: {error}") from error

    def _check(self, client: redis.Redis) -> None:
        info: Any = client.info("server")
        version = str(info.get("valkey_version") or info.get("redis_version"))
        if int(version.split(".")[0]) < OLDEST:
            raise StoreSetupError(f"Redis {version} is too old; {OLDEST} or newer is needed")
        refusal = self._eviction(client)
        if refusal is not None:
            raise StoreSetupError(refusal)
        self._refusal = None
        try:
            settings: Any = client.config_get("append*")
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

    def _eviction(self, client: redis.Redis) -> str | None:
        try:
            policy: Any = client.config_get("maxmemory-policy")
        except ResponseError:
            return None  # not allowed to ask
        name = policy.get("maxmemory-policy", "noeviction")
        if name == "noeviction":
            return None
        return (
            f"Redis evicts keys (maxmemory-policy {name}), and an evicted key would run again: set"
            " maxmemory-policy noeviction, or give Semel a server of its own"
        )

    def stop(self) -> None:
        """Close the connections."""
        with self._lock:
            client, self._sync = self._sync, None
            loops, self._loops = self._loops, {}
        if client is not None:
            client.close()
        for each in loops.values():
            each.close()

    def _client(self) -> redis.Redis:
        client = self._sync
        if client is None:
            with self._lock:
                if self._sync is None:
                    pool = redis.BlockingConnectionPool.from_url(
                        self._url,
                        max_connections=self._connections,
                        timeout=self._timeout,
                        socket_timeout=self._timeout,
                        socket_connect_timeout=self._timeout,
                        retry=Retry(NoBackoff(), 0),  # nothing is sent twice behind our back
                    )
                    self._sync = redis.Redis(connection_pool=pool)
                client = self._sync
        return client

    def _loop(self) -> _Loop:
        loop = asyncio.get_running_loop()
        found = self._loops.get(loop)
        if found is None:
            with self._lock:
                for gone in [other for other in self._loops if other.is_closed()]:
                    del self._loops[gone]
                client = redis.asyncio.Redis.from_url(
                    self._url,
                    max_connections=self._connections,
                    socket_timeout=self._timeout,
                    socket_connect_timeout=self._timeout,
                    retry=AsyncRetry(NoBackoff(), 0),
                )
                found = self._loops[loop] = _Loop(loop, client, self._keys)
        return found

    # --- commands --------------------------------------------------------------------------

    def execute(self, command: StoreCommand) -> Reply:
        """Carry out one command."""
        self._require_kept()
        client = self._client()
        if isinstance(command, Sweep):
            return self._swept(client)
        if isinstance(command, Abandoned):
            return self._abandoned(command, client)
        if isinstance(command, Claim) and command.request is not None:
            mark = {command.key.hex(): self._lapse(command)}
            self._guarded(lambda: client.zadd(self._index, mark))
        told = [self._call(client, call) for call in self._calls(command)]
        return _reply(command, told)

    async def aexecute(self, command: StoreCommand) -> Reply:
        """Carry out one command; those of a moment go in one message."""
        self._require_kept()
        if isinstance(command, (Sweep, Abandoned)):
            return await asyncio.to_thread(self.execute, command)
        loop = self._loop()
        if isinstance(command, Claim) and command.request is not None:
            await loop.index(self._index, command.key.hex(), self._lapse(command))
        calls = self._calls(command)
        if len(calls) == 1:
            return _reply(command, [await loop.lane.ask(calls[0])])
        return _reply(command, await asyncio.gather(*map(loop.lane.ask, calls)))

    def _require_kept(self) -> None:
        if self._refusal is not None:
            raise StoreUnavailable(self._refusal)

    @property
    def _index(self) -> str:
        """The keys whose requests are remembered, by the end of their leases: a hint, no more.

        It may lie in another part of a cluster, so it is written before the claim and checked
        against the record when it is read.
        """
        return f"{self._prefix}:remembered"

    def _lapse(self, command: Claim) -> float:
        return (self._clock or time.time)() + command.lease

    def _keys(self, key: bytes) -> list[str]:
        name = f"{self._prefix}:{{{key.hex()}}}"
        return [name, f"{name}:answer", f"{name}:steps", f"{name}:request"]

    def _calls(self, command: StoreCommand) -> list[Call]:
        """Return the calls of scripts that carry a command out."""
        now = "" if self._clock is None else repr(self._clock())
        match command:
            case Lookup(key):
                return [("lookup", key, (now,))]
            case Claim(key, fingerprint, lease, owner, request):
                return [("claim", key, (now, owner, fingerprint, lease, _optional(request)))]
            case Takeover(key, token, fingerprint, lease, owner, expired, request):
                rest = (fingerprint, lease, owner, int(expired), _optional(request))
                return [("takeover", key, (now, token, *rest))]
            case Complete(key, token, response, expires, tombstone):
                return [
                    ("complete", key, (now, token, encode_response(response), expires, tombstone))
                ]
            case Release(key, token):
                return [("release", key, (now, token))]
            case Park(key, token, reason, lapsed):
                return [("park", key, (now, token, reason, int(lapsed)))]
            case Renew(claims, lease):
                return [("renew", key, (now, token, lease)) for key, token in claims]
            case Settle(key, token, response, expires, tombstone):
                answer = None if response is None else encode_response(response)
                return [("settle", key, (now, token, _optional(answer), expires, tombstone))]
            case Steps(key):
                return [("steps", key, (now,))]
            case RecordStep(key, token, name, result, keep):
                return [("record_step", key, (now, token, name, _optional(result), keep))]
            case ForgetStep(key, token, name):
                return [("forget_step", key, (now, token, name))]
        raise AssertionError(command)

    def _call(self, client: redis.Redis, call: Call) -> Any:
        name, key, arguments = call
        script = SCRIPTS[name]
        keys = self._keys(key)

        def send() -> Any:
            try:
                return client.evalsha(script.sha, 4, *keys, *arguments)
            except NoScriptError:
                return client.eval(script.text, 4, *keys, *arguments)  # and it is kept from now on

        return self._guarded(send)

    def _guarded(self, send: Callable[[], Any]) -> Any:
        try:
            return send()
        except RedisError as error:
            raise translate(error) from error

    def _swept(self, client: redis.Redis) -> int:
        """The server expires by itself; look whether it still keeps what it should."""
        if time.monotonic() - self._checked > CHECK_EVERY or self._refusal is not None:
            self._checked = time.monotonic()
            self._refusal = self._guarded(lambda: self._eviction(client))
            if self._refusal is not None:
                log.error("%s", self._refusal)
        return 0

    def check(self) -> None:
        """Look at once whether the server evicts; commands are refused while it does."""
        self._checked = 0.0
        self._refusal = self._guarded(lambda: self._eviction(self._client()))

    def _abandoned(self, command: Abandoned, client: redis.Redis) -> tuple[Remembered, ...]:
        now = (self._clock or self.now)()
        before = now - command.idle
        names: Any = self._guarded(
            lambda: client.zrangebyscore(self._index, "-inf", before, 0, command.limit * 4)
        )
        abandoned: list[Remembered] = []
        gone: list[bytes] = []
        later: dict[bytes, float] = {}
        for name in names:
            key = bytes.fromhex(name.decode())
            told = self._call(client, ("remembered", key, ("" if self._clock is None else now,)))
            if not told:
                gone.append(name)
                continue
            token, attempt, request, lease, _ = told
            if float(lease) > before:
                later[name] = float(lease)
                continue
            abandoned.append(Remembered(key, int(token), int(attempt), request))
        if later:
            self._guarded(lambda: client.zadd(self._index, later, xx=True))
        for name in gone:
            # Not where it has been claimed anew meanwhile: its mark is newer then.
            unmark = functools.partial(client.eval, _UNMARK, 1, self._index, name, str(before))
            self._guarded(unmark)
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


class _Loop:
    """The client of one event loop, and the lane that gathers its commands."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: redis.asyncio.Redis,
        keys: Callable[[bytes], list[str]],
    ) -> None:
        self._loop = loop
        self._client = client
        self._keys = keys
        self.lane = Lane(loop, self._send, patient=True)

    async def _send(self, calls: Sequence[Call]) -> list[Any]:
        try:
            told = await self._all(calls, by_name=True)
            missing = [n for n, reply in enumerate(told) if isinstance(reply, NoScriptError)]
            if missing:  # the server has been restarted: its scripts went, and nothing was done
                again = await self._all([calls[n] for n in missing], by_name=False)
                for n, reply in zip(missing, again, strict=True):
                    told[n] = reply
        except RedisError as error:
            raise translate(error) from error
        return [translate(reply) if isinstance(reply, RedisError) else reply for reply in told]

    async def _all(self, calls: Sequence[Call], *, by_name: bool) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipe:
            for name, key, arguments in calls:
                script = SCRIPTS[name]
                if by_name:
                    pipe.evalsha(script.sha, 4, *self._keys(key), *arguments)
                else:
                    pipe.eval(script.text, 4, *self._keys(key), *arguments)
            return list(await pipe.execute(raise_on_error=False))

    async def index(self, name: str, member: str, score: float) -> None:
        """Mark a key whose request is remembered. Raises `StoreError`."""
        try:
            await self._client.zadd(name, {member: score})
        except RedisError as error:
            raise translate(error) from error

    def close(self) -> None:
        """Close the client, from any thread."""
        if self._loop.is_closed():
            return
        if self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop)
        else:
            self._loop.run_until_complete(self._client.aclose())


def translate(error: RedisError) -> StoreError:
    """Say what an error means for what was asked: what the server answers has not been done."""
    text = f"Redis: {type(error).__name__}: {error}"
    if isinstance(error, ResponseError):
        return StoreUnavailable(text)
    if isinstance(error, Disconnected) and not isinstance(error, NoAnswer):
        if "connecting" in str(error) or "No connection available" in str(error):
            return StoreUnavailable(text)  # nothing was sent
        if getattr(error, "status_code", None) or "LOADING" in str(error):
            return StoreUnavailable(text)
    return StoreUnknown(text)


def _optional(data: bytes | None) -> bytes:
    """A script cannot be given nothing: a mark tells empty bytes from none."""
    return b"" if data is None else b"=" + data


def _reply(command: StoreCommand, told: list[Any]) -> Reply:
    first = told[0] if told else None
    match command:
        case Lookup(key):
            return _found(key, first) if first else None
        case Claim(key) | Takeover(key):
            if not first:
                return None
            return Claimed(int(first[0]), int(first[1])) if len(first) == 2 else _found(key, first)
        case Renew(claims):
            return frozenset(t for (_, t), kept in zip(claims, told, strict=True) if not kept)
        case Steps():
            pairs = first or []
            return {pairs[n].decode(): pairs[n + 1] for n in range(0, len(pairs), 2)}
        case RecordStep():
            return Recorded(first[0] if first else None) if first is not None else None
    return bool(first)


def _found(key: bytes, told: list[Any]) -> Found:
    state, token, owner, attempt, fingerprint, lease, due, purge, reason, answer, now = told
    kind = State(int(state))
    record = Record(
        key,
        kind,
        int(token),
        owner,
        int(attempt),
        fingerprint,
        float(lease),
        float(due or 0),
        float(purge or 0),
        decode_response(answer) if answer is not None else None,
        reason.decode() if reason is not None and kind is State.PARKED else None,
    )
    return Found(record, float(now))
