"""Tapped input: a request's body that both the application's own functions and Semel read."""

from __future__ import annotations

import io
import tempfile
from typing import Any, BinaryIO, cast

from semel.web.http.body import IN_MEMORY


class TappedInput(io.BufferedIOBase):
    """A request's `wsgi.input` that two can read: the application's functions, and Semel.

    What authenticates a request may have read a part of it, or everything, before Semel does.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._position = 0
        self._seen: BinaryIO | None = None
        self._replaced = False
        self._rewound = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes."""
        return self._passed("read", size)

    read1 = read

    def readline(self, size: int | None = -1, /) -> bytes:
        """Return the next line."""
        return self._passed("readline", size)

    def _passed(self, method: str, size: int | None) -> bytes:
        if self._replaced:
            self._stream.seek(self._position)
        read = getattr(self._stream, method)
        data: bytes = read() if size is None or size < 0 else read(size)
        self._position += len(data)
        if not self._replaced:
            if self._seen is None:
                self._seen = _spool()
            self._seen.write(data)
        return data

    def replace(self, stream: Any) -> None:
        """Go on from the same place in a copy of the whole."""
        self._stream = stream
        self._replaced = True
        if self._seen is not None:
            self._seen.close()
            self._seen = None

    def read_again(self, size: int) -> bytes:
        """Return the next bytes of the whole, from its start; `replace` is to follow."""
        if not self._rewound:
            self._rewound = True
            if self._seen is not None:
                self._seen.seek(0)
        data = self._seen.read(size) if self._seen is not None else b""
        return data if data else cast("bytes", self._stream.read(size))


class Untouched:
    """A tapped body as Semel reads it: from the start, whoever has read of it before."""

    def __init__(self, tapped: TappedInput) -> None:
        self.read = tapped.read_again


def _spool() -> BinaryIO:
    return cast("BinaryIO", tempfile.SpooledTemporaryFile(max_size=IN_MEMORY))
