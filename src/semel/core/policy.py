"""Policies: which requests are covered, what is promised, and how long responses are kept."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from typing import Any, Literal, Protocol

from semel.core import fingerprint
from semel.core.record import Response

log = logging.getLogger("semel")

Guarantee = Literal["atomic", "at-least-once", "at-most-once"]

NOT_AN_OUTCOME = frozenset({307, 308, 401, 403, 408, 409, 425, 428, 429})
"""Responses that say nothing about the operation itself: the place, the caller or the moment was
wrong, so the same request under the same key may still run. (307 and 308 ask for just that: the
client sends it again, key and all, to another path; 428 asks for If-Match, which is no part of the
fingerprint.) 412 is an outcome, a definite no. Were it released, a copy of the request that comes
late could find the resource as it wants it, and act after its client was told that nothing was
done."""

MEBIBYTE = 1024 * 1024


class RequestView(Protocol):
    """A request without its body, as a `scope` or `key` function sees it."""

    method: str
    path: str
    native: Any
    """The ASGI scope or the WSGI environ."""

    def header(self, name: str) -> str | None:
        """Return a header's value, or None."""


class FullRequestView(RequestView, Protocol):
    """A request with its body, as a `key` function sees it."""

    @property
    def body(self) -> bytes:
        """The body; of one longer than 1 MiB, the first MiB."""

    def json(self) -> Any:
        """Return the body's JSON value, or None where it is none."""

    def form(self) -> dict[str, str]:
        """Return the fields of an HTML form (urlencoded or multipart), files left out."""


NaturalKey = Callable[[FullRequestView], str | None]
"""Gives the key that the business has for a request, or None where it has none."""


