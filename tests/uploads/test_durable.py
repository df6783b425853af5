"""Files and folders that are on disk when it is said that they are."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from semel.web.uploads.durable import write_whole
from tests.uploads.harness import files_end_at


def test_a_file_that_does_not_fit_leaves_the_one_before_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_whole(path, b"old")
    with files_end_at(100), pytest.raises(OSError, match="too large") as full:
        write_whole(path, bytes(101))
    assert full.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
