"""A request's body, read whole before the claim: in memory while small, then in a file."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from typing import BinaryIO

from semel.core import fingerprint, problems
from semel.core.policy import MEBIBYTE, Policy
from semel.core.problems import Problem

IN_MEMORY = MEBIBYTE
"""Bytes of a body held in memory; beyond that a temporary file takes over."""
CHUNK = 64 * 1024



class Body:
    """The bytes of one request, hashed as they arrive."""

    __slots__ = ("_asked", "_file", "_hashers", "_parts", "size")

    def __init__(self, method: str, path: bytes, query: bytes, kind: bytes, encoding: bytes) -> None:
        self.size = 0
        self._parts: list[bytes] = []
        self._file: BinaryIO | None = None
        self._asked = (method, path, query, kind, encoding)
        self._hashers: dict[int, fingerprint.Hasher | bytes] = {}

    def expect(self, algorithm: int) -> None:
        """Hash by this algorithm while the body arrives."""
        self._hashers[algorithm] = fingerprint.hasher(algorithm, *self._asked)

    def write(self, chunk: bytes) -> None:
        """Add the next piece."""
        self.size += len(chunk)
        for hasher in self._hashers.values():
            if not isinstance(hasher, bytes):
                hasher.update(chunk)
        if self._file is not None:
            self._file.write(chunk)
            return
        self._parts.append(chunk)
        if self.size > IN_MEMORY:
            self._file = tempfile.TemporaryFile(prefix="semel-")  # noqa: SIM115
            self._file.writelines(self._parts)
            self._parts.clear()

    def fingerprint(self, algorithm: int) -> bytes:
        """Return the fingerprint by this algorithm. Raises `ValueError` where it is unknown."""
        hasher = self._hashers.get(algorithm)
        if hasher is None:
            hasher = fingerprint.hasher(algorithm, *self._asked)
            for chunk in self.chunks():
                hasher.update(chunk)
        if not isinstance(hasher, bytes):
            hasher = self._hashers[algorithm] = hasher.digest()
        return hasher

    def chunks(self) -> Iterator[bytes]:
        """Give the bytes again, from the start."""
        if self._file is None:
            yield from self._parts
            return
        self._file.seek(0)
        while chunk := self._file.read(CHUNK):
            yield chunk

    def file(self) -> BinaryIO | None:
        """Return the file, rewound, where the body has outgrown memory."""
        if self._file is not None:
            self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()


class Intake:
    """Keeps count of a body that arrives, and says when to stop reading it."""

    __slots__ = ("_policy", "_started", "received")

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._started = time.monotonic()
        self.received = 0

    def deadline(self) -> float:
        """Return when (monotonic seconds) the next piece has to be here."""
        earned = self.received / self._policy.min_body_rate if self._policy.min_body_rate else 0.0
        return self._started + self._policy.seconds.body_timeout + earned

    def count(self, size: int) -> Problem | None:
        """Count a piece; return the refusal once there is one."""
        self.received += size
        if self.received > self._policy.max_request_body:
            return problems.request_too_large(self._policy.max_request_body)
        return None
