"""Clients of one Redis server or cluster, for threads and for an event loop, with no resending."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import redis
import redis.asyncio
from redis.asyncio.cluster import RedisCluster as AsyncCluster
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import NoScriptError, RedisClusterException, RedisError, ResponseError
from redis.exceptions import TimeoutError as NoAnswer
from redis.retry import Retry

from semel.core.commands import StoreError, StoreUnavailable, StoreUnknown
from semel.stores.batching import Batcher
from semel.stores.redis.commands import SCRIPTS, ScriptCall, message

TOGETHER: Final = 64
"""Most commands in one call of a script: about a millisecond of a server with one thread."""
ERRORS: Final = (RedisError, RedisClusterException)


class RedisSettings:
    """Connection settings of one Redis server or cluster."""

    def __init__(
        self,
        url: str,
        prefix: str,
        timeout: float,
        connections: int,
        cluster: bool,
        clock: Callable[[], float] | None,
    ) -> None:
        self.url = url
        self.prefix = prefix
        self.connections = connections
        self.cluster = cluster
        self.timeout = timeout
        self.clock = clock
        self.timeouts = {"socket_timeout": timeout, "socket_connect_timeout": timeout}

    def message(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """Return the arguments of a script's evaluation; see `commands.message`."""
        now = "" if self.clock is None else repr(self.clock())
        return message(self.prefix, now, calls)

    def parts(self, calls: Sequence[ScriptCall]) -> list[Sequence[ScriptCall]]:
        """Divide calls of one script into messages: a cluster keeps keys in different places."""
        most = 1 if self.cluster else TOGETHER
        return [calls[n : n + most] for n in range(0, len(calls), most)]


class ThreadClient:
    """The client of this process's threads."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        kept: dict[str, Any] = {
            "max_connections": settings.connections,
            "retry": Retry(NoBackoff(), 0),  # nothing is sent twice behind our back
            **settings.timeouts,
        }
        self.client: Any
        if settings.cluster:
            kept |= {"connection_pool_class": redis.BlockingConnectionPool}
            self.client = RedisCluster.from_url(settings.url, timeout=settings.timeout, **kept)
        else:
            pool = redis.BlockingConnectionPool.from_url(
                settings.url, timeout=settings.timeout, **kept
            )
            self.client = redis.Redis(connection_pool=pool)

    def call(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """Call one script for all of them; return each reply. Raises `StoreError`."""
        told: list[Any] = []
        for together in self._settings.parts(calls):
            script = SCRIPTS[together[0].script]
            arguments = self._settings.message(together)
            with translated():
                try:
                    told += self.client.evalsha(script.sha, *arguments)
                except NoScriptError:  # it is kept from now on
                    told += self.client.eval(script.text, *arguments)
        for each in told:
            if isinstance(each, RedisError):
                raise translate(each) from each
        return told

    def nodes(self) -> Iterator[redis.Redis]:
        """Give a client of each server: of one, or of a cluster's primaries and replicas."""
        if not self._settings.cluster:
            yield self.client
            return
        for node in self.client.get_nodes():
            yield self.client.get_redis_connection(node)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()


