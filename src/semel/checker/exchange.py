"""The actions that a case yields, and the responses that it gets, as data without I/O.

A case is a generator. It yields actions, receives the result of each, and returns a verdict:

    SendOne   -> WireResponse         Count -> int | None (None: effects are not counted)
    Together  -> list[WireResponse]   Pause -> None
    Crash     -> WireResponse         (the server is killed around this request, and started again)
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, TypeAlias, TypeVar

__all__ = [
    "Action",
    "Count",
    "Crash",
    "Manner",
    "Pause",
    "SendOne",
    "Steps",
    "Together",
    "WireRequest",
    "WireResponse",
]


class Manner(Enum):
    """The manner in which a request is written to the socket."""

    WHOLE = "whole"
    CUT = "whole; the connection is cut before the response"
    HALF = "half of the body; the connection is cut"
    SLOW = "the body in ten pieces, over a second"


@dataclass(frozen=True)
class WireRequest:
    """One request, to the byte."""

    method: str
    path: str
    """With the query."""
    headers: tuple[tuple[str, bytes], ...]
    body: bytes
    manner: Manner = Manner.WHOLE
    after: float = 0.0
    """Seconds after the others of a `Together` at which it is sent."""
    hold: float = 0.0
    """Seconds for which a connection that will be cut is kept after the last byte."""


@dataclass(frozen=True)
class WireResponse:
    """A response. `status` 0: none came, and `failure` says why."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    failure: str = ""
    seconds: float = 0.0
    """From the first byte sent to the last one received."""

    @property
    def done(self) -> bool:
        """Whether it says that the operation is done: 2xx or 3xx."""
        return 200 <= self.status < 400

    @property
    def refused(self) -> bool:
        """Whether the server found fault with the request: 4xx."""
        return 400 <= self.status < 500

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for field, value in self.headers if field.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return next(iter(self.all(name)), None)

    def same(self, other: WireResponse) -> bool:
        """Whether both tell the same result. That the status is kept too is a case of its own."""
        return self.done and other.done and self.body == other.body

    def __str__(self) -> str:
        return str(self.status) if self.status else f"no response ({self.failure})"


class SendOne(NamedTuple):
    """Send one request and read its response."""

    request: WireRequest


class Together(NamedTuple):
    """Send all at the same moment, each on a connection of its own."""

    requests: tuple[WireRequest, ...]


class Count(NamedTuple):
    """Count the effects so far."""


class Pause(NamedTuple):
    """Wait."""

    seconds: float


class Crash(NamedTuple):
    """Send a request, `kill -9` the server, start it again."""

    request: WireRequest
    after: float | None
    """Seconds from the first byte to the kill; None: as soon as the response is there."""


Action: TypeAlias = SendOne | Together | Count | Pause | Crash
T = TypeVar("T")
Steps: TypeAlias = Generator[Action, Any, T]
