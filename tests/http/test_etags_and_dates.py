"""Entity tags and HTTP dates: made, read, compared; against the grammar and werkzeug."""

from __future__ import annotations

import hashlib
import time
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug.http import http_date
from werkzeug.http import parse_date as werkzeug_date
from werkzeug.http import parse_etags as werkzeug_etags

from semel.web.conditional import (
    Validators,
    etag,
    format_date,
    parse_date,
    parse_tags,
    strong_match,
    version_etag,
    weak_match,
)

NOW = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)
TAG_CHARACTERS = "".join(chr(n) for n in (0x21, *range(0x23, 0x7F), *range(0x80, 0x100)))
opaque = st.text(st.sampled_from(TAG_CHARACTERS), max_size=6)
tags = st.builds(lambda weak, text: f'{weak}"{text}"', st.sampled_from(["", "W/"]), opaque)


# --- made --------------------------------------------------------------------------------------


def test_a_tag_of_content_is_its_sha_256_in_quotes() -> None:
    digest = urlsafe_b64encode(hashlib.sha256(b"tea").digest()).decode().rstrip("=")
    assert etag(b"tea") == f'"{digest}"'
    assert etag(b"tea", weak=True) == f'W/"{digest}"'


@pytest.mark.parametrize(
    ("parts", "tag"),
    [
        ((7,), '"7"'),
        (("a1b2", 7), '"a1b2/7"'),
        (("2026-11-25T12:00:00+00:00",), '"2026-11-25T12:00:00+00:00"'),
        (('"quoted", é',), '"%22quoted%22%2C%20%C3%A9"'),
    ],
)
def test_a_tag_of_a_version_can_be_read_by_people(parts: tuple[str | int, ...], tag: str) -> None:
    assert version_etag(*parts) == tag
    assert version_etag(*parts, weak=True) == f"W/{tag}"
    assert parse_tags(tag) == (tag,)


def test_a_version_needs_a_part() -> None:
    with pytest.raises(ValueError, match="give the row's version"):
        version_etag()


parts = st.lists(st.text("a/%:+2F", max_size=4) | st.text(), min_size=1, max_size=3)


@example(["a/b", "c"], ["a", "b/c"])
@given(parts, parts)
def test_different_versions_have_different_tags(one: list[str], other: list[str]) -> None:
    assert (version_etag(*one) == version_etag(*other)) is (one == other)


# --- read --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "read"),
    [
        ("*", ("*",)),
        (" *\t", ("*",)),
        ('"*"', ('"*"',)),  # a tag that happens to be a star
        ('"a"', ('"a"',)),
        ('W/"a"', ('W/"a"',)),
        ('"a", W/"b","c"', ('"a"', 'W/"b"', '"c"')),
        ('"a,b", "c"', ('"a,b"', '"c"')),
        ('""', ('""',)),
        (',, "a" ,\t, "b",', ('"a"', '"b"')),  # RFC 9110 section 5.6.1.2
        ("", ()),
        (" , ", ()),
        ('"\xe9"', ('"\xe9"',)),
    ],
)
def test_tags_are_read_as_the_grammar_says(field: str, read: tuple[str, ...]) -> None:
    assert parse_tags(field) == read


@pytest.mark.parametrize(
    "field",
    [
        "a",
        '"a',
        'a"',
        '"a" "b"',
        '"a"b',
        '"a", *',
        "**",
        '*, "a"',
        'w/"a"',
        'W / "a"',
        '"a b"',
        "'a'",
        '"a\x7f"',
        '"a\n"',
        '"\\""',
        "W/a",
        '"a";"b"',
    ],
)
def test_what_is_no_list_of_tags_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        parse_tags(field)


@given(st.lists(tags, max_size=5), st.sampled_from([", ", ",", " , ", ", ,"]))
def test_any_list_of_tags_is_read_back(sent: list[str], comma: str) -> None:
    assert parse_tags(comma.join(sent)) == tuple(sent)


@given(st.lists(tags.filter(lambda tag: '""' not in tag), min_size=1, max_size=5))
def test_werkzeug_reads_the_same_tags(sent: list[str]) -> None:
    theirs = werkzeug_etags(", ".join(sent))
    read = parse_tags(", ".join(sent))
    assert {t[1:-1] for t in read if t[0] == '"'} == set(theirs.as_set())
    assert all(theirs.contains_weak(t.removeprefix("W/")[1:-1]) for t in read)


@given(st.text(st.sampled_from('W/"*, \tab'), max_size=20))
def test_any_text_is_read_or_refused_by_the_letter_of_the_grammar(field: str) -> None:
    try:
        read = parse_tags(field)
    except ValueError:
        read = None
    assert read == by_the_letter(field)