class PolicyError(ValueError):
    """A policy asks for something that cannot be kept; the message names the field and the fix."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """The rules for one route, or for a whole service.

    Raises `PolicyError` where a value makes no sense.
    """

    methods: tuple[str, ...] = ("POST", "PATCH")
    """Methods whose key is honoured. The others pass untouched: RFC 9110 section 9.2.2 makes GET,
    HEAD, OPTIONS, PUT and DELETE idempotent by themselves."""
    required: bool | Literal["issued"] = False
    """Refuse a request without a key (400 `key-missing`). Otherwise it runs, unprotected.
    `"issued"`: refuse keys that this service has not issued (400 `key-invalid`), too."""
    key: Literal["payload"] | NaturalKey | None = None
    """Where a request without the header gets its key from. A function gives the key that the
    business has, such as an e-mail address or an order number, `lambda request:
    request.json()["email"]`; None or "" from it means that there is none. `"payload"`: the whole
    request is its own key, for `window`. What it gives never meets a key from a header."""
    shared: bool = False
    """The route is public, as a sign-up or a webhook is: the adapter's `caller=` is not asked, and
    callers that nothing tells apart (scope `anonymous`) are one caller for its `key` too. Otherwise
    a request of theirs has no key from its content: two strangers who order the same thing are not
    one operation."""
    window: timedelta | None = None
    """For `key="payload"`: how long the same request is a repeat. Afterwards it is a new one."""
    form_field: str | None = None
    """The field of an HTML form that carries the key where a header cannot, as in a browser without
    JavaScript. It counts as the header would, which goes before it."""
    next_key: bool = False
    """Hand out a fresh issued key with every response, in its `Idempotency-Key` header."""
    guarantee: Guarantee | None = None
    """What is promised after a crash. None: atomic where the handler takes `op.connection()`, else
    at least once. `"atomic"` makes a handler that forgets the connection an error."""
    expires: timedelta = timedelta(hours=24)
    """How long a response is kept, from its completion. 24 h is what Stripe, Checkout.com and PPRO
    publish; it should outlast your clients' longest retry."""
    tombstone: timedelta = timedelta(days=30)
    """How long an expired key is refused (410 `key-expired`) after its response is gone."""
    after_expiry: Literal["refuse", "run"] = "refuse"
    """`"run"`: an expired key starts a new operation, for clients that reuse keys on purpose."""
    lease: timedelta = timedelta(seconds=30)
    """How long a claim outlives the process that holds it. Renewed each third of it while the
    handler runs, so it bounds the wait after a crash, not the handler's time."""
    wait: timedelta = timedelta(seconds=5)
    """How long a repeat waits for the first request before 409 `in-flight`; 0 for the letter of
    the draft (section 2.6)."""
    max_waiters: int = 100
    """How many repeats of one key may wait in this process; the others get 409 at once."""
    on_disconnect: Literal["finish", "cancel"] = "finish"
    """What becomes of a handler whose client leaves. `"finish"`: it runs on to its end and its
    response is kept; only a stream that has outgrown `max_response_body`, of which nothing is kept,
    is ended. `"cancel"`: the handler is told, and may end as it would without Semel; what it leaves
    unfinished is rolled back where it is atomic, parked under `guarantee="at-most-once"`, and else
    free to be run again."""
    fingerprint: Literal["raw", "json", "key"] = "raw"
    """`"json"` takes a JSON body by RFC 8785, for clients that serialise anew for each attempt.
    `"key"`, for a `key` function: the same key is the same request, whatever else it says, and gets
    the first response instead of 422. With `shared` whoever can guess the key gets that response,
    so let it say nothing that is secret. Keys from a header are compared as `"raw"` does."""
    max_request_body: int = 64 * MEBIBYTE
    """Largest request body in bytes (413 before any claim). Above 1 MiB it waits in a file."""
    max_response_body: int = 4 * MEBIBYTE
    """Largest response in bytes that is kept. A larger one completes the operation and reaches the
    first client whole; repeats get 409 `response-not-kept`."""
    body_timeout: timedelta = timedelta(seconds=20)
    """Time for a request's body to arrive (408), extended by a second for each `min_body_rate`
    bytes received. 20 s and 500 bytes/s are the defaults of Apache's mod_reqtimeout."""
    min_body_rate: int = 500
    """Slowest upload, in bytes a second, that keeps extending `body_timeout`."""
    keep_statuses: frozenset[int] | None = None
    """The exact statuses whose responses are kept and replayed. None: all but 5xx (kept only by
    `guarantee="at-most-once"`) and `NOT_AN_OUTCOME`."""
    keep: Callable[[Response], bool] | None = None
    """Decides which responses are kept and replayed, by what they say: `lambda response:
    response.status == 201 and b"errors" not in response.body`. It is given the response as it would
    be stored (`semel.Response`: `status`, `headers` as pairs of bytes, `body`, None where it is too
    large), for each that the handler has given, 5xx and 401 included. An exception that ended as a
    5xx is judged as without it, and so is a response on which it raises (logged). What is not kept
    is released: atomic writes roll back, a retry runs again. It must not block."""
    keep_headers: frozenset[str] | None = None
    """Allow-list of header names that a replay carries. None: all but those of one connection or
    one moment (see `semel.web.http.headers`)."""
    keep_cookies: bool = False
    """Replay `Set-Cookie` too. Off: a replay would hand the first session to whoever repeats."""
    max_attempts: int = 5
    """How many processes a request may take down before it is parked: one that always crashes its
    server is not handed to the next one for ever."""
    remember_request: bool = False
    """Keep the request with its claim, so that Semel itself finishes the operation where a crash
    abandoned it and the client never returns. Without `Authorization` and `Cookie` (see
    `remember_credentials`). Its time and place in the store end with the operation."""
    remember_credentials: bool = False
    """Remember `Authorization` and `Cookie` too, for handlers that check them by themselves."""
    version: str = ""
    """The handler's version: a remembered request is finished only by the version that began it,
    and parked by another."""
    on_store_error: Literal["refuse", "run"] = "refuse"
    """`"run"` fails open: while the store is down requests run *without any protection*, and a
    retry of one that ran is a second effect. Only for operations that may repeat."""

    def __post_init__(self) -> None:
        """Check every field."""
        self._check_methods()
        for name, allowed in _CHOICES.items():
            if (choice := getattr(self, name)) not in allowed:
                listed = ", ".join(repr(one) for one in allowed)
                raise PolicyError(f"{name}: give one of {listed}, not {choice!r}")
        self._check_keys()
        for name, (kind, least, wanted) in _RANGES.items():
            if not isinstance(value := getattr(self, name), kind) or value < least:
                raise PolicyError(f"{name}: give a {wanted}, not {value!r}")
        self._check_combinations()
        if self.keep is not None and not callable(self.keep):
            raise PolicyError(
                "keep: give a function of the response, such as lambda response: response.status"
                f" < 400, not {self.keep!r}"
            )
        if self.keep is not None and self.keep_statuses is not None:
            raise PolicyError("keep, keep_statuses: each decides alone; give one of them")
        if self.keep_statuses is not None:
            object.__setattr__(self, "keep_statuses", frozenset(self.keep_statuses))
        if self.keep_headers is not None:
            names = frozenset(name.lower() for name in self.keep_headers)
            object.__setattr__(self, "keep_headers", names)

    def _check_methods(self) -> None:
        methods = self.methods
        if isinstance(methods, str) or any(m != m.upper() or not m.isalpha() for m in methods):
            raise PolicyError(
                "methods: give a tuple of upper-case names, such as ('POST', 'PATCH')"
            )
        if safe := {"GET", "HEAD", "OPTIONS", "TRACE"} & set(methods):
            raise PolicyError(
                f"methods: {sorted(safe)} change nothing, so there is nothing to protect"
            )

    def _check_keys(self) -> None:
        if not (self.key in (None, "payload") or callable(self.key)):
            raise PolicyError(f'key: give "payload" or a function, not {self.key!r}')
        if self.fingerprint == "key" and not callable(self.key):
            raise PolicyError('fingerprint="key": it goes with a `key` function')
        if (self.key == "payload") != (self.window is not None):
            raise PolicyError('window, key="payload": they go together; give both or neither')
        if self.window is not None and self.window <= timedelta():
            raise PolicyError(f"window: give a timedelta longer than 0, not {self.window!r}")
        if self.required == "issued" and self.key is not None:
            raise PolicyError('key: with required="issued" only issued keys count; drop one')
        if self.form_field is not None and not self.form_field:
            raise PolicyError("form_field: give the name of a form's field")

    def _check_combinations(self) -> None:
        if self.remember_credentials and not self.remember_request:
            raise PolicyError("remember_credentials: it asks for remember_request=True too")
        if self.on_store_error == "run" and self.guarantee in ("atomic", "at-most-once"):
            raise PolicyError(
                f'on_store_error="run" breaks guarantee="{self.guarantee}": while the store is down'
                " nothing is promised; drop one of the two"
            )

    @cached_property
    def with_header(self) -> Policy:
        """The rules for a request whose client names the key."""
        if self.fingerprint == "key":
            return dataclasses.replace(self, fingerprint="raw")
        return self

    @cached_property
    def without_header(self) -> Policy:
        """The rules for a request whose key comes from its content."""
        if self.window is not None:
            return dataclasses.replace(self, expires=self.window, after_expiry="run")
        return self

    def until(self, left: float, grace: timedelta) -> Policy:
        """Return the rules for an issued key that is good for `left` seconds still.

        Its response is kept that long, and its trace for `grace` longer: by then nobody can come
        with the key any more, however clocks differ and servers stand still.
        """
        expires = timedelta(seconds=max(left, 1.0))
        rules = dataclasses.replace(self, expires=expires, tombstone=grace, after_expiry="refuse")
        kept = (expires + grace).total_seconds()  # as long as anybody may claim under the key
        rules.__dict__["seconds"] = dataclasses.replace(rules.seconds, keep_steps=kept)
        return rules

    def keeps(self, response: Response, *, raised: bool = False) -> bool:
        """Say whether a response ends the operation, or lets a retry run again.

        `raised`: it was made from an exception.
        """
        status = response.status
        if self.keep is not None and not (raised and status >= 500):
            try:
                return bool(self.keep(response))
            except Exception:
                log.exception("Policy.keep failed on a response with status %d", status)
        if self.keep_statuses is not None:
            return status in self.keep_statuses
        if status >= 500:
            return self.guarantee == "at-most-once"
        return status not in NOT_AN_OUTCOME

    @cached_property
    def algorithm(self) -> int:
        """The fingerprint algorithm's number."""
        return _ALGORITHMS[self.fingerprint]

    @cached_property
    def seconds(self) -> Seconds:
        """The durations as the engine counts them."""
        return Seconds(
            lease=self.lease.total_seconds(),
            wait=self.wait.total_seconds(),
            expires=self.expires.total_seconds(),
            tombstone=0.0 if self.after_expiry == "run" else self.tombstone.total_seconds(),
            body_timeout=self.body_timeout.total_seconds(),
            keep_steps=self.expires.total_seconds(),
        )


