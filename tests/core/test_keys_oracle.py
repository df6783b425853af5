"""The key's grammar against another implementation of RFC 9651, and the canonical JSON likewise."""

from __future__ import annotations

import json
import time
from typing import Any

import http_sf
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from semel.core.fingerprint import canonical_json
from semel.core.keys import InvalidKey, derive, hash_key, parse_key, reference

pieces = st.sampled_from(
    ['"', "\\", "a", "b", " ", ";", "=", "1", "-", ".", "?1", ":YQ==:", "*", "@1", '\\"', "%", "é"]
)


def oracle(text: str) -> str | None:
    """What the header says as an RFC 9651 Item that is a String of 1 to 255 visible characters."""
    try:
        value, _ = http_sf.parse(text.encode("latin-1"), tltype="item")
    except Exception:
        return None
    if type(value) is not str or not 1 <= len(value) <= 255 or " " in value:
        return None
    return value


@given(st.lists(pieces, max_size=12).map("".join))
def test_quoted_keys_are_read_as_structured_fields(rest: str) -> None:
    text = '"' + rest
    expected = oracle(text)
    try:
        read = parse_key([text.encode("latin-1")])
    except InvalidKey:
        read = None
    if "," not in text:
        assert read == expected


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=255))
def test_any_visible_key_survives_quoting(key: str) -> None:
    quoted = '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert parse_key([quoted.encode()]) == key


@pytest.mark.parametrize("unit", ['"', "\\", '"a";', "a,", '"a",', ";a=", "\t,", ";;", '"\\'])
def test_junk_takes_linear_time(unit: str) -> None:
    def spent(size: int) -> float:
        value = (unit * size)[:size].encode()
        best = 1.0
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(20):
                try:
                    parse_key([value])
                except InvalidKey:
                    pass
            best = min(best, time.perf_counter() - started)
        return best

    assert spent(4000) < 6 * spent(2000) + 0.001


values: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(values)
def test_canonical_json_is_that_of_rfc_8785(value: Any) -> None:
    assert canonical_json(json.dumps(value).encode()) == rfc8785.dumps(value)


def test_a_key_belongs_to_its_scope() -> None:
    assert hash_key("a", "bc") != hash_key("ab", "c")
    assert len(hash_key("tenant", "key")) == 16
    assert hash_key("tenant", "key").hex() == hash_key("tenant", "key").hex()


def test_derived_keys_depend_on_the_operation_and_the_name_alone() -> None:
    name = hash_key("tenant", "key")
    assert derive(name, "charge") == derive(name, "charge")
    assert (
        len({derive(name, "charge"), derive(name, "mail"), derive(hash_key("t", "k"), "charge")})
        == 3
    )
    assert len(reference(name)) == 12
