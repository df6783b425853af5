"""RFC 9530 fields: read as http-sf reads them, verified, refused with the reason."""

from __future__ import annotations

import hashlib

import http_sf
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from semel.uploads.digests import (
    Check,
    Hashes,
    InvalidDigest,
    checksum_check,
    digest_checks,
    parse_digests,
    repr_digest,
)

HELLO = b'{"hello": "world"}'  # the content of RFC 9530's examples, appendix B


def test_the_examples_of_rfc_9530_are_understood() -> None:
    field = (
        b"sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:,"
        b"sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwE"
        b"mTHWXvJwew==:"
    )
    checks = digest_checks("Content-Digest", field)
    assert [check.algorithm for check in checks] == ["sha256", "sha512"]
    hashes = Hashes(checks)
    hashes.update((HELLO[:5], HELLO[5:]))
    assert hashes.broken() is None


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_other_bytes_break_the_promise_and_the_field_is_named(algorithm: str) -> None:
    hashes = Hashes((Check("Repr-Digest", algorithm, hashlib.new(algorithm, HELLO).digest()),))
    hashes.update((HELLO + b".",))
    assert hashes.broken() == "Repr-Digest"


ALGORITHM = st.sampled_from(["sha-256", "sha-512", "md5", "*x", "a.b_c", "Sha", "1"])
BASE64 = st.one_of(
    st.binary(max_size=40).map(lambda b: http_sf.ser(b)),
    st.text("Ab0+/=: ", max_size=8).map(lambda t: f":{t}:"),
    st.sampled_from(["1", "?1", "token", '"s"', "(:AA==:)", "", ":AB==:", ":AAA:"]),
)
PARAMETER = st.sampled_from(["", "", "", ";a", ";a=1", "; q=:AA==:", ";A", ";a=", ' ;a="s"'])
MEMBER = st.tuples(ALGORITHM, st.sampled_from(["=", "=", "=", " = ", ""]), BASE64, PARAMETER).map(
    "".join
)
GLUE = st.sampled_from([",", ", ", " ,", "\t,\t", ",,", " ", ""])
FIELD = st.lists(st.tuples(MEMBER, GLUE), max_size=4).map(
    lambda parts: "".join(member + glue for member, glue in parts)
)
TRIMMED = FIELD.map(lambda field: field.rstrip(", \t"))


@settings(max_examples=600, deadline=None)
@given(st.one_of(FIELD, TRIMMED, st.text("sha-256=:;, AQ", max_size=30)))
def test_a_field_is_read_as_the_oracle_reads_it(field: str) -> None:
    value = field.encode("latin-1", "replace")
    repeated: list[str] = []
    try:
        members = http_sf.parse(
            value,
            tltype="dictionary",
            on_duplicate_key=lambda key, where: repeated.append(where),
        )
        assert isinstance(members, dict)
        expected = {str(k): v[0] for k, v in members.items()}
        understood = bool(expected) and all(isinstance(v, bytes) for v in expected.values())
    except http_sf.StructuredFieldError:
        understood = False
    assume("dictionary" not in repeated)  # one that is replaced may be no bytes: refused here
    if understood:
        assert parse_digests("Content-Digest", value) == expected
    else:
        with pytest.raises(InvalidDigest):
            parse_digests("Content-Digest", value)


def test_of_two_members_of_one_name_the_last_counts() -> None:
    field = b"sha-256=:AA==:, md5=:AQ==:, sha-256=:Ag==:"
    assert parse_digests("Content-Digest", field) == {"sha-256": b"\x02", "md5": b"\x01"}


@given(st.binary(max_size=64))
def test_what_is_sent_is_read_back_by_the_oracle(content: bytes) -> None:
    digest = hashlib.sha256(content)
    members = http_sf.parse(repr_digest(digest.hexdigest()), tltype="dictionary")
    assert members == {"sha-256": (digest.digest(), {})}


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (b"md5=:AAAAAAAAAAAAAAAAAAAAAA==:", "no known algorithm"),
        (b"sha-256=:AAAA:", "32 bytes"),
        (b"sha-256=AAAA", "malformed"),
        (b"", "malformed"),
        (b"sha-256=:AAAA:" * 1000, "malformed"),
    ],
)
def test_a_field_that_cannot_be_checked_is_refused(field: bytes, reason: str) -> None:
    with pytest.raises(InvalidDigest, match=reason):
        digest_checks("Content-Digest", field)


@pytest.mark.parametrize("value", ["", "sha1", "sha1 ?", "crc32 AAAA", "sha1 AAAA", "sha1 =AAA"])
def test_a_checksum_that_cannot_be_checked_is_refused(value: str) -> None:
    with pytest.raises(InvalidDigest):
        checksum_check(value)
