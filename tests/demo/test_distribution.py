"""The wheel and the sdist: the shop that `semel demo` runs, and nothing of the laboratory."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
NOT_SHIPPED = {"lab", "tests", "bench", "__pycache__"}


def test_the_wheel_has_the_shop_and_neither_laboratory_nor_tests(tmp_path: Path) -> None:
    [wheel] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        names = [Path(name) for name in archive.namelist()]
    assert Path("semel/demo/shop/app.py") in names
    assert {name.parts[0] for name in names if ".dist-info" not in name.parts[0]} == {"semel"}
    assert not [n for n in names if NOT_SHIPPED & set(n.parts) or n.name.startswith("test_")]


def test_the_sdist_builds_the_wheel_and_has_no_more_than_that(tmp_path: Path) -> None:
    [sdist] = SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(sdist) as archive:
        names = [Path(*Path(name).parts[1:]) for name in archive.getnames()]
    assert Path("src/semel/__init__.py") in names
    assert Path("examples/shop/app.py") in names
    assert not [n for n in names if NOT_SHIPPED & set(n.parts) or n.name.startswith("test_")]
