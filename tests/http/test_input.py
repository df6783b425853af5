"""The body that has been read, as the file a framework takes it for: small, and in a file."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from semel.web.http.body import IN_MEMORY, Body, Input

LINES = [b"first\n", b"second line\n", b"\n", b"the last has no end"]


@pytest.fixture(params=["empty", "small", "spooled"])
def content(request: pytest.FixtureRequest) -> bytes:
    return {
        "empty": b"",
        "small": b"".join(LINES),
        "spooled": b"".join(LINES[:3]) * (IN_MEMORY // 16) + LINES[3],
    }[request.param]


@pytest.fixture
def body(content: bytes) -> Iterator[Body]:
    made = Body(1, ("POST", b"/", b"", b"", b""))
    for start in range(0, len(content), 50_000):
        made.write(content[start : start + 50_000])
    assert (made.file() is not None) is (len(content) > IN_MEMORY)
    yield made
    made.close()


@pytest.fixture
def given(body: Body) -> Input:
    return Input(body)


def test_it_is_a_binary_file_that_can_only_be_read(given: Input) -> None:
    assert isinstance(given, io.BufferedIOBase)
    assert (given.readable(), given.seekable(), given.writable()) == (True, True, False)
    assert given.closed is False
    assert given.isatty() is False
    for refused in (lambda: given.write(b"x"), lambda: given.truncate(0), given.fileno):
        with pytest.raises(io.UnsupportedOperation):
            refused()


def test_every_way_to_read_gives_the_same_bytes(given: Input, content: bytes) -> None:
    assert given.read() == content
    assert given.read() == b""
    lines = content.splitlines(keepends=True)
    for read in (
        lambda: given.read(None),
        lambda: given.read(-1),
        lambda: b"".join(iter(lambda: given.read(1000), b"")),
        lambda: b"".join(iter(lambda: given.read1(1000), b"")),
        lambda: b"".join(given),
        lambda: b"".join(given.readlines()),
        lambda: b"".join(iter(given.readline, b"")),
    ):
        assert given.seek(0) == 0
        assert read() == content
    given.seek(0)
    assert list(given) == lines
    given.seek(0)
    assert given.readlines() == lines


def test_a_buffer_is_filled(given: Input, content: bytes) -> None:
    for fill in (given.readinto, given.readinto1):
        given.seek(0)
        buffer = bytearray(10)
        assert fill(buffer) == min(10, len(content))
        assert bytes(buffer).rstrip(b"\0") == content[:10]


def test_lines_are_cut_where_asked(given: Input, content: bytes) -> None:
    assert given.readline(3) == content[:3]
    given.seek(0)
    assert given.readlines(1) == content.splitlines(keepends=True)[:1]
    assert next(given, b"") == (b"second line\n" if content else b"")


def test_it_goes_to_any_place(given: Input, content: bytes) -> None:
    assert given.tell() == 0
    assert given.seek(0, io.SEEK_END) == len(content)
    assert given.read(1) == b""
    assert given.seek(3) == given.tell() == 3
    assert given.read(4) == content[3:7]
    given.seek(0)
    assert given.seek(2, io.SEEK_CUR) == 2


def test_a_framework_may_wrap_it(given: Input, content: bytes) -> None:
    """As Django does for uploads, csv readers and the email package do for text."""
    assert io.BufferedReader(given).read() == content  # type: ignore[arg-type]
    given.seek(0)
    text = io.TextIOWrapper(given, "ascii", newline="")
    assert text.read() == content.decode()


def test_closing_it_leaves_the_body_to_its_operation(
    given: Input, body: Body, content: bytes
) -> None:
    with given:
        given.read(1)
    given.close()
    assert given.closed is False
    del given
    assert b"".join(body.chunks()) == content
    assert Input(body).read() == content
