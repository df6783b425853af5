"""The protocol, without I/O: requests read, and responses made, for tus 1.0 and plain uploads.

Source: tus.io/protocols/resumable-upload version 1.0.0, the core and the extensions creation,
creation-with-upload, checksum, termination and expiration. A POST without `Tus-Resumable` is a
plain upload: the file is the body.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import quote

from semel.core import problems as common
from semel.core.keys import InvalidKey, parse_key
from semel.core.problems import Problem
from semel.core.record import Response
from semel.uploads import problems
from semel.uploads.digests import (
    CHECKSUMS,
    Check,
    InvalidDigest,
    checksum_check,
    digest_checks,
    repr_digest,
)
from semel.uploads.problems import UploadRefused, invalid
from semel.uploads.state import Upload, is_upload_id

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,checksum,termination,expiration"
MAX_METADATA = 4096
"""Bytes of `Upload-Metadata`; it is sent back with every HEAD."""

_NUMBER = re.compile(r"[0-9]{1,18}")
_PAIR = re.compile(r"([!-+\--~]+)(?: ([A-Za-z0-9+/=]*))?")
_FORMS = ("multipart/", "application/x-www-form-urlencoded")
_PIECE = "application/offset+octet-stream"


@dataclass(frozen=True, slots=True)
class UploadRequest:
    """A request, as both adapters see it."""

    method: str
    path: str
    """Below where the uploads are mounted."""
    headers: Mapping[str, str]
    """Names in lower case; repeated lines joined with commas."""


@dataclass(frozen=True, slots=True)
class Discover:
    """Report what this server supports."""


@dataclass(frozen=True, slots=True)
class StoreFile:
    """Store the body, the whole file."""

    length: int
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Create:
    """Begin a resumable upload; its first bytes may be in the body."""

    length: int
    metadata: str
    promised: tuple[Check, ...]
    key: str | None
    has_body: bool
    body_length: int | None
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Inspect:
    """Report how far this upload is."""

    id: str


@dataclass(frozen=True, slots=True)
class Append:
    """Add the body at this offset."""

    id: str
    offset: int
    body_length: int | None
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Terminate:
    """Delete this upload."""

    id: str


Wish = Discover | StoreFile | Create | Inspect | Append | Terminate


def understand(asked: UploadRequest, max_size: int) -> Wish:
    """Return what a request asks for. Raises `UploadRefused`."""
    headers = asked.headers
    method = headers.get("x-http-method-override", asked.method).upper()
    name = asked.path.strip("/")
    if method == "OPTIONS":
        return Discover()
    if method not in (("HEAD", "PATCH", "DELETE") if name else ("POST",)):
        raise UploadRefused(problems.UPLOAD_METHOD)
    resumable = headers.get("tus-resumable")
    if resumable != VERSION and (resumable is not None or name):
        raise UploadRefused(problems.UPLOAD_VERSION)
    try:
        if not name:
            return _create(headers, max_size) if resumable else _store(headers, max_size)
        if not is_upload_id(name):
            raise UploadRefused(problems.UPLOAD_NOT_FOUND)
        if method == "PATCH":
            return _append(name, headers)
        return Inspect(name) if method == "HEAD" else Terminate(name)
    except InvalidDigest as error:
        raise invalid(str(error)) from None


def _store(headers: Mapping[str, str], max_size: int) -> StoreFile:
    if headers.get("content-type", "").lower().startswith(_FORMS):
        raise UploadRefused(problems.UPLOAD_TYPE)
    length = _number(headers, "Content-Length")
    if length is None:
        raise UploadRefused(problems.UPLOAD_LENGTH_MISSING)
    _within(length, max_size)
    return StoreFile(length, _digests(headers, "Content-Digest") + _digests(headers, "Repr-Digest"))


def _create(headers: Mapping[str, str], max_size: int) -> Create:
    length = _number(headers, "Upload-Length")
    if length is None:
        raise invalid("Upload-Length is missing; send the length of the whole file in bytes")
    _within(length, max_size)
    try:
        field = headers.get("idempotency-key")
        key = parse_key([] if field is None else [field.encode("latin-1", "replace")])
    except InvalidKey as error:
        raise UploadRefused(common.key_invalid(str(error))) from None
    body_length = _number(headers, "Content-Length")
    has_body = bool(body_length) or "transfer-encoding" in headers
    if has_body:
        _is_piece(headers)
    return Create(
        length,
        _metadata(headers.get("upload-metadata", "")),
        _digests(headers, "Repr-Digest"),
        key,
        has_body,
        body_length,
        _piece_checks(headers) if has_body else (),
    )


def _append(name: str, headers: Mapping[str, str]) -> Append:
    _is_piece(headers)
    offset = _number(headers, "Upload-Offset")
    if offset is None:
        raise invalid("Upload-Offset is missing; send the offset that HEAD returns")
    return Append(name, offset, _number(headers, "Content-Length"), _piece_checks(headers))


def _is_piece(headers: Mapping[str, str]) -> None:
    if headers.get("content-type", "").partition(";")[0].strip().lower() != _PIECE:
        raise UploadRefused(problems.UPLOAD_TYPE)


def _piece_checks(headers: Mapping[str, str]) -> tuple[Check, ...]:
    checksum = headers.get("upload-checksum")
    checks = (checksum_check(checksum),) if checksum is not None else ()
    return checks + _digests(headers, "Content-Digest")


def _digests(headers: Mapping[str, str], field: str) -> tuple[Check, ...]:
    value = headers.get(field.lower())
    return () if value is None else digest_checks(field, value.encode("latin-1", "replace"))


def _within(length: int, max_size: int) -> None:
    if length > max_size:
        raise UploadRefused(common.request_too_large(max_size))


def _number(headers: Mapping[str, str], field: str) -> int | None:
    value = headers.get(field.lower())
    if value is None or value == "":
        return None
    if _NUMBER.fullmatch(value) is None:
        raise invalid(f"{field} is not a number of bytes; send for example {field}: 1024")
    return int(value)


def _metadata(value: str) -> str:
    """Check `Upload-Metadata`, which is sent back as a header and so may not smuggle anything."""
    wrong = invalid(
        "Upload-Metadata is malformed; send pairs of a name and a base64 value, with commas"
        f" between, {MAX_METADATA} bytes at most"
    )
    if len(value) > MAX_METADATA:
        raise wrong
    names = set()
    for pair in value.split(",") if value else ():
        match = _PAIR.fullmatch(pair.strip(" "))
        if match is None or match.group(1) in names:
            raise wrong
        names.add(match.group(1))
        try:
            base64.b64decode(match.group(2) or "", validate=True)
        except binascii.Error:
            raise wrong from None
    return value


# --- responses ----------------------------------------------------------------------------------

_ALWAYS = ((b"tus-resumable", VERSION.encode()), (b"cache-control", b"no-store"))


def discovered(max_size: int) -> Response:
    """Return the response to `Discover`."""
    return Response(
        204,
        (
            *_ALWAYS,
            (b"tus-version", VERSION.encode()),
            (b"tus-extension", EXTENSIONS.encode()),
            (b"tus-max-size", b"%d" % max_size),
            (b"tus-checksum-algorithm", ",".join(CHECKSUMS).encode()),
        ),
        b"",
    )


def created(upload: Upload, mount: str, *, with_body: bool = True) -> Response:
    """Return the response to `Create`; to a repeat of it too, which finds the upload further on."""
    progress = _progress(upload) if with_body else (_expires(upload),)
    return Response(201, (*_ALWAYS, _location(upload, mount), *progress), b"")


def stored(upload: Upload, mount: str) -> Response:
    """Return the response to `StoreFile`.

    It follows from the caller and the content alone, so every repeat gets the same.
    """
    assert upload.digest is not None
    return Response(201, (*_ALWAYS, _location(upload, mount), *_identity(upload.digest)), b"")


def inspected(upload: Upload) -> Response:
    """Return the response to `Inspect`."""
    metadata = upload.metadata
    extra = ((b"upload-metadata", metadata.encode("latin-1")),) if metadata else ()
    return Response(
        200,
        (*_ALWAYS, (b"upload-length", b"%d" % upload.length), *_progress(upload), *extra),
        b"",
    )


def appended(upload: Upload) -> Response:
    """Return the response to `Append`."""
    return Response(204, (*_ALWAYS, *_progress(upload)), b"")


def terminated() -> Response:
    """Return the response to `Terminate`."""
    return Response(204, _ALWAYS, b"")


def refused(problem: Problem, base: str) -> Response:
    """Return a problem as a response."""
    status, headers, body = problem.response(base)
    extra = [(b"tus-resumable", VERSION.encode())]
    if problem.slug == problems.UPLOAD_VERSION.slug:
        extra.append((b"tus-version", VERSION.encode()))
    if problem.slug == problems.UPLOAD_METHOD.slug:
        extra.append((b"allow", b"OPTIONS, POST, HEAD, PATCH, DELETE"))
    return Response(status, (*headers, *extra), body)


def _progress(upload: Upload) -> tuple[tuple[bytes, bytes], ...]:
    done = _identity(upload.digest) if upload.digest is not None else ()
    return ((b"upload-offset", b"%d" % upload.offset), _expires(upload), *done)


def _identity(digest: str) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"repr-digest", repr_digest(digest)), (b"etag", b'"%s"' % digest.encode()))


def _location(upload: Upload, mount: str) -> tuple[bytes, bytes]:
    return b"location", quote(f"{mount}/{upload.id}").encode()


def _expires(upload: Upload) -> tuple[bytes, bytes]:
    return b"upload-expires", formatdate(upload.expires_at, usegmt=True).encode()