_CHOICES: dict[str, tuple[object, ...]] = {
    "guarantee": (None, "atomic", "at-least-once", "at-most-once"),
    "after_expiry": ("refuse", "run"),
    "fingerprint": ("raw", "json", "key"),
    "on_disconnect": ("finish", "cancel"),
    "on_store_error": ("refuse", "run"),
    "required": (False, True, "issued"),
}
_LONGER_THAN_0 = (timedelta, timedelta.resolution, "timedelta longer than 0")
_DURATION = (timedelta, timedelta(), "timedelta of 0 or more")
_NUMBER = (int, 0, "whole number of 0 or more")
_RANGES: dict[str, tuple[type, Any, str]] = {
    "expires": _LONGER_THAN_0,
    "lease": _LONGER_THAN_0,
    "body_timeout": _LONGER_THAN_0,
    "wait": _DURATION,
    "tombstone": _DURATION,
    "max_request_body": _NUMBER,
    "max_response_body": _NUMBER,
    "min_body_rate": _NUMBER,
    "max_waiters": _NUMBER,
    "max_attempts": (int, 1, "whole number of 1 or more"),
}
"""Of each field: its type, its least value, and what to give instead of one that is neither."""

_ALGORITHMS = {"raw": fingerprint.RAW, "json": fingerprint.JSON, "key": fingerprint.KEY}


@dataclasses.dataclass(frozen=True, slots=True)
class Seconds:
    """A policy's durations in seconds."""

    lease: float
    wait: float
    expires: float
    tombstone: float
    body_timeout: float
    keep_steps: float
    """How long recorded steps outlive an operation that ended without a record."""
