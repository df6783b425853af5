"""The journal: it makes a request and its key durable before the first byte is sent.

Invariant S11: one logical request never uses two keys, and its entry goes only after a definite
response. What a crash, a cut line or a deadline left unfinished, `resume` sends again under the
same key.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from semel.client import stored_request
from semel.client.errors import JournalError
from semel.client.journal_file import JournalFile
from semel.client.resending import aresend, resend
from semel.client.stored_request import StoredRequest
from semel.failpoints import failpoint

if TYPE_CHECKING:
    import httpx
    import requests

    _Outcome = httpx.Response | requests.Response | Exception

log = logging.getLogger("semel.client")


class Unfinished(NamedTuple):
    """A request that was begun and of which it is not known what became."""

    key: str
    method: str
    url: str
    at: float
    """When it was begun, in seconds since the epoch."""


class Resumed(NamedTuple):
    """The outcome of one resumed request."""

    request: Unfinished
    response: httpx.Response | requests.Response | None
    """The definite response: the request is settled. None where there is none yet."""
    error: Exception | None
    """Why it is not settled: `Unsettled`, an error of the connection, or a `JournalError` for one
    that is too old to be sent. Its entry stays."""


class _Entry(NamedTuple):
    number: int
    request: Unfinished
    fingerprint: bytes


class Journal:
    """A file of requests that were begun and have no definite response yet.

    - `path`: the file; made, with mode 0600, where it is not there. Its folder has to be. One
      process at a time has it open, and one `Journal`: `JournalInUse` says so to the others.
    - `encryption_key`: 32 bytes; requests are encrypted (AES-256-GCM). Needs `semel[encryption]`.
    - `keep_credentials`: keep `Authorization`, `Cookie`, `X-API-Key` and their kin too. Without,
      the client that resumes brings its own.
    - `keys_last`: what was begun longer ago is not sent by `resume`: a service that has forgotten
      the key might do it twice. 23 h: an hour less than Semel and Stripe remember one by default.
    - `max_bytes`: the most that unfinished requests may fill; then `JournalFull`, nothing is sent.
    - `clock`: seconds since the epoch, for tests.

    Thread-safe; not usable in a forked child. Raises `JournalError` where the file cannot be used
    and `ValueError` naming the parameter.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        encryption_key: bytes | None = None,
        keep_credentials: bool = False,
        keys_last: timedelta = timedelta(hours=23),
        max_bytes: int = 64 * 1024 * 1024,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes: give a number of bytes, 1 or more, not {max_bytes!r}")
        self.keep_credentials = keep_credentials
        self.clock = clock
        self._keys_last = keys_last.total_seconds()
        self._lock = threading.Lock()
        self._open: dict[str, _Entry] = {}
        self._active: dict[str, int] = {}
        self._file = JournalFile(Path(path), encryption_key, max_bytes)
        for number in self._file.numbers():
            self._remember(number, self._read(number))

    def begin(self, request: StoredRequest) -> bool:
        """Make a request durable. True: it was begun before, and not finished.

        Raises `JournalError`: it is not durable, and must not be sent.
        """
        failpoint("client_before_journal")
        self._file.require_usable()  # before the lock: a forked child may have got it taken
        with self._lock:
            begun = self._open.get(request.key)
            if begun is None:
                number = self._file.append(stored_request.encode(request))
                self._remember(number, request)
            elif begun.fingerprint != request.fingerprint():
                raise JournalError(
                    f"the key {request.key} is in the journal with another request; generate a"
                    " new key for a new operation"
                )
            self._enter(request.key)
        try:
            self._file.sync()
        except JournalError:
            with self._lock:
                self._leave(request.key)
            raise
        failpoint("client_journaled")
        return begun is not None

    def finish(self, key: str, *, settled: bool) -> None:
        """End what `begin` began; `settled`: with a definite response, so that the entry goes."""
        with self._lock:
            self._leave(key)
            if not settled or key not in self._open:
                return
        failpoint("client_before_done")
        self.forget(key)
        failpoint("client_done")

    def forget(self, key: str) -> None:
        """Strike a request out: somebody has settled it in another way.

        An entry that cannot be struck out (the disk is full) is only logged: at worst the next
        `resume` sends it again, under the same key.
        """
        with self._lock:
            entry = self._open.pop(key, None)
            if entry is None:
                return
            try:
                self._file.strike(entry.number)
            except JournalError as error:
                log.warning("the journal keeps a request that is settled: %s", error)
                return
        try:
            self._file.sync()
        except JournalError as error:
            log.warning("the journal may keep a request that is settled: %s", error)

    def unfinished(self) -> list[Unfinished]:
        """Return what is unfinished and not being sent at this moment, the oldest first."""
        with self._lock:
            return [entry.request for key, entry in self._open.items() if key not in self._active]

    def load(self, request: Unfinished) -> StoredRequest | None:
        """Return the whole of an unfinished request; None: it has been settled since."""
        with self._lock:
            entry = self._open.get(request.key)
            return None if entry is None else self._read(entry.number)

    def resume(self, client: httpx.Client | requests.Session) -> list[Resumed]:
        """Send what is unfinished, each under its own key, the oldest first; report each outcome.

        `client` goes through a `RetryTransport` (httpx) or a `RetryAdapter` (requests) that has
        this journal, and brings the credentials. What is not settled stays for the next time.
        """
        return [
            self._resumed(request, resend(client, due) if isinstance(due, StoredRequest) else due)
            for request, due in self._due()
        ]

    async def aresume(self, client: httpx.AsyncClient) -> list[Resumed]:
        """Do as `resume`, with an `AsyncRetryTransport`."""
        return [
            self._resumed(
                request, await aresend(client, due) if isinstance(due, StoredRequest) else due
            )
            for request, due in self._due()
        ]

    def close(self) -> None:
        """Let the file go. What is unfinished stays in it."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _due(self) -> Iterator[tuple[Unfinished, StoredRequest | Exception]]:
        """Yield each unfinished request as it was stored, or why it must not be sent."""
        for request in self.unfinished():
            due = self._too_old(request) or self.load(request)
            if due is not None:
                yield request, due

    def _resumed(self, request: Unfinished, outcome: _Outcome) -> Resumed:
        if isinstance(outcome, Exception):
            return Resumed(request, None, outcome)
        if request in self.unfinished():
            raise JournalError(
                "the client does not go through this journal: give one with"
                " RetryTransport(journal=...) or RetryAdapter(journal=...); the request was sent,"
                " under its own key"
            )
        return Resumed(request, outcome, None)

    def _too_old(self, request: Unfinished) -> JournalError | None:
        """Say why a request must not be sent again, or None."""
        if self.clock() - request.at < self._keys_last:
            return None
        return JournalError(
            f"{request.method} {request.url} was begun longer ago than keys_last: the service may"
            f" have forgotten the key {request.key}. Look up what became of it, then forget it"
        )

    def _read(self, number: int) -> StoredRequest:
        try:
            return stored_request.decode(self._file.read(number))
        except ValueError as error:
            raise JournalError(f"{self._file.path}: entry {number}: {error}") from error

    def _remember(self, number: int, request: StoredRequest) -> None:
        about = Unfinished(request.key, request.method, request.url, request.at)
        self._open[request.key] = _Entry(number, about, request.fingerprint())

    def _enter(self, key: str) -> None:
        self._active[key] = self._active.get(key, 0) + 1

    def _leave(self, key: str) -> None:
        left = self._active.pop(key) - 1
        if left:
            self._active[key] = left