def by_the_letter(field: str) -> tuple[str, ...] | None:
    """A reader of its own: character by character, by RFC 9110 sections 5.6.1 and 8.8.3."""
    rest = field.strip(" \t")
    if rest == "*":
        return ("*",)
    found: list[str] = []
    open_for_tag = True
    while rest:
        if rest[0] in " \t":
            rest = rest[1:]
        elif rest[0] == ",":
            rest, open_for_tag = rest[1:], True
        else:
            start = 2 if rest.startswith("W/") else 0
            if not open_for_tag or rest[start : start + 1] != '"':
                return None
            end = rest.find('"', start + 1)
            if end < 0 or any(c in " \t" for c in rest[start + 1 : end]):
                return None
            found.append(rest[: end + 1])
            rest, open_for_tag = rest[end + 1 :], False
    return tuple(found)


@pytest.mark.parametrize("piece", ['"', ",", " ", "W/", '"a",', '"a" ', 'W/"'])
def test_reading_takes_time_in_proportion_to_the_length(piece: str) -> None:
    def spent(size: int) -> float:
        field = piece * (size // len(piece)) + "x"
        best = 1.0
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(5):
                with pytest.raises(ValueError, match="neither"):
                    parse_tags(field)
            best = min(best, time.perf_counter() - started)
        return best

    assert spent(32_000) < 6 * spent(16_000) + 0.001


# --- compared ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "strong", "weak"),
    [  # the table of RFC 9110 section 8.8.3.2
        ('W/"1"', 'W/"1"', False, True),
        ('W/"1"', 'W/"2"', False, False),
        ('W/"1"', '"1"', False, True),
        ('"1"', 'W/"1"', False, True),
        ('"1"', '"1"', True, True),
    ],
)
def test_tags_are_compared_strongly_and_weakly(
    one: str, other: str, strong: bool, weak: bool
) -> None:
    assert (strong_match(one, other), weak_match(one, other)) == (strong, weak)


# --- dates -------------------------------------------------------------------------------------

EXAMPLE = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [  # RFC 9110 section 5.6.7
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        " Sun, 06 Nov 1994 08:49:37 GMT\t",
    ],
)
def test_three_forms_of_a_date_are_read(text: str) -> None:
    assert parse_date(text, NOW) == EXAMPLE


def test_one_form_is_written() -> None:
    east = EXAMPLE.astimezone(timezone(timedelta(hours=9)))
    assert format_date(east) == "Sun, 06 Nov 1994 08:49:37 GMT"
    with pytest.raises(ValueError, match="with its time zone"):
        format_date(EXAMPLE.replace(tzinfo=None))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "0",
        "1994-11-06T08:49:37Z",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 UTC",
        "Sun, 06 Nov 1994 08:49:37 +0000",
        "Sun, 6 Nov 1994 08:49:37 GMT",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 24:00:00 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "sun, 06 nov 1994 08:49:37 gmt",
        "Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT",
    ],
)
def test_what_is_no_http_date_is_none(text: str) -> None:
    assert parse_date(text, NOW) is None


@pytest.mark.parametrize(
    ("short", "year"),
    [("26", 2026), ("75", 2075), ("76", 2076), ("77", 1977), ("99", 1999), ("00", 2000)],
)
def test_a_year_of_two_digits_is_at_most_fifty_years_ahead(short: str, year: int) -> None:
    read = parse_date(f"Sunday, 06-Nov-{short} 08:49:37 GMT", NOW)
    assert read is not None
    assert read.year == year


def test_fifty_years_and_a_moment_ahead_is_the_past() -> None:
    for second, year in ((0, 2076), (1, 1976)):
        read = parse_date(f"Wednesday, 25-Nov-76 12:00:0{second} GMT", NOW)
        assert read is not None
        assert read.year == year
    late = NOW.replace(year=2060)
    assert [
        read.year
        for short in ("05", "15", "60")
        if (read := parse_date(f"Sunday, 06-Nov-{short} 08:49:37 GMT", late))
    ] == [2105, 2015, 2060]


def test_a_leap_second_is_read() -> None:
    assert parse_date("Sat, 31 Dec 2016 23:59:60 GMT") == datetime(
        2016, 12, 31, 23, 59, 59, tzinfo=UTC
    )


@given(st.datetimes(datetime(1000, 1, 1), datetime(9998, 1, 1), timezones=st.just(UTC)))
def test_every_date_is_read_back_and_werkzeug_agrees(moment: datetime) -> None:
    whole = moment.replace(microsecond=0)
    assert format_date(moment) == http_date(whole)
    assert parse_date(format_date(moment)) == whole == werkzeug_date(format_date(moment))
    assert (
        parse_date(
            moment.strftime("%a %b ")
            + f"{moment.day:2}"
            + moment.strftime(" %H:%M:%S ")
            + f"{moment.year:04}"
        )
        == whole
    )


# --- validators --------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["abc", '"a', "*", '"a"\r\nX: "b"', "", "W/a", '"a b"'])
def test_a_tag_that_could_not_be_sent_is_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="etag: give it as it stands in a header"):
        Validators(tag)


def test_a_date_without_a_zone_is_refused_and_a_fraction_is_cut() -> None:
    with pytest.raises(ValueError, match="last_modified"):
        Validators(last_modified=datetime(2026, 1, 1))
    assert Validators(last_modified=NOW + timedelta(seconds=0.9)).last_modified == NOW
