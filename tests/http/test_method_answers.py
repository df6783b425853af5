"""The answers of PUT, PATCH, DELETE, GET and HEAD as data."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from semel.core.record import Response
from semel.web.conditional import (
    Preconditions,
    delete_answer,
    get_answer,
    patch_answer,
    put_answer,
)

THEN = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)
EMPTY = (b"content-length", b"0")
TAG = (b"etag", b'"a"')
DATE = (b"last-modified", b"Wed, 25 Nov 2026 12:00:00 GMT")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (put_answer(created=True), Response(201, (EMPTY,), b"")),
        (
            put_answer(created=True, location="/items/1"),
            Response(201, ((b"location", b"/items/1"), EMPTY), b""),
        ),
        (put_answer(created=False, location="/items/1"), Response(204, (), b"")),
        (
            put_answer(created=False, body=b"tea", headers={"Content-Type": "text/plain"}),
            Response(200, ((b"content-type", b"text/plain"), (b"content-length", b"3")), b"tea"),
        ),
        (put_answer(created=False, body=b""), Response(204, (), b"")),
        (
            put_answer(created=True, etag='"a"', last_modified=THEN, as_sent=True),
            Response(201, (TAG, DATE, EMPTY), b""),
        ),
        (
            put_answer(created=True, etag='"a"', last_modified=THEN, as_sent=False),
            Response(201, (EMPTY,), b""),
        ),
        (patch_answer(etag='"a"'), Response(204, (TAG,), b"")),
        (patch_answer(body=b"tea"), Response(200, ((b"content-length", b"3"),), b"tea")),
        (delete_answer(), Response(204, (), b"")),
        (delete_answer(existed=False), Response(204, (), b"")),
        (delete_answer(existed=True, when_missing=404), Response(204, (), b"")),
        (delete_answer(existed=False, when_missing=404), Response(404, (EMPTY,), b"")),
        (
            get_answer(Preconditions("GET"), b"tea", etag='"a"', last_modified=THEN),
            Response(200, (TAG, DATE, (b"content-length", b"3")), b"tea"),
        ),
        (
            get_answer(Preconditions("HEAD"), b"tea", etag='"a"', last_modified=THEN),
            Response(200, (TAG, DATE, (b"content-length", b"3")), b""),
        ),
        (
            get_answer(Preconditions("GET"), b"", headers={"Vary": "Accept"}),
            Response(200, ((b"vary", b"Accept"), EMPTY), b""),
        ),
    ],
)
def test_an_answer_is_what_the_rfc_says(answer: Response, expected: Response) -> None:
    assert answer == expected


@pytest.mark.parametrize("validator", [{"etag": '"a"'}, {"last_modified": THEN}])
def test_a_put_that_names_a_validator_has_to_say_whether_it_stored_what_was_sent(
    validator: dict[str, str],
) -> None:
    with pytest.raises(ValueError, match="as_sent: say whether"):
        put_answer(created=True, **validator)  # type: ignore[arg-type]


@pytest.mark.parametrize("location", ["/a\r\nSet-Cookie: b=1", "/a\nb", "/日本", "/a\0"])
def test_a_location_that_would_break_the_answer_is_refused(location: str) -> None:
    with pytest.raises(ValueError, match=r"Location: .* cannot be sent in a header; encode it"):
        put_answer(created=True, location=location)
