from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semel.core.record import (
    TRANSITIONS,
    Response,
    State,
    UnreadableRecord,
    decode_response,
    encode_response,
)

headers = st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=300)), max_size=8).map(
    tuple
)
responses = st.builds(
    Response, st.integers(100, 599), headers, st.none() | st.binary(max_size=2000)
)


@given(responses)
def test_what_is_stored_is_what_comes_back(response: Response) -> None:
    assert decode_response(encode_response(response)) == response


@given(responses, st.data())
def test_a_stored_answer_cut_short_in_its_headers_is_refused(
    response: Response, data: st.DataObject
) -> None:
    encoded = encode_response(response._replace(body=None))
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(UnreadableRecord):
        decode_response(encoded[:cut])


def test_a_newer_form_is_refused_and_named() -> None:
    encoded = b"\x02" + encode_response(Response(200, (), b""))[1:]
    with pytest.raises(UnreadableRecord, match="form 2"):
        decode_response(encoded)


def test_the_binary_form_does_not_change() -> None:
    """Records live across deployments: these bytes are in databases."""
    response = Response(201, ((b"a", b"bc"),), b"body")
    assert encode_response(response).hex() == "010100c90001000100000002" + b"abcbody".hex()
    assert encode_response(Response(204, (), None)).hex() == "010000cc0000"


def test_the_table_of_states_is_closed() -> None:
    known = {None, *State}
    for state, events in TRANSITIONS.items():
        assert state in known
        assert set(events.values()) <= known
    assert set(TRANSITIONS) == known
    assert set(TRANSITIONS[State.PARKED]) == {"settle", "release"}  # by a person or a probe