class LoopClient:
    """The client of one event loop; calls of one script that are issued together go together."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: RedisSettings) -> None:
        self._loop = loop
        self._settings = settings
        self._free = asyncio.Semaphore(settings.connections)
        self._opening = asyncio.Lock()
        self._opened = False
        self._batchers: dict[str, Batcher] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._client = self._made()

    def _made(self) -> Any:
        kept: dict[str, Any] = {
            "max_connections": self._settings.connections,
            "retry": AsyncRetry(NoBackoff(), 0),
            **self._settings.timeouts,
        }
        if self._settings.cluster:
            return AsyncCluster.from_url(self._settings.url, **kept)
        return redis.asyncio.Redis.from_url(self._settings.url, **kept)

    async def ask(self, call: ScriptCall) -> Any:
        """Call a script; return its reply. Raises `StoreError`."""
        if self._settings.cluster:  # nobody waits for another's node
            told = (await self._call([call]))[0]
            if isinstance(told, StoreError):
                raise told
            return told
        batcher = self._batchers.get(call.script)
        if batcher is None:
            batcher = self._batchers[call.script] = Batcher(self._loop, self._send, patient=True)
        return await batcher.ask(call)

    async def _send(self, calls: Sequence[ScriptCall]) -> list[Any]:
        parts = self._settings.parts(calls)
        if len(parts) == 1:
            return await self._call(parts[0])
        told = await asyncio.gather(*map(self._each, parts))
        return [reply for part in told for reply in part]

    async def _each(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """As `_call`, but an error is returned for these calls, not raised to all."""
        try:
            return await self._call(calls)
        except StoreError as error:
            return [error] * len(calls)

    async def _call(self, calls: Sequence[ScriptCall]) -> list[Any]:
        script = SCRIPTS[calls[0].script]
        arguments = self._settings.message(calls)
        async with self._free, self._using() as client:
            try:
                told = await client.evalsha(script.sha, *arguments)
            except NoScriptError:
                told = await client.eval(script.text, *arguments)
        return [translate(each) if isinstance(each, RedisError) else each for each in told]

    @asynccontextmanager
    async def _using(self) -> AsyncIterator[Any]:
        """Give the client. Raises redis-py's errors as `StoreError`s.

        redis-py's client of a cluster neither opens under a crowd of commands nor recovers from a
        lost node under one: they cut each other's connections off, for good. So it is opened before
        them, and one that has lost a connection is given up for a new one.
        """
        client: Any = None
        try:
            if not self._opened:
                await self._open()
            client = self._client
            yield client
        except (*ERRORS, AttributeError, TypeError) as error:
            # Both without a name of their own: a connection that was lost just before it is used,
            # in redis-py (AttributeError) and in asyncio's transports since 3.12 (TypeError).
            lost = not isinstance(error, ResponseError)
            if lost and self._settings.cluster and client is self._client:
                self._opened = False
            raise translate(error) from error

    async def _open(self) -> None:
        async with self._opening:
            if self._opened:
                return
            if self._settings.cluster:
                task = self._loop.create_task(self._retire(self._client))
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)
                self._client = self._made()
                await self._client.initialize()
            self._opened = True

    async def _retire(self, client: Any) -> None:
        """Close a client once the commands that it had under way must have ended."""
        await asyncio.sleep(self._settings.timeout * 2)
        await client.aclose()

    async def index(self, name: str, member: str, score: float) -> None:
        """Mark a key whose request is remembered. Raises `StoreError`."""
        async with self._free, self._using() as client:
            await client.zadd(name, {member: score})

    def close(self) -> None:
        """Close the client, from any thread."""
        if self._loop.is_closed():
            return
        if self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop)
        else:
            self._loop.run_until_complete(self._client.aclose())


@contextmanager
def translated() -> Iterator[None]:
    """Raise redis-py's errors as `StoreError`s."""
    try:
        yield
    except ERRORS as error:
        raise translate(error) from error


def translate(error: Exception) -> StoreError:
    """Map a redis-py error to StoreUnavailable (certainly not executed) or StoreUnknown.

    What the server itself reports has not been executed.
    """
    text = f"Redis: {type(error).__name__}: {error}"
    if isinstance(error, (ResponseError, RedisClusterException)):
        return StoreUnavailable(text)
    if isinstance(error, Disconnected) and not isinstance(error, NoAnswer):
        if any(words in str(error) for words in _NOT_SENT):
            return StoreUnavailable(text)
        if getattr(error, "status_code", None) or "LOADING" in str(error):
            return StoreUnavailable(text)
    return StoreUnknown(text)


_NOT_SENT: Final = ("connecting", "No connection available", "Too many connections")
