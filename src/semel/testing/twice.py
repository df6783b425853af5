"""Requests of a test suite, sent twice: what is sent again, and what the second has to be like.

The clients that send are in `semel.testing.clients`, the options in `semel.testing.pytest_plugin`.
"""

from __future__ import annotations

import contextlib
import fnmatch
import gzip
import json
import uuid
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from semel.core.engine import Deliver
from semel.core.keys import HEADER
from semel.core.policy import NOT_AN_OUTCOME
from semel.core.problems import CATALOGUE
from semel.runtime.drivers import AsyncDriver, ThreadDriver

METHODS: Final = ("POST", "PATCH")
_ENCODINGS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
}
_SLUGS: Final = frozenset(problem.slug for problem in CATALOGUE)


class Seen(NamedTuple):
    """What a client has seen of one sending."""

    status: int | None
    """None: the application raised, and its client lets that through."""
    headers: dict[str, str]
    """By their names in lower case."""
    body: bytes
    error: Exception | None = None

    @classmethod
    def of(cls, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> Seen:
        """Return what was seen of a response; its body is compared without its encoding."""
        known = {name.lower(): value for name, value in headers}
        with contextlib.suppress(OSError, zlib.error):
            encoding = known.get("content-encoding", "")
            if encoding in _ENCODINGS:
                body = _ENCODINGS[encoding](body)
        return cls(status, known, body)

    @property
    def replayed(self) -> bool:
        """Whether it says that it is a replay."""
        return "idempotent-replayed" in self.headers

    @property
    def refused(self) -> bool:
        """Whether Semel itself answered, and no handler ran."""
        if not self.headers.get("content-type", "").startswith("application/problem+json"):
            return False
        with contextlib.suppress(ValueError, AttributeError):
            return str(json.loads(self.body).get("type")).rpartition("/")[2] in _SLUGS
        return False

    def __str__(self) -> str:
        """Return it in a few words."""
        if self.status is None:
            return f"{type(self.error).__name__} raised"
        return f"{self.status}{' replayed' if self.replayed else ''}"


class Twice:
    """The requests of a test suite that are sent twice."""

    def __init__(self, only: Sequence[str] = ()) -> None:
        self._only = only
        self.paused = False
        """Whether requests are sent once, as `semel_once` asks."""
        self.found: list[str] = []
        """A sentence for each request whose second sending was not a replay, since last asked."""
        self.sent = 0
        self.unprotected = 0

    def begin(self, method: str, path: str, *, keyed: bool) -> Sending | None:
        """Return the two sendings of a request; None where it is to be sent as it is."""
        if self.paused or keyed or method not in METHODS or not self._chosen(method, path):
            return None
        return Sending(self, method, path)

    def _chosen(self, method: str, path: str) -> bool:
        return not self._only or any(
            fnmatch.fnmatchcase(f"{method} {path}" if " " in pattern else path, pattern)
            for pattern in self._only
        )


class Sending:
    """One request, sent twice under one key."""

    def __init__(self, twice: Twice, method: str, path: str) -> None:
        self.key = str(uuid.uuid4())
        self._twice = twice
        self._name = f"{method} {path}"
        self._undone = False

    def run(self, send: Callable[[], Any], see: Callable[[Any], Seen]) -> Any:
        """Send twice, judge, and return (or raise) what came of the first."""
        with _watching() as ended:
            response, first = _attempt(send, see)
        self._undone = bool(ended) and all(ended)
        _, second = _attempt(send, see)
        return self._judged(response, first, second)

    async def arun(
        self, send: Callable[[], Awaitable[Any]], see: Callable[[Any], Awaitable[Seen]]
    ) -> Any:
        """As `run`, for clients that are awaited."""
        with _watching() as ended:
            response, first = await _aattempt(send, see)
        self._undone = bool(ended) and all(ended)
        _, second = await _aattempt(send, see)
        return self._judged(response, first, second)

    def _judged(self, response: Any, first: Seen, second: Seen) -> Any:
        self._twice.sent += 1
        reason = self._unlike(first, second)
        if reason is not None:
            self._twice.unprotected += 1
            self._twice.found.append(
                f"{self._name} was sent twice with one {HEADER}: {first}, then {second}: {reason}"
            )
        if first.error is not None:
            raise first.error
        return response

    def _unlike(self, first: Seen, second: Seen) -> str | None:
        """Return why the second is no replay of the first, and did or may have done something."""
        if second.replayed:
            same = first.status in (None, second.status) and (
                first.status is None or first.body == second.body
            )
            return None if same else "the replay is not the first response"
        alike = first.status == second.status
        if alike and (self._undone or first.refused):
            return None  # nothing is left of the first
        if alike and first.status is not None and _says_no(first.status):
            return None
        if first.status is None or first.status >= 500:
            return (
                "it failed, its key is free, and a retry runs again. What it had done before it"
                ' failed is done twice: use op.connection() (guarantee="atomic"), op.step(), or'
                f' guarantee="at-most-once"{_ONCE}'
            )
        return (
            "the second was not a replay, so it had an effect of its own. Have Semel cover the"
            f" route, and the handler not release its key{_ONCE}"
        )


_ONCE: Final = "; or mark the test with @pytest.mark.semel_once."


def _says_no(status: int) -> bool:
    return 400 <= status < 500 or status in NOT_AN_OUTCOME


def _attempt(send: Callable[[], Any], see: Callable[[Any], Seen]) -> tuple[Any, Seen]:
    try:
        response = send()
        return response, see(response)
    except Exception as error:  # noqa: BLE001  # the application's, seen by the test
        return None, Seen(None, {}, b"", error)


async def _aattempt(
    send: Callable[[], Awaitable[Any]], see: Callable[[Any], Awaitable[Seen]]
) -> tuple[Any, Seen]:
    try:
        response = await send()
        return response, await see(response)
    except Exception as error:  # noqa: BLE001  # the application's, seen by the test
        return None, Seen(None, {}, b"", error)


# --- what became of the operations meanwhile ------------------------------------------------------

_ended: ContextVar[list[bool] | None] = ContextVar("semel_twice_ended", default=None)
_open: list[list[bool]] = []


@contextlib.contextmanager
def _watching() -> Iterator[list[bool]]:
    """Collect, for each operation that ends meanwhile, whether nothing of it is left to repeat."""
    ended: list[bool] = []
    _open.append(ended)
    token = _ended.set(ended)
    try:
        yield ended
    finally:
        _ended.reset(token)
        _open.remove(ended)


def _note(driver: Any, outcome: object) -> None:
    undone = isinstance(outcome, Deliver) and not outcome.kept and driver.transaction is not None
    mine = _ended.get()
    for ended in [mine] if mine is not None else _open:
        ended.append(undone or driver.stepped)


@contextlib.contextmanager
def watched_operations() -> Iterator[None]:
    """Have the operations of this process noted as they end."""
    on_thread, on_loop = ThreadDriver.finish, AsyncDriver.finish

    def finish(self: ThreadDriver, answer: Any) -> Any:
        outcome = on_thread(self, answer)
        _note(self, outcome)
        return outcome

    async def afinish(self: AsyncDriver, answer: Any) -> Any:
        outcome = await on_loop(self, answer)
        _note(self, outcome)
        return outcome

    ThreadDriver.finish, AsyncDriver.finish = finish, afinish  # type: ignore[method-assign]
    try:
        yield
    finally:
        ThreadDriver.finish, AsyncDriver.finish = on_thread, on_loop  # type: ignore[method-assign]
