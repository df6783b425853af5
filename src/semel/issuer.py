"""The issuer of keys: signs them, hands them out, and checks those that come back."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from semel.core.issued import NONCE_LENGTH, SHORTEST_SECRET, KeyFormat, is_issued, seal, unseal

__all__ = ["Issued", "Issuer"]

MOST: Final = 1000
"""Keys that are issued at a time."""
GRACE: Final = timedelta(days=1)
"""How much longer than its key a record stays: as far as clocks may be apart, and a server may
stand still between checking a key and claiming it."""


_ROUTE = re.compile(r"(?:[A-Z]+ )?/[^\x00-\x20\x7f]*")
_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,32}")


class Issued(NamedTuple):
    """Keys that were issued together."""

    keys: tuple[str, ...]
    not_after: float
    """Seconds since the epoch; from then on they are refused."""

    @property
    def not_after_text(self) -> str:
        """The same as RFC 3339 writes it."""
        moment = datetime.fromtimestamp(self.not_after, UTC)
        return moment.isoformat().replace("+00:00", "Z")


class Issuer:
    """Signs keys for clients to use: `Idempotency(store, issuer=Issuer(secret))`.

    - `secrets`: one signing key of 32 bytes or more (`secrets.token_bytes(32)`, or text), or
      several under numbers 0 to 255 to change them one by one: the highest number signs, all are
      accepted. Take an old one away once `lifetime` has passed. Use them for nothing else.
    - `signs_with`: another number than the highest, while not every server knows that one yet.
    - `lifetime`: how long a key may be used after it was issued. Its record is kept that long.
    - `path`: where the middleware answers `POST {"count": 50}` with that many keys; None: nowhere.
    - `prefix`: what every issued key begins with. `readable`: base58 instead of base64url, for keys
      that people read out or type.
    - `clock`: seconds since the epoch, and `random`: that many random bytes; for tests.

    Raises `ValueError` naming the parameter.
    """

    def __init__(
        self,
        secrets: bytes | str | Mapping[int, bytes | str],
        *,
        lifetime: timedelta = timedelta(hours=24),
        path: str | None = "/idempotency-keys",
        prefix: str = "ik.",
        readable: bool = False,
        signs_with: int | None = None,
        clock: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        numbered = secrets if isinstance(secrets, Mapping) else {0: secrets}
        self._secrets = {number: _secret(number, value) for number, value in numbered.items()}
        if not self._secrets:
            raise ValueError("secrets: give at least one signing key")
        if lifetime <= timedelta():
            raise ValueError(f"lifetime: give a timedelta longer than 0, not {lifetime!r}")
        if not _PREFIX.fullmatch(prefix):
            raise ValueError(f"prefix: give 1 to 32 letters, digits, '_', '-', '.', not {prefix!r}")
        if path is not None and not path.startswith("/"):
            raise ValueError(f"path: give a path such as /idempotency-keys, not {path!r}")
        self.lifetime = lifetime
        self.path = path
        self._form = KeyFormat(prefix, readable)
        self._clock = clock
        self._random = random
        self._current = max(self._secrets) if signs_with is None else signs_with
        if self._current not in self._secrets:
            raise ValueError(f"signs_with: there is no secret {signs_with!r}")

    def issue(self, scope: str, count: int = 1, *, route: str = "") -> Issued:
        """Return fresh keys for the caller named `scope`, as `Idempotency.scope` names it.

        `route` binds them to a path (`/charges`) or a method and path (`POST /charges`). Nothing is
        stored. Raises `ValueError` for a `count` outside 1 to 1000 or a `route` that is none.
        """
        if not 1 <= count <= MOST:
            raise ValueError(f"count: give 1 to {MOST}, not {count!r}")
        if route and not _ROUTE.fullmatch(route):
            raise ValueError(f"route: give /path or METHOD /path, not {route!r}")
        not_after = int(self._clock() + self.lifetime.total_seconds())
        random = self._random(NONCE_LENGTH * count)
        return Issued(
            tuple(
                seal(
                    self._secrets[self._current],
                    self._current,
                    scope=scope,
                    not_after=not_after,
                    nonce=random[at : at + NONCE_LENGTH],
                    route=route,
                    form=self._form,
                )
                for at in range(0, len(random), NONCE_LENGTH)
            ),
            float(not_after),
        )

    def owns(self, key: str) -> bool:
        """Say whether a key claims to be one of ours: it is accepted only if it is."""
        return is_issued(key, self._form)

    def check(self, key: str, scope: str, method: str, path: str) -> float | None:
        """Return for how many seconds a key is good still (0 or less: expired), or None: not ours.

        Forged, altered, issued to somebody else or for another route: all are None, and take the
        same time.
        """
        sealed = unseal(key, self._secrets, scope=scope, method=method, path=path, form=self._form)
        return sealed.not_after - self._clock() if sealed.genuine else None


def _secret(number: int, value: bytes | str) -> bytes:
    if not isinstance(number, int) or not 0 <= number <= 255:
        raise ValueError(f"secrets: number them 0 to 255, not {number!r}")
    secret = value.encode() if isinstance(value, str) else bytes(value)
    if len(secret) < SHORTEST_SECRET:
        raise ValueError(
            f"secrets: key {number} has {len(secret)} bytes; give {SHORTEST_SECRET} or more, such"
            " as secrets.token_bytes(32)"
        )
    return secret
