"""Files and folders that are on disk when it is said that they are."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from semel.uploads import DiskStorage, Uploads
from semel.uploads.durable import make_folder, write_whole
from tests.uploads.harness import files_end_at

NAME = "ab" * 32


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file and folder that was synced, in order."""
    paths: list[Path] = []
    fsync = os.fsync

    def spy(file: int) -> None:
        fsync(file)
        paths.append(Path(os.readlink(f"/proc/self/fd/{file}")))

    monkeypatch.setattr(os, "fsync", spy)
    return paths


def test_a_file_that_does_not_fit_leaves_the_one_before_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_whole(path, b"old")
    with files_end_at(100), pytest.raises(OSError, match="too large") as full:
        write_whole(path, bytes(101))
    assert full.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_durable_with_all_that_had_to_be_made_above_it(
    tmp_path: Path, synced: list[Path]
) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]


@pytest.mark.parametrize("made_by_somebody_else", [False, True])
def test_the_folders_of_uploads_are_durable_before_anything_is_in_them(
    tmp_path: Path, synced: list[Path], made_by_somebody_else: bool
) -> None:
    folder = tmp_path / "u"
    if made_by_somebody_else:  # who died before they were durable
        for name in ("partial", "state"):
            (folder / name).mkdir(parents=True)
    Uploads(DiskStorage(tmp_path / "o"), folder)
    assert {tmp_path, folder} <= set(synced)
    assert all((folder / name).is_dir() for name in ("partial", "state"))


@pytest.mark.parametrize("made_by_somebody_else", [False, True])
def test_a_shelf_is_durable_before_an_object_is_on_it_and_is_synced_once(
    tmp_path: Path, synced: list[Path], made_by_somebody_else: bool
) -> None:
    storage, source = DiskStorage(tmp_path / "o"), tmp_path / "file"
    shelf = storage.folder / NAME[:2]
    source.write_bytes(b"x")
    if made_by_somebody_else:
        shelf.mkdir(parents=True)
    storage.put(NAME, source)
    assert synced[:2] == [tmp_path, storage.folder]
    assert synced[-1] == shelf
    synced.clear()
    storage.put(NAME, source)
    assert synced == [shelf]
    storage.remove(NAME)
    shelf.rmdir()
    storage.put(NAME, source)
    assert storage.folder in synced
