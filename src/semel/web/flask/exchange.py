"""One operation within Flask: what the view gave is recorded, once Flask is done with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import flask

from semel.core.record import Response
from semel.web.http import headers as answer_headers
from semel.web.wsgi.inside import InsideExchange


class FlaskExchange(InsideExchange):
    """One request to Flask.

    In the record stands the response as the view gave it, so that `after_request` functions find
    the same in a replay.
    """

    _view: tuple[str, list[tuple[str, str]], _Copied | bytes] | None = None

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
