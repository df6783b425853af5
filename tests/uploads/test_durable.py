"""Files and folders that are on disk when it is said that they are."""

from __future__ import annotations

import contextlib
import errno
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from semel.web.uploads.durable import write_whole


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """A write beyond ends short, and the next one with EFBIG: what a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # Python ignores SIGXFSZ
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_does_not_fit_leaves_the_one_before_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_whole(path, b"old")
    with files_end_at(100), pytest.raises(OSError, match="too large") as full:
        write_whole(path, bytes(101))
    assert full.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
