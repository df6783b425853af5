from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semel.core.fingerprint import JSON, MAX_JSON_BODY, RAW, canonical_json, hasher


def of(body: bytes, *, algorithm: int = RAW, chunk: int = 1 << 30, **changes: bytes | str) -> bytes:
    asked = {"method": "POST", "path": b"/x", "query": b"", "content_type": b"", **changes}
    hashing = hasher(algorithm, **asked)  # type: ignore[arg-type]
    for start in range(0, len(body), chunk):
        hashing.update(body[start : start + chunk])
    return hashing.digest()


def test_every_part_of_the_request_counts() -> None:
    requests = [
        of(b"b"),
        of(b"B"),
        of(b"b", method="PATCH"),
        of(b"b", path=b"/y"),
        of(b"b", query=b"q"),
        of(b"b", content_type=b"text/plain"),
        of(b"b", content_encoding=b"gzip"),
        of(b"b", algorithm=JSON),
    ]
    assert len(set(requests)) == len(requests)


def test_nothing_can_pose_as_its_neighbour() -> None:
    assert of(b"", path=b"/x", query=b"y") != of(b"", path=b"/xy", query=b"")
    assert of(b"", query=b"", content_type=b"q") != of(b"", query=b"q", content_type=b"")


def form(boundary: bytes, value: bytes) -> bytes:
    return b"--%b\r\nContent-Disposition: form-data; name=a\r\n\r\n%b\r\n--%b--\r\n" % (
        boundary,
        value,
        boundary,
    )


@given(st.binary(max_size=200), st.integers(1, 50))
def test_a_multipart_resend_with_another_boundary_is_the_same_request(
    value: bytes, chunk: int
) -> None:
    one, two = b"----WebKitFormBoundaryA1", b"xyzzy-2"
    if b"--" + one in value or b"--" + two in value:
        return
    first = of(form(one, value), content_type=b"multipart/form-data; boundary=" + one)
    again = of(
        form(two, value), content_type=b'multipart/form-data; boundary="%b"' % two, chunk=chunk
    )
    assert first == again


def test_a_multipart_form_with_another_value_is_another_request() -> None:
    kind = b"multipart/form-data; boundary=x"
    assert of(form(b"x", b"1"), content_type=kind) != of(form(b"x", b"2"), content_type=kind)
    assert of(b"a--xb", content_type=kind) != of(b"ab--x", content_type=kind)


@given(st.binary(max_size=300), st.integers(1, 40))
def test_pieces_do_not_matter(body: bytes, chunk: int) -> None:
    assert of(body) == of(body, chunk=chunk)
    assert of(body, algorithm=JSON) == of(body, algorithm=JSON, chunk=chunk)


def test_json_serialised_anew_is_the_same_request() -> None:
    one, two = b'{"b": 1.0, "a": [1e2, "\\u00e9"]}', '{"a":[100,"é"],"b":1}'.encode()
    assert of(one, algorithm=JSON) == of(two, algorithm=JSON)
    assert of(one) != of(two)


@pytest.mark.parametrize(
    "body",
    [
        b"no json",
        b'{"a":1,"a":2}',
        b'{"amount": 12345678901234567}',
        b"1e400",
        b"NaN",
        b'"\\ud800"',
        b"[" * 100_000,
    ],
)
def test_json_without_a_safe_canonical_form_counts_byte_by_byte(body: bytes) -> None:
    assert canonical_json(body) is None
    assert of(body, algorithm=JSON) != of(body + b" ", algorithm=JSON)


def test_two_large_numbers_are_never_called_the_same() -> None:
    one, two = b"12345678901234567", b"12345678901234568"
    assert of(one, algorithm=JSON) != of(two, algorithm=JSON)


def test_json_over_the_limit_counts_byte_by_byte() -> None:
    padding = b" " * MAX_JSON_BODY
    assert of(b"[1]" + padding, algorithm=JSON) != of(padding + b"[1]", algorithm=JSON)


def test_fingerprints_do_not_change_between_versions() -> None:
    """They are in databases: a changed one would refuse every retry across a deployment."""
    assert of(b"body").hex() == (
        "010128142604373599ca8f90bc5877410385cba8efebec92edc685855f7a39e014"
    )


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match="99"):
        of(b"", algorithm=99)
