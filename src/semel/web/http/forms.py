"""The text fields of HTML forms, as far as a key may be among them.

Read in pieces and in time linear in the body, for it is done before anybody is known to be allowed
anything. Files are skipped, not held.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from semel.core.fingerprint import BOUNDARY

MOST_FIELDS: Final = 1000
LARGEST: Final = 1024 * 1024
"""Bytes of all text fields together; more than that is not read."""
_LARGEST_HEAD: Final = 8 * 1024
"""Bytes of one part's headers."""

_DISPOSITION = re.compile(rb"^content-disposition[ \t]*+:(.*+)$", re.IGNORECASE | re.MULTILINE)
_NAME = re.compile(rb';[ \t]*+name=(?:"([^"]*+)"|([^\s;"]++))', re.IGNORECASE)
_FILE = re.compile(rb";[ \t]*+filename\*?+=", re.IGNORECASE)


class Form(NamedTuple):
    """The fields that were read of a form."""

    fields: dict[str, str]
    """The text fields, the first of each name."""
    whole: bool
    """Whether that is all there is; not where it is too large, or no proper form."""


NO_FORM: Final = Form({}, True)


def read(content_type: str, chunks: Iterable[bytes]) -> Form:
    """Return the fields of a form; none where the body is no form."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        return _urlencoded(chunks)
    if kind == "multipart/form-data":
        found = BOUNDARY.search(content_type.encode("latin-1", "replace"))
        if found is None:
            return Form({}, False)
        return _multipart(b"\r\n--" + (found.group(1) or found.group(2)), chunks)
    return NO_FORM


def _urlencoded(chunks: Iterable[bytes]) -> Form:
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > LARGEST:
            return Form({}, False)
    text = body.decode("utf-8", "replace")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        return Form({}, False)
    return Form(dict(reversed(pairs)), True)


class _Cut(Exception):
    """The form ends too early, or goes too far."""


def _multipart(delimiter: bytes, chunks: Iterable[bytes]) -> Form:
    fields: dict[str, str] = {}
    reader = _PartReader(chunks)
    size = 0
    try:
        reader.until(delimiter, keep=False)
        for _ in range(MOST_FIELDS):
            if reader.take(2) == b"--":
                return Form(fields, True)
            head = reader.until(b"\r\n\r\n", keep=True, most=_LARGEST_HEAD)
            disposition = _DISPOSITION.search(head)
            name = _NAME.search(disposition.group(1)) if disposition else None
            if disposition is None or name is None or _FILE.search(disposition.group(1)):
                reader.until(delimiter, keep=False)
                continue
            value = reader.until(delimiter, keep=True, most=LARGEST - size)
            size += len(value)
            text = (name.group(1) or name.group(2) or b"").decode("utf-8", "replace")
            fields.setdefault(text, value.decode("utf-8", "replace"))
    except _Cut:
        pass
    return Form(fields, False)


class _PartReader:
    """Bytes up to a mark, of a body in pieces."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks: Iterator[bytes] = iter(chunks)
        self._held = bytearray(b"\r\n")  # so that the first delimiter is like the others

    def _more(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise _Cut
        self._held += chunk

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        while len(self._held) < count:
            self._more()
        taken = bytes(self._held[:count])
        del self._held[:count]
        return taken

    def until(self, mark: bytes, *, keep: bool, most: int = 0) -> bytes:
        """Return what comes before the mark, nothing unless `keep`, and go past it."""
        start = 0
        while (found := self._held.find(mark, start)) < 0:
            start = max(len(self._held) - len(mark) + 1, 0)
            if keep and start > most:
                raise _Cut
            if not keep:
                del self._held[:start]
                start = 0
            self._more()
        if keep and found > most:
            raise _Cut
        before = bytes(self._held[:found]) if keep else b""
        del self._held[: found + len(mark)]
        return before
