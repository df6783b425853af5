"""One operation within Flask: what the view gave is recorded, once Flask is done with it."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, cast

import flask
from werkzeug.exceptions import HTTPException

from semel.core.policy import Policy
from semel.core.record import Response
from semel.web.http import headers as answer_headers
from semel.web.http.body import IN_MEMORY
from semel.web.http.callers import Caller
from semel.web.wsgi.exchange import WSGIExchange
from semel.web.wsgi.messages import Environ

EXCHANGE = "semel.exchange"
"""Where the present `FlaskExchange` stands in a request's environ."""


class FlaskExchange(WSGIExchange):
    """One request to Flask.

    The record is written where the response leaves, after teardown; in it stands the response as
    the view gave it, so that `after_request` functions find the same in a replay.
    """

    policy: Policy | None = None
    """The rules of the request, where it is covered."""
    unkeyed = False
    """Whether its view runs without a key."""
    hands_out_to: Caller | None = None
    """Whom the response is to bring a fresh key."""
    _view: tuple[str, list[tuple[str, str]], _Copied | bytes] | None = None

    def run(self, environ: Environ) -> Iterable[bytes]:
        environ[EXCHANGE] = self
        return super().run(environ)

    def took(self, response: flask.Response) -> flask.Response:
        """Keep what the view gave, before the functions run that come after each request."""
        body: _Copied | bytes
        if response.is_sequence:
            body = b"".join(response.iter_encoded())
        else:
            limit = self._policy.max_response_body
            body = _Copied(response.response, limit)
            response.response = cast("Any", body)
        headers = [(name, value) for name, value in response.headers if name != "Set-Cookie"]
        self._view = response.status, headers, body
        return response

    def forget(self) -> None:
        """Forget a response that has come to nothing."""
        self._view = None

    def note(self, error: BaseException) -> None:
        """Note what has left the view, unless it is a response in itself: a raised redirect."""
        if isinstance(error, HTTPException):
            code = error.code if error.response is None else error.response.status_code
            if code is not None and code < 400:
                return
        self.raised = True

    def _response(self, body: bytes | None) -> Response:
        if self._view is None or self._view[0] != self._status:
            return super()._response(body)
        _, headers, copied = self._view
        if body is not None:
            body = copied.whole() if isinstance(copied, _Copied) else copied
            if body is not None and len(body) > self._policy.max_response_body:
                body = None
        cookies = [field for field in self._headers if field[0].lower() == "set-cookie"]
        fields = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in (*headers, *cookies)]
        status = int(self._status.split(" ", 1)[0])
        return Response(status, answer_headers.kept(fields, self._policy), body)


class _Copied:
    """A view's stream, of which a copy is kept while it passes, within the limit."""

    def __init__(self, chunks: Any, limit: int) -> None:
        self._chunks = chunks
        self._iterator = iter(chunks)
        self._limit = limit
        self._size = 0
        self._copy: list[bytes] = []

    def __iter__(self) -> Iterator[bytes | str]:
        return self

    def __next__(self) -> bytes | str:
        chunk = cast("bytes | str", next(self._iterator))
        data = chunk.encode() if isinstance(chunk, str) else bytes(chunk)
        self._size += len(data)
        if self._size > self._limit:
            self._copy.clear()
        else:
            self._copy.append(data)
        return chunk

    def whole(self) -> bytes | None:
        """Return what has passed, or None where it is too much to be kept."""
        return b"".join(self._copy) if self._size <= self._limit else None

    def close(self) -> None:
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()


class TappedInput(io.BufferedIOBase):
    """A request's `wsgi.input` that two can read: the application's functions, and Semel.

    A `before_request` function may have read a part of it, or everything.
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
