"""The journal's file format: records with a checksum, and a scan that copes with a torn one.

A file is `MAGIC` and records. A record is a mark, its length, a checksum of the rest, its kind, the
number of its entry, how much of the file was durable when it was written, and a payload.

That watermark tells two things apart that look alike, a record that cannot be read with good ones
behind it. Where a later record knew it to be durable, the file was damaged; where none did, a crash
cut a write short that nobody had been promised.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final, NamedTuple

MAGIC: Final = b"semel journal 1\n"
HEADER, BEGUN, DONE = 0, 1, 2

_MARK: Final = b"\xf5\x1eJR"
"""Where a record may begin: what a damaged file is searched for."""
_FRAME: Final = struct.Struct(">4sI8s")
_HEAD: Final = struct.Struct(">BQQ")
SMALLEST: Final = _FRAME.size + _HEAD.size


class JournalRecord(NamedTuple):
    """A record and where it stands."""

    start: int
    end: int
    kind: int
    number: int
    durable: int
    """Bytes of the file that were durable when it was written."""
    payload: bytes


class Scan(NamedTuple):
    """The result of reading a whole file."""

    records: list[JournalRecord]
    end: int
    """Where the good records end: what follows is cut off before anything is appended."""
    damaged_at: int | None
    """Where a record is that had been durable and cannot be read."""


def frame(kind: int, number: int, durable: int, payload: bytes) -> bytes:
    """Return a record."""
    rest = _HEAD.pack(kind, number, durable) + payload
    return _FRAME.pack(_MARK, len(rest), _check(rest)) + rest


def scan(data: bytes) -> Scan:
    """Read all records of a file, `MAGIC` included."""
    records: list[JournalRecord] = []
    at = len(MAGIC)
    while (record := _read(data, at)) is not None:
        records.append(record)
        at = record.end
    damaged = any(later.durable > at for later in _behind(data, at))
    return Scan(records, at, at if damaged else None)


def one(data: bytes, start: int) -> JournalRecord | None:
    """Read one record that was written at `start` of its file; None: it was altered."""
    record = _read(data, 0, start)
    return record if record is not None and len(data) == record.end - record.start else None


def _behind(data: bytes, at: int) -> list[JournalRecord]:
    """Return the good records behind a bad one, wherever they begin."""
    found: list[JournalRecord] = []
    while (at := data.find(_MARK, at)) != -1:
        record = _read(data, at)
        if record is None:
            at += 1
        else:
            found.append(record)
            at = record.end
    return found


def _read(data: bytes, at: int, before: int = 0) -> JournalRecord | None:
    if at + SMALLEST > len(data):
        return None
    mark, length, check = _FRAME.unpack_from(data, at)
    start = at + _FRAME.size
    end = start + length
    if mark != _MARK or length < _HEAD.size or end > len(data):
        return None
    if _check(data[start:end]) != check:
        return None
    kind, number, durable = _HEAD.unpack_from(data, start)
    # Nobody can have known more to be durable than there was.
    if durable > before + at:
        return None
    payload = data[start + _HEAD.size : end]
    return JournalRecord(before + at, before + end, kind, number, durable, payload)


def _check(rest: bytes) -> bytes:
    return hashlib.blake2b(rest, digest_size=8, person=b"semel journal").digest()
