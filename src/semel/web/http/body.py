"""Request bodies, read whole before the claim: in memory while small, then in a file."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from semel.core import problems
from semel.core.fingerprint import Hasher, hasher
from semel.core.policy import MEBIBYTE, Policy
from semel.core.problems import Problem

IN_MEMORY = MEBIBYTE
"""Bytes of a body held in memory; beyond that a temporary file takes over."""
HASHED_AT_ONCE = 64 * 1024
"""Bytes hashed in one go; a longer body is hashed as it arrives, so as not to hold up the loop."""
CHUNK = 64 * 1024


RequestLine = tuple[str, bytes, bytes, bytes, bytes]
"""Method, path, query, content type and content coding: what is compared beside the body."""


class Body:
    """The bytes of one request, and their fingerprint."""

    __slots__ = ("_algorithm", "_asked", "_digests", "_file", "_hasher", "_parts", "size")

    def __init__(self, algorithm: int, line: RequestLine) -> None:
        self.size = 0
        self._algorithm = algorithm
        self._asked = line
        self._parts: list[bytes] = []
        self._file: BinaryIO | None = None
        self._hasher: Hasher | None = None
        self._digests: dict[int, bytes] = {}

    def write(self, chunk: bytes) -> None:
        """Add the next piece."""
        self.size += len(chunk)
        if self._file is None:
            self._parts.append(chunk)
            if self.size <= HASHED_AT_ONCE:
                return
            if self.size > IN_MEMORY:
                self._file = tempfile.TemporaryFile(prefix="semel-")  # noqa: SIM115
                self._file.writelines(self._parts)
        else:
            self._file.write(chunk)
        if self._hasher is None:
            self._hasher = hasher(self._algorithm, *self._asked)
            for part in self._parts:
                self._hasher.update(part)
        else:
            self._hasher.update(chunk)
        if self._file is not None:
            self._parts.clear()

    def fingerprint(self, algorithm: int) -> bytes:
        """Return the fingerprint by this algorithm. Raises `ValueError` where it is unknown."""
        digest = self._digests.get(algorithm)
        if digest is None:
            if algorithm == self._algorithm and self._hasher is not None:
                digest = self._hasher.digest()
            else:
                hashing = hasher(algorithm, *self._asked)
                for chunk in self.chunks():
                    hashing.update(chunk)
                digest = hashing.digest()
            self._digests[algorithm] = digest
        return digest

    def chunks(self) -> Iterator[bytes]:
        """Give the bytes again, from the start."""
        if self._file is None:
            return iter(self._parts)
        return self._from_file(self._file)

    def _from_file(self, file: BinaryIO) -> Iterator[bytes]:
        position = 0
        while True:
            other = file.tell()  # the handler may be reading it meanwhile
            file.seek(position)
            chunk = file.read(CHUNK)
            file.seek(other)
            if not chunk:
                return
            position += len(chunk)
            yield chunk

    def small(self) -> bytes | None:
        """Return all of it, where it is small; None where it is not."""
        if self.size > HASHED_AT_ONCE:
            return None
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def file(self) -> BinaryIO | None:
        """Return the file, rewound, where the body has outgrown memory."""
        if self._file is not None:
            self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()


class Input(io.BufferedIOBase):
    """A body that has been read, as a binary file to read again: `wsgi.input` and its like.

    `close` does nothing: the bytes belong to the operation, which closes the body.
    """

    def __init__(self, body: Body) -> None:
        file = body.file()
        self._file: BinaryIO = file if file is not None else io.BytesIO(b"".join(body.chunks()))

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True: in memory or in a file, the body can be read again."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes."""
        return self._file.read(-1 if size is None else size)

    read1 = read

    def readline(self, size: int | None = -1, /) -> bytes:
        """Return the next line."""
        return self._file.readline(-1 if size is None else size)

    def readlines(self, hint: int | None = -1, /) -> list[bytes]:
        """Return the lines that are left."""
        return self._file.readlines(-1 if hint is None else hint)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to another place in the body."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place where the next read begins."""
        return self._file.tell()

    def close(self) -> None:
        """Do nothing."""


class Intake:
    """Keeps count of a body that arrives, and says when to stop reading it."""

    __slots__ = ("_policy", "_started", "received")

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._started = time.monotonic()
        self.received = 0

    def left(self) -> float:
        """Return for how many seconds the next piece may be awaited."""
        earned = self.received / self._policy.min_body_rate if self._policy.min_body_rate else 0.0
        deadline = self._started + self._policy.seconds.body_timeout + earned
        return max(deadline - time.monotonic(), 0.0)

    def take(
        self, chunks: Iterable[bytes], declared: int, write: Callable[[bytes], object]
    ) -> Problem | None:
        """Read a body to its end, on a thread. `declared`: its length, 0 where nobody has said."""
        refusal = None
        if declared > self._policy.max_request_body:
            refusal = problems.request_too_large(self._policy.max_request_body)
        for chunk in chunks:
            too_large = self.count(len(chunk))
            if too_large is not None:
                return too_large
            if not self.left():
                return problems.BODY_TIMEOUT
            if refusal is None:
                write(chunk)
        if self.received < declared:  # the client has gone, or the server gave up on it
            return problems.BODY_TIMEOUT
        return refusal

    def count(self, size: int) -> Problem | None:
        """Count a piece; return the refusal once there is one."""
        self.received += size
        if self.received > self._policy.max_request_body:
            return problems.request_too_large(self._policy.max_request_body)
        return None
