"""`Idempotency`: one object for a service, with its store, its policies and its background work."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from semel.after_fork import call_after_fork
from semel.applications import Application, Applications
from semel.core import problems
from semel.core.commands import Found, Lookup, Settle, StoreError, Sweep
from semel.core.policy import Policy, RequestView
from semel.core.record import Response, State
from semel.core.routes import Routes
from semel.issuer import GRACE, Issuer
from semel.runtime import servers
from semel.runtime.drivers import Runtime
from semel.runtime.operations import Operations
from semel.runtime.outcomes import Outcomes
from semel.stores import open_store
from semel.stores.base import Store, StoreSetupError

__all__ = ["Idempotency", "Scope"]

log = logging.getLogger("semel")

SWEEP_BATCH = 1000
Handler = TypeVar("Handler", bound=Callable[..., Any])


Scope = Callable[[RequestView], str]


class Idempotency:
    """Idempotency for one service.

    - `store`: a URL (`sqlite:///shop.db`, `memory://`), a `Store`, or an SQLAlchemy engine. None:
      it comes later, with `init(store)`, before the first request.
    - `policy`: the rules of every route that has none of its own.
    - `routes`: rules by pattern, `{"POST /charges": Policy(required=True), "/hooks/{name}": None}`;
      None leaves a route alone.
    - `scope`: whose key it is: a function from the request to a name that only the server can know,
      such as the account of the *verified* caller. Without it: the framework's authenticated user,
      else a hash of the credentials (`Authorization`, `X-API-Key` and their kin), else `anonymous`.
      Name it where tokens rotate: a retry under a refreshed token is still the same caller, and the
      hash of its token would not say so.
    - `credentials`: further request headers that tell callers apart, beside `Authorization`,
      `X-API-Key` and their kin: the one in which your proxy names the client certificate, say.
    - `issuer`: signs keys for clients to use, and checks them (`semel.Issuer`). With one, a key
      that claims to be issued is accepted only if it is; see `Policy.required`, `Policy.next_key`.
    - `session_cookie`: the cookie that carries the credentials where `Authorization` does not.
    - `problem_base`: where your own documentation of the problem types lives.
    - `complete_every`: how often operations that a crash has abandoned are looked for, where a
      policy remembers requests; None leaves it to the middleware's `complete_abandoned()`.
    - `max_waiting_threads`: how many of a WSGI server's threads may wait for the first requests of
      their keys, in each process; the other repeats get 409 `in-flight` at once. None (the
      default): half of the server's threads, and none where it has one thread only, so that the
      others keep serving. On an event loop waiting costs no thread.
    - `drain`: how long a shutdown waits for operations whose clients have gone; what still runs
      then is cancelled. 10 s is what `docker stop` leaves before it kills.
    - `sweep_every`: how often expired records are cleared away; None leaves it to `sweep()`.

    Raises `StoreSetupError` for a store that cannot be used, or cannot keep what a policy promises,
    `ValueError` for a number or a duration below 0.
    """

    def __init__(
        self,
        store: object = None,
        *,
        policy: Policy | None = None,
        routes: Mapping[str, Policy | None] | None = None,
        scope: Scope | None = None,
        issuer: Issuer | None = None,
        session_cookie: str | None = None,
        credentials: Sequence[str] = (),
        problem_base: str = problems.BASE,
        max_waiting_threads: int | None = None,
        drain: timedelta = timedelta(seconds=10),
        sweep_every: timedelta | None = timedelta(seconds=60),
        complete_every: timedelta | None = timedelta(seconds=5),
    ) -> None:
        if max_waiting_threads is not None and max_waiting_threads < 0:
            raise ValueError("max_waiting_threads: give a whole number of 0 or more, or None")
        if drain < timedelta():
            raise ValueError("drain: give a timedelta of 0 or more")
        self.routes = Routes(policy or Policy(), routes or {})
        self.scope = scope
        self.issuer = issuer
        self.session_cookie = session_cookie
        if isinstance(credentials, str):
            raise TypeError(f"credentials: give a list of header names, [{credentials!r}]")
        self.credentials = tuple(name.lower() for name in credentials)
        self.problem_base = problem_base
        self.outcomes = Outcomes()
        """Told of every outcome; `outcomes.observers` may be added to."""
        self.applications = Applications()
        """What the adapters serve, and the marks that `route` has made; for adapters."""
        self.drain = drain
        self._max_waiting_threads = max_waiting_threads
        self.started = False
        self.complete_every = complete_every
        self._sweep_every = sweep_every
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._sweeper: threading.Thread | None = None
        if store is not None:
            self.init(store)
        call_after_fork(self._forked)

    store: Store
    runtime: Runtime
    operations: Operations

    def __getattr__(self, name: str) -> Any:
        """Say what is missing before `init`."""
        if name in ("store", "runtime", "operations"):
            raise StoreSetupError(
                "this Idempotency has no store yet: give it one, Idempotency(store), or call"
                " init(store) before the application starts"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def init(self, store: object) -> None:
        """Give the store, where the object was made before it was known, as in a factory.

        Called once more, as by a factory that a suite calls for each test, it stops what was there.
        Raises `StoreSetupError` as the constructor does, and while an operation runs.
        """
        if self.started:
            if self.runtime.waiters.busy:
                raise StoreSetupError("init: operations are running on the store that is there")
            self.stop()
        self.store = open_store(store)
        self._make_runtime()
        self._check()

    def _make_runtime(self) -> None:
        self.runtime = Runtime(self.store, self.outcomes, self._max_waiting_threads)
        self.operations = Operations(self.runtime)

    def _check(self) -> None:
        for pattern, policy in [
            ("every route", self.routes.default),
            *self.routes.described.items(),
        ]:
            if policy is None:
                continue
            if self.issuer is None and (policy.required == "issued" or policy.next_key):
                raise StoreSetupError(
                    f'{pattern}: required="issued" and next_key need somebody who signs keys: give'
                    " Idempotency(issuer=Issuer(secret))"
                )
            if policy.guarantee == "atomic" and not self.store.atomic:
                raise StoreSetupError(
                    f'{pattern}: guarantee="atomic" cannot be kept on {self.store.name}://, which'
                    " shares no transaction with your writes; use sqlite:///"
                )

    def start(self) -> None:
        """Open the store and start clearing expired records away. A second call does nothing."""
        with self._lock:
            if self.started:
                return
            self._check()
            self.meet()
            self.store.start()
            self._stopping.clear()
            if self._sweep_every is not None:
                self._sweeper = threading.Thread(
                    target=self._sweep_on, name="semel-sweeper", daemon=True
                )
                self._sweeper.start()
            self.started = True
        for line in self.promises():
            log.info("%s", line)
        self._warn_of_greenlets()

    def _warn_of_greenlets(self) -> None:
        """Say what does not work where greenlets stand in for threads."""
        library = servers.greenlets()
        if library is None:
            return
        if type(self._lock) is not type(threading.Lock()):
            log.warning(
                "%s has patched threads after Semel was set up: a lock may block every request;"
                " patch first, and do not preload the application",
                library,
            )
        if library != "gevent" or getattr(self.store, "for_a_thread", None) is None:
            log.warning(
                "under %s, leases on %s are not renewed while a handler computes without waiting:"
                " set Policy(lease=…) longer than any computation, or serve with threads"
                " (gunicorn -k gthread)",
                library,
                self.store.name,
            )

    def serve(self, application: Application) -> None:
        """Take note of an application that an adapter serves, before it serves it; for adapters."""
        self.applications.serve(application)

    def meet(self) -> None:
        """Look at the routes of the applications, where one or a mark is new; for adapters.

        `start()` does. Raises `PolicyError` for a mark that met no route, and for a key from the
        content of requests whose callers nothing tells apart.
        """
        told_apart = self.scope or self.session_cookie or self.credentials
        self.applications.meet(self.routes, identified=bool(told_apart))

    def ready(self) -> bool:
        """Start, where that has not been done. False: it cannot be, the log says why."""
        if not self.started:
            try:
                self.start()
            except StoreSetupError:
                log.exception("the store cannot be used")
                return False
        return True

    def stop(self) -> None:
        """Stop what runs in the background and close the store."""
        with self._lock:
            if not self.started:
                return
            self.started = False
            self._stopping.set()
            self.runtime.leases.stop()
            if self._sweeper is not None:
                self._sweeper.join(5)
            self.store.stop()

    def settle(
        self, key_hash: bytes, response: Response | None = None, *, policy: Policy | None = None
    ) -> bool:
        """Say what became of a parked operation; return whether it was parked.

        With a response it is completed, and repeats get that. Without one nothing had happened: the
        key is free, and a retry runs anew. Raises `StoreError`.
        """
        found = self.store.execute(Lookup(key_hash))
        if not isinstance(found, Found) or found.record.state is not State.PARKED:
            return False
        seconds = (policy or self.routes.default).seconds
        expires, tombstone = seconds.expires, seconds.tombstone
        if self.issuer is not None:  # it may be the record of an issued key, and has to outlast it
            expires = max(expires, self.issuer.lifetime.total_seconds())
            tombstone = max(tombstone, GRACE.total_seconds())
        command = Settle(key_hash, found.record.token, response, expires, tombstone)
        return self.store.execute(command) is True

    def _forked(self) -> None:
        """In a child process the threads are gone: start anew when asked."""
        if "store" in self.__dict__:
            self._make_runtime()
        self.started = False
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def promises(self) -> list[str]:
        """Return, a line each, what every route promises. Logged once at the start."""
        routes = [("other routes" if self.routes.described else "every route", self.routes.default)]
        return [
            f"{pattern}: {_promise(policy, self.store)}"
            for pattern, policy in [*self.routes.described.items(), *routes]
        ]

    def sweep(self, limit: int = SWEEP_BATCH) -> int:
        """Clear expired answers and old tombstones away until none is due; return how many.

        `limit` records at a time, with a pause as long as each took: half of the time is left to
        requests. Raises `StoreError`.
        """
        total = 0
        while True:
            started = time.monotonic()
            changed = self.store.execute(Sweep(limit))
            assert isinstance(changed, int)
            total += changed
            if not changed or self._stopping.wait(time.monotonic() - started):
                return total

    def _sweep_on(self) -> None:
        assert self._sweep_every is not None
        stopping = self._stopping
        while not stopping.wait(self._sweep_every.total_seconds()):
            try:
                self.sweep()
            except StoreError as error:
                log.warning("could not clear expired records away: %s", error)
            except Exception:
                log.exception("could not clear expired records away")

    def route(self, **rules: Any) -> Callable[[Handler], Handler]:
        """Give one handler rules of its own, the service's where not said otherwise.

            @app.post("/charges")
            @idempotency.route(required=True, guarantee="atomic")
            async def charge(...): ...

        Takes the fields of `Policy`. Works through the adapters that know the handlers' paths; a
        mark that none of them has found at a route keeps the service from starting. Raises
        `PolicyError` as `Policy` does.
        """
        policy = dataclasses.replace(self.routes.default, **rules)

        def mark(handler: Handler) -> Handler:
            self.applications.mark(handler, policy)
            return handler

        return mark


def _promise(policy: Policy | None, store: Store) -> str:
    if policy is None:
        return "left alone, nothing is promised"
    key = "a key is required" if policy.required else "without a key nothing is promised"
    if policy.guarantee is None:
        guarantee = "atomic where the handler takes op.connection(), else at least once"
        if not store.atomic:
            guarantee = "at least once: an effect can repeat if the process dies before the record"
    else:
        guarantee = {
            "atomic": "atomic: once, through a crash at any instruction",
            "at-least-once": "at least once: an effect can repeat if the process dies"
            " before the record",
            "at-most-once": "at most once: never repeats, a crash parks the key",
        }[policy.guarantee]
    if policy.fingerprint == "key":
        key += "; an answer is given to whoever names the same natural key"
    opened = "; FAILS OPEN while the store is down" if policy.on_store_error == "run" else ""
    return f"{'/'.join(policy.methods)}: {guarantee}; {key}{opened} ({store.name})"
