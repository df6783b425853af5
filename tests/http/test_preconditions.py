"""Preconditions in the order of RFC 9110 section 13.2.2: a table, an oracle, other libraries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.staticfiles import StaticFiles
from werkzeug.http import is_resource_modified

from semel.core import problems
from semel.web.conditional import (
    NotMet,
    Preconditions,
    Validators,
    Verdict,
    evaluate,
    format_date,
    get_answer,
)

THEN = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)
EARLIER, LATER = THEN - timedelta(seconds=1), THEN + timedelta(seconds=1)
OLD, SAME, NEW = (format_date(moment) for moment in (EARLIER, THEN, LATER))
HERE = Validators('"a"', THEN)
WEAK = Validators('W/"a"', THEN)
BARE = Validators()
GONE = None
GO, KNOWN, NO, MUST = Verdict.PROCEED, Verdict.NOT_MODIFIED, Verdict.FAILED, Verdict.REQUIRED

M, N, S, U = "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"
TABLE: list[tuple[str, dict[str, str], Validators | None, Verdict]] = [
    # nothing is asked
    ("GET", {}, HERE, GO),
    ("PUT", {}, HERE, GO),
    ("PUT", {}, GONE, GO),
    # 1. If-Match
    ("PUT", {M: '"a"'}, HERE, GO),
    ("PUT", {M: '"b", "a"'}, HERE, GO),
    ("PUT", {M: '"b"'}, HERE, NO),
    ("PUT", {M: 'W/"a"'}, HERE, NO),  # strong comparison
    ("PUT", {M: 'W/"a"'}, WEAK, NO),
    ("PUT", {M: '"a"'}, WEAK, NO),
    ("PUT", {M: "*"}, HERE, GO),
    ("PUT", {M: "*"}, WEAK, GO),
    ("PUT", {M: "*"}, BARE, GO),
    ("PUT", {M: "*"}, GONE, NO),
    ("PUT", {M: '"a"'}, GONE, NO),
    ("PUT", {M: '"a"'}, BARE, NO),
    ("PUT", {M: '"*"'}, HERE, NO),  # a tag, not the star
    ("PUT", {M: ""}, HERE, NO),  # no tag matches
    ("DELETE", {M: '"b"'}, HERE, NO),
    ("DELETE", {M: '"a"'}, GONE, NO),
    ("PATCH", {M: '"a"'}, HERE, GO),
    ("POST", {M: '"b"'}, HERE, NO),
    ("GET", {M: '"b"'}, HERE, NO),
    ("GET", {M: '"a"'}, HERE, GO),
    # 2. If-Unmodified-Since, without If-Match
    ("PUT", {U: SAME}, HERE, GO),
    ("PUT", {U: NEW}, HERE, GO),
    ("PUT", {U: OLD}, HERE, NO),
    ("GET", {U: OLD}, HERE, NO),
    ("PUT", {U: OLD}, BARE, GO),  # it has no date
    ("PUT", {U: OLD}, GONE, GO),
    ("PUT", {U: "yesterday"}, HERE, GO),  # ignored: no date
    ("PUT", {U: f"{OLD}, {OLD}"}, HERE, GO),
    ("PUT", {M: '"a"', U: OLD}, HERE, GO),  # ignored: If-Match decides
    ("PUT", {M: '"b"', U: NEW}, HERE, NO),
    # 3. If-None-Match
    ("GET", {N: '"a"'}, HERE, KNOWN),
    ("HEAD", {N: '"a"'}, HERE, KNOWN),
    ("GET", {N: 'W/"a"'}, HERE, KNOWN),  # weak comparison
    ("GET", {N: '"a"'}, WEAK, KNOWN),
    ("GET", {N: '"b", "a"'}, HERE, KNOWN),
    ("GET", {N: '"b"'}, HERE, GO),
    ("GET", {N: "*"}, HERE, KNOWN),
    ("GET", {N: "*"}, BARE, KNOWN),
    ("GET", {N: '"a"'}, BARE, GO),
    ("GET", {N: ""}, HERE, GO),
    ("GET", {N: "unquoted"}, HERE, GO),  # ignored: the whole is never wrong
    ("PUT", {N: "*"}, HERE, NO),
    ("PUT", {N: "*"}, BARE, NO),
    ("PUT", {N: "*"}, GONE, GO),
    ("PUT", {N: '"a"'}, HERE, NO),
    ("PUT", {N: 'W/"a"'}, HERE, NO),
    ("PUT", {N: '"b"'}, HERE, GO),
    ("DELETE", {N: "*"}, HERE, NO),
    ("POST", {N: "*"}, GONE, GO),
    # 4. If-Modified-Since, of GET and HEAD, without If-None-Match
    ("GET", {S: SAME}, HERE, KNOWN),
    ("GET", {S: NEW}, HERE, KNOWN),
    ("GET", {S: OLD}, HERE, GO),
    ("HEAD", {S: SAME}, HERE, KNOWN),
    ("GET", {S: SAME}, BARE, GO),
    ("GET", {S: "yesterday"}, HERE, GO),
    ("PUT", {S: SAME}, HERE, GO),
    ("GET", {N: '"b"', S: SAME}, HERE, GO),  # ignored: If-None-Match decides
    ("GET", {N: '"a"', S: OLD}, HERE, KNOWN),
    ("GET", {N: "unquoted", S: SAME}, HERE, KNOWN),
    # together: what comes first in the order decides
    ("GET", {M: '"b"', N: '"a"'}, HERE, NO),
    ("GET", {M: '"a"', N: '"a"'}, HERE, KNOWN),
    ("PUT", {M: '"a"', N: '"a"'}, HERE, NO),
    ("PUT", {M: "*", N: "*"}, GONE, NO),
    ("GET", {U: OLD, N: '"a"'}, HERE, NO),
    ("GET", {U: SAME, S: SAME}, HERE, KNOWN),
    # section 13.2.1: no conditions for these, nor for what is answered 404 without them
    ("OPTIONS", {M: '"b"', N: "*"}, HERE, GO),
    ("TRACE", {M: '"b"'}, HERE, GO),
    ("GET", {M: '"a"'}, GONE, GO),
    ("HEAD", {N: "*"}, GONE, GO),
]


def asked(method: str, headers: dict[str, str]) -> Preconditions:
    fields = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Preconditions.from_headers(method, fields)


@pytest.mark.parametrize(("method", "headers", "current", "verdict"), TABLE)
def test_the_preconditions_of_a_request_decide_in_the_order_of_the_rfc(
    method: str, headers: dict[str, str], current: Validators | None, verdict: Verdict
) -> None:
    assert evaluate(asked(method, headers), current) is verdict
    if current == HERE and not any("Since" in name for name in headers):
        assert evaluate(asked(method, headers), '"a"') is verdict  # the tag alone


@pytest.mark.parametrize(
    ("method", "headers", "current", "verdict"),
    [
        ("PUT", {}, HERE, MUST),
        ("PUT", {}, GONE, MUST),
        ("PATCH", {}, HERE, MUST),
        ("DELETE", {}, HERE, MUST),
        ("POST", {}, HERE, MUST),
        ("PUT", {M: '"a"'}, HERE, GO),
        ("PUT", {M: '"b"'}, HERE, NO),
        ("PUT", {M: "*"}, HERE, GO),
        ("PUT", {N: "*"}, GONE, GO),
        ("PUT", {N: "*"}, HERE, NO),
        ("PUT", {N: '"b"'}, HERE, MUST),  # guards against nothing that others write
        ("PUT", {U: SAME}, HERE, MUST),  # too coarse
        ("PUT", {U: OLD}, HERE, MUST),
        ("GET", {}, HERE, GO),
        ("HEAD", {}, HERE, GO),
        ("OPTIONS", {}, HERE, GO),
    ],
)
def test_a_change_that_must_be_conditional_is_refused_without_a_condition(
    method: str, headers: dict[str, str], current: Validators | None, verdict: Verdict
) -> None:
    assert evaluate(asked(method, headers), current, require_match=True) is verdict


# --- against an oracle --------------------------------------------------------------------------

MOMENTS = st.sampled_from([EARLIER, THEN, LATER])
TAGS = st.sampled_from(['"a"', '"b"', 'W/"a"', 'W/"b"', '"*"'])
FIELDS = st.one_of(
    st.just(("*",)), st.lists(TAGS, max_size=3).map(tuple), st.none(), st.none(), st.none()
)
REQUESTS = st.builds(
    Preconditions,
    st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "LOCK"]),
    FIELDS,
    FIELDS,
    st.none() | MOMENTS,
    st.none() | MOMENTS,
)
STATES = st.none() | st.builds(
    Validators, st.none() | st.sampled_from(['"a"', '"b"', 'W/"a"']), st.none() | MOMENTS
)


def oracle(request: Preconditions, state: Validators | None, must: bool) -> int:
    """Written from the text: each condition of section 13.1 as True, False, or None (not there or
    ignored), then the six steps of section 13.2.2."""
    if request.method in {"CONNECT", "OPTIONS", "TRACE"}:
        return 200
    safe = request.method in {"GET", "HEAD"}
    if state is None and safe:
        return 200  # the answer without conditions is a 404, so they are ignored: 13.2.1

    def opaque(tag: str) -> str:
        return tag[2:] if tag[:2] == "W/" else tag

    if_match = if_none_match = if_modified = if_unmodified = None
    if request.if_match is not None:  # 13.1.1
        if request.if_match == ("*",):
            if_match = state is not None
        else:
            strong = state is not None and state.etag is not None and state.etag[0] == '"'
            if_match = strong and state is not None and state.etag in request.if_match
    if request.if_none_match is not None:  # 13.1.2
        if request.if_none_match == ("*",):
            if_none_match = state is None
        elif state is None or state.etag is None:
            if_none_match = True
        else:
            if_none_match = opaque(state.etag) not in map(opaque, request.if_none_match)
    date = None if state is None else state.last_modified
    if request.if_modified_since and not request.if_none_match and safe and date:  # 13.1.3
        if request.if_none_match is None:
            if_modified = not date <= request.if_modified_since
    if request.if_unmodified_since and request.if_match is None and date:  # 13.1.4
        if_unmodified = date <= request.if_unmodified_since

    if must and not safe:  # RFC 6585 section 3
        if request.if_match is None and request.if_none_match != ("*",):
            return 428
    if if_match is False:  # 1
        return 412
    if if_match is None and if_unmodified is False:  # 2
        return 412
    if if_none_match is False:  # 3
        return 304 if safe else 412
    if safe and if_none_match is None and if_modified is False:  # 4
        return 304
    return 200  # 6


@given(REQUESTS, STATES, st.booleans())
def test_the_verdict_is_that_of_an_oracle_written_from_the_text(
    request: Preconditions, state: Validators | None, must: bool
) -> None:
    assert evaluate(request, state, require_match=must).value == oracle(request, state, must)


def fields_of(request: Preconditions) -> dict[str, str]:
    fields = {}
    for name, tags in ((M, request.if_match), (N, request.if_none_match)):
        if tags is not None:
            fields[name] = ", ".join(tags)
    for name, date in ((S, request.if_modified_since), (U, request.if_unmodified_since)):
        if date is not None:
            fields[name] = format_date(date)
    return fields


@given(REQUESTS)
def test_what_was_sent_is_what_is_read(request: Preconditions) -> None:
    fields = fields_of(request)
    assert asked(request.method, fields) == request
    environ = {"HTTP_" + n.upper().replace("-", "_"): value for n, value in fields.items()}
    assert (
        Preconditions.from_environ({"REQUEST_METHOD": request.method, **environ, "x": object()})
        == request
    )


GETS = st.builds(
    Preconditions,
    st.just("GET"),
    st.none(),
    st.none() | st.just(("*",)) | st.lists(TAGS, min_size=1, max_size=3).map(tuple),
    st.none() | MOMENTS,
)
FILES = st.builds(Validators, st.sampled_from(['"a"', '"b"']), MOMENTS)


@given(GETS, FILES)
def test_werkzeug_and_starlette_agree_on_not_modified(
    request: Preconditions, state: Validators
) -> None:
    ours = evaluate(request, state) is KNOWN
    fields = fields_of(request)
    environ = {"HTTP_" + n.upper().replace("-", "_"): value for n, value in fields.items()}
    theirs = not is_resource_modified(
        {"REQUEST_METHOD": "GET", **environ}, etag=state.etag, last_modified=state.last_modified
    )
    if request.if_none_match != ("*",):  # werkzeug does not read it
        assert ours == theirs
    static = StaticFiles(directory=".", check_dir=False)
    answer = Headers(raw=list(state.fields()))
    # Starlette goes on to If-Modified-Since where If-None-Match says "modified".
    if request.if_none_match is None or request.if_modified_since is None:
        assert ours == static.is_not_modified(answer, Headers(fields))


@given(st.builds(Preconditions, st.just("GET"), FIELDS), FILES)
def test_werkzeug_agrees_on_if_match(request: Preconditions, state: Validators) -> None:
    if request.if_match in (
        None,
        (),
        ("*",),
    ):  # where it takes "none sent" and "none matches" alike
        return
    environ = {"REQUEST_METHOD": "GET", "HTTP_IF_MATCH": fields_of(request)[M]}
    theirs = not is_resource_modified(environ, etag=state.etag)
    assert (evaluate(request, state) is NO) == theirs


# --- as headers are really sent -----------------------------------------------------------------


def test_a_list_in_several_lines_is_one_list() -> None:
    lines = [(b"If-Match", b'"a"'), (b"host", b"x"), (b"if-match", b'W/"b", "c"')]
    assert Preconditions.from_headers("PUT", lines).if_match == ('"a"', 'W/"b"', '"c"')
    dates = [(b"if-unmodified-since", SAME.encode())] * 2
    assert Preconditions.from_headers("PUT", dates).if_unmodified_since is None


@pytest.mark.parametrize(
    ("method", "name"), [("PUT", M), ("GET", M), ("PUT", N), ("DELETE", N), ("POST", N)]
)
@pytest.mark.parametrize("value", ["abc", '"a', '*, "a"', "'a'"])
def test_nothing_is_done_under_a_condition_that_cannot_be_read(
    method: str, name: str, value: str
) -> None:
    with pytest.raises(NotMet) as told:
        asked(method, {name: value})
    assert told.value.status == 400
    answer = told.value.response("https://example.org/")
    assert b"https://example.org/precondition-invalid" in (answer.body or b"")
    assert f"Nothing was done: {name} is neither".encode() in (answer.body or b"")


@pytest.mark.parametrize(
    ("headers", "state", "must", "problem"),
    [
        ({M: '"b"'}, HERE, False, problems.PRECONDITION_FAILED),
        ({N: "*"}, HERE, True, problems.PRECONDITION_FAILED),
        ({}, HERE, True, problems.PRECONDITION_REQUIRED),
    ],
)
def test_a_refusal_is_a_problem_that_no_cache_keeps(
    headers: dict[str, str], state: Validators, must: bool, problem: Any
) -> None:
    with pytest.raises(NotMet, match=str(problem.status)) as told:
        asked("PUT", headers).require(state, require_match=must)
    assert told.value.response() == problem.response()
    assert (b"cache-control", b"no-store") in told.value.response().headers


def test_what_is_asked_only_of_reads_leaves_a_write_unconditional() -> None:
    assert not asked("PUT", {S: SAME}).given
    assert not asked("PUT", {}).given
    assert all(asked("PUT", {name: value}).given for name, value in ((M, "*"), (N, "*"), (U, SAME)))


HEADERS = {
    "Content-Type": "text/plain",
    "Content-Location": "/a.en",
    "Cache-Control": "private",
    "Vary": "Accept",
    "Expires": NEW,
    "X-Other": "1",
}


def test_a_304_has_the_headers_that_caches_need_and_no_others() -> None:
    for headers in ({N: '"a"'}, {S: SAME}):
        with pytest.raises(NotMet) as told:
            get_answer(
                asked("GET", headers), b"tea", etag='"a"', last_modified=THEN, headers=HEADERS
            )
        status, fields, body = told.value.response()
        assert (status, body) == (304, b"")
        assert dict(fields) == {
            b"etag": b'"a"',
            b"content-location": b"/a.en",
            b"cache-control": b"private",
            b"vary": b"Accept",
            b"expires": NEW.encode(),
        }
    with pytest.raises(NotMet) as told:
        get_answer(asked("GET", {S: SAME}), b"tea", last_modified=THEN)
    assert told.value.response().headers == ((b"last-modified", SAME.encode()),)
