"""The starting point of a case: the target, and a key and a body that are new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from semel.checker.exchange import Manner, WireRequest
from semel.checker.target import Target
from semel.core.keys import HEADER

__all__ = ["Scene"]


@dataclass(frozen=True)
class Scene:
    """A target, with a new key and body for one case."""

    target: Target
    key: str
    body: bytes
    other_body: bytes | None
    """Another body that the operation takes; None: none is known."""
    another: Callable[[], Scene]
    """Returns a scene with a new key, and a new body where it has placeholders."""

    def field(self, key: str) -> bytes:
        """Return a key as it stands in its header: bare, or in quotes where the target says so."""
        return f'"{key}"'.encode() if self.target.quoted else key.encode()

    def request(
        self,
        *,
        keys: Sequence[bytes] | None = None,
        body: bytes | None = None,
        method: str = "",
        path: str = "",
        headers: tuple[tuple[str, bytes], ...] | None = None,
        manner: Manner = Manner.WHOLE,
        after: float = 0.0,
        hold: float = 0.0,
    ) -> WireRequest:
        """Return the target's request, changed where told. `keys`: the key headers' values."""
        own = self.target.headers if headers is None else headers
        fields = [self.field(self.key)] if keys is None else keys
        return WireRequest(
            method or self.target.method,
            path or self.target.path,
            (*own, *((HEADER, value) for value in fields)),
            self.body if body is None else body,
            manner,
            after,
            hold,
        )
