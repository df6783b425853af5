"""Responses of the idempotent methods, as plain data (RFC 9110 sections 9.3 and 15)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from semel.core.record import Response
from semel.web.conditional.preconditions import Preconditions
from semel.web.conditional.validators import Validators, header_fields


def put_answer(
    *,
    created: bool,
    location: str | None = None,
    body: bytes | None = None,
    as_sent: bool | None = None,
    etag: str | None = None,
    last_modified: datetime | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Answer a PUT: 201 where it created; where it replaced, 200 with a body and 204 without.

    `location` goes out with a 201 only. `as_sent` says whether the representation was stored
    exactly as it was sent: only then does RFC 9110 (9.3.4) let validators go out, for the client
    takes them for those of the bytes it has. With False they are left out, and the client has to
    GET. JSON that is read and written anew is not "as sent".

    Raises `ValueError` for a validator without `as_sent`, and for what no header can carry.
    """
    if as_sent is None and (etag is not None or last_modified is not None):
        raise ValueError(
            "as_sent: say whether the representation was stored exactly as it was sent; only then"
            " may the answer to a PUT carry a validator (RFC 9110 section 9.3.4)"
        )
    validators = Validators(etag, last_modified) if as_sent else Validators()
    extra = dict(headers or {})
    if created and location is not None:
        extra["Location"] = location
    return _written(201 if created else 200, body, validators, extra)


def patch_answer(
    *,
    body: bytes | None = None,
    etag: str | None = None,
    last_modified: datetime | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Answer a PATCH: 200 with a body, 204 without. The validators are those of the new state."""
    return _written(200, body, Validators(etag, last_modified), headers or {})


def delete_answer(*, existed: bool = True, when_missing: Literal[204, 404] = 204) -> Response:
    """Answer a DELETE: 204, again and again, for what was asked is so.

    `when_missing=404` tells those who ask again that there is nothing (any more); the effect is
    idempotent all the same, the message is not.
    """
    if existed or when_missing == 204:
        return Response(204, (), b"")
    return Response(404, ((b"content-length", b"0"),), b"")


def get_answer(
    when: Preconditions,
    body: bytes,
    *,
    etag: str | None = None,
    last_modified: datetime | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Answer a GET or HEAD: 200 with the validators; a HEAD has the same headers and no body.

    Raises `NotMet` with 304 or 412. Where the body is dear to make, ask `when.require` first.
    """
    validators = Validators(etag, last_modified)
    when.require(validators, headers=headers)
    fields = (*validators.fields(), *header_fields(headers or {}))
    length = (b"content-length", b"%d" % len(body))
    return Response(200, (*fields, length), b"" if when.method == "HEAD" else body)


def _written(
    status: int, body: bytes | None, validators: Validators, headers: Mapping[str, str]
) -> Response:
    fields = (*validators.fields(), *header_fields(headers))
    body = body or b""
    if status == 200 and not body:
        return Response(204, fields, b"")
    return Response(status, (*fields, (b"content-length", b"%d" % len(body))), body)
