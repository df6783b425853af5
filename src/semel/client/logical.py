"""A logical request: its key, its body, its entry in the journal, its life, and how it ends.

The part that the drivers for httpx (sync, async) and requests share; none of it sends anything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Generic, Literal, NamedTuple, TypeVar

from semel.client.budget import Budget
from semel.client.errors import RequestTooLarge, Unsettled
from semel.client.journal import Journal
from semel.client.keys import CREDENTIALS, KeyPool
from semel.client.retry import REPEATABLE, Broke, Ending, Life, Retry, RetryPause, live
from semel.client.stored_request import StoredRequest, worth_keeping
from semel.client.verdict import ReceivedResponse
from semel.core.keys import parse_key
from semel.failpoints import failpoint

Response = TypeVar("Response")

Keys = Callable[[], str] | KeyPool | None
"""Where the keys of POST and PATCH come from; None: only those that the caller has set."""

Way = Literal["keyed", "repeatable", "once"]
"""`repeatable`: idempotent by its method, so retried without a key. `once`: not retried at all."""


class TransportSettings:
    """The parameters of a transport; its docstring says what each means."""

    def __init__(
        self,
        retry: Retry | None,
        keys: Keys,
        journal: Journal | None,
        budget: Budget | None,
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self.retry = retry if retry is not None else Retry()
        self.keys = keys
        self.journal = journal
        self._budget = budget if budget is not None else Budget()
        self._clock = clock
        self._jitter = jitter

    @property
    def pool(self) -> KeyPool | None:
        """The pool of issued keys, which may have to be filled first."""
        return self.keys if isinstance(self.keys, KeyPool) else None

    def way(self, method: str, value: str | None) -> tuple[Way, str | None]:
        """Say how a request goes out, and the key that the caller has set for it.

        Raises `semel.core.keys.InvalidKey` where that is none.
        """
        if value is not None:
            return "keyed", parse_key([value.encode("latin-1")])
        if method in REPEATABLE:
            return "repeatable", None
        generated = method in ("POST", "PATCH") and self.keys is not None
        return ("keyed" if generated else "once"), None

    def new_key(self) -> str:
        """Return a fresh key. Raises `KeysNotIssued`: they come from a pool, and it is empty."""
        assert self.keys is not None
        return self.keys.take() if isinstance(self.keys, KeyPool) else self.keys()

    def live(self, *, keyed: bool, begun: bool, attempts: int) -> Life:
        """Return the life of a request; of so many attempts at most, where that is not 0."""
        return live(
            replace(self.retry, attempts=attempts) if attempts else self.retry,
            self._budget,
            keyed=keyed,
            begun=begun,
            clock=self._clock,
            wall=time.time,
            random=self._jitter,
        )

    def started(self) -> Callable[[float], bool]:
        """Start an attempt's clock; return a function that tells whether seconds are over."""
        start = self._clock()
        return lambda seconds: self._clock() - start > seconds


class AttemptResult(NamedTuple, Generic[Response]):
    """One attempt as its driver saw it: what to tell the life, and the response or the error."""

    told: ReceivedResponse | Broke
    response: Response | None
    error: Exception | None


class Logical:
    """One logical request under a key, or one that may be repeated without.

    `begin` makes it durable before the first attempt; `end` is called whatever happens, and may
    come before `begin` has returned, where that runs in a thread whose task was cancelled.
    """

    def __init__(
        self,
        settings: TransportSettings,
        method: str,
        url: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        key: str | None = None,
        *,
        attempts: int = 0,
    ) -> None:
        self._settings = settings
        self._asked = (method, url, tuple(headers), body)
        self._attempts = attempts
        self._journal = settings.journal if key is not None else None
        self._lock = threading.Lock()
        self._entered = self._ended = self._settled = False
        self.key = key

    @property
    def journaled(self) -> bool:
        """Whether `begin` and `end` write to a disk."""
        return self._journal is not None

    def begin(self) -> Life:
        """Make the request durable; return its life. Raises `JournalError`: it must not be sent."""
        begun = False
        method, url, headers, body = self._asked
        if self._journal is not None and self.key is not None:
            shown = worth_keeping(headers, credentials=self._journal.keep_credentials)
            now = self._journal.clock()
            begun = self._journal.begin(StoredRequest(self.key, method, url, shown, body, now))
            with self._lock:
                self._entered = True
                if self._ended:
                    self._journal.finish(self.key, settled=False)
        return self._settings.live(keyed=self.key is not None, begun=begun, attempts=self._attempts)

    def conclude(self, ending: Ending, attempt: AttemptResult[Response]) -> Response:
        """Return the response, or raise the error or `Unsettled`, that this ending means."""
        if ending.kind == "unsettled":
            assert self.key is not None
            method, url, _, _ = self._asked
            raise Unsettled(
                self.key,
                method,
                url,
                ending.tries,
                journaled=self.journaled,
                response=attempt.response,
            ) from attempt.error
        self._settled = True
        if attempt.error is not None:
            raise attempt.error
        assert attempt.response is not None
        return attempt.response

    def end(self) -> None:
        """Let go of the entry; strike it out, if the request is settled."""
        with self._lock:
            self._ended = True
            if not self._entered:
                return
        if self._journal is not None and self.key is not None:
            self._journal.finish(self.key, settled=self._settled)


def drive(
    logical: Logical,
    send: Callable[[float], AttemptResult[Response]],
    sleep: Callable[[float], None],
    drop: Callable[[Response], None],
) -> Response:
    """Carry a logical request out on the calling thread. `drop` closes a response nobody reads."""
    try:
        life = logical.begin()
        attempt: AttemptResult[Response] | None = None
        command = next(life)
        while True:
            if isinstance(command, RetryPause):
                assert attempt is not None
                if attempt.response is not None:
                    drop(attempt.response)
                failpoint("client_before_retry")
                sleep(command.seconds)
                command = next(life)
                continue
            failpoint("client_before_send")
            attempt = send(command.seconds)
            failpoint("client_answered")
            try:
                command = life.send(attempt.told)
            except StopIteration as end:
                return logical.conclude(end.value, attempt)
    finally:
        logical.end()


class Holding:
    """Buffers a body that can be read only once, up to a limit, so that it can be sent again."""

    def __init__(self, limit: int, said: str | None) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._length = 0
        if said is not None and said.isdigit() and int(said) > limit:
            self._refuse()

    def take(self, chunk: bytes) -> None:
        """Add to it. Raises `RequestTooLarge` beyond the limit."""
        self._length += len(chunk)
        if self._length > self._limit:
            self._refuse()
        self._parts.append(chunk)

    def body(self) -> bytes:
        """Return the whole."""
        return b"".join(self._parts)

    def _refuse(self) -> None:
        raise RequestTooLarge(
            f"the body is longer than the {self._limit} bytes that are held for another attempt;"
            " nothing was sent: raise Retry(max_body=...), or send it through a client without"
            " retries"
        )


def credentials(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that go with a request for keys."""
    return {
        "Content-Type": "application/json",
        **{name: headers[name] for name in CREDENTIALS if name in headers},
    }
