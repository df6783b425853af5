"""The file that pages are served: its size, its making, its place in the wheel."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

from semel.web.browser import semel_js

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "semel" / "web" / "browser" / "semel.js"


def test_it_is_smaller_than_four_kilobytes_as_served() -> None:
    assert len(semel_js().body) < 4096


def test_it_was_made_from_the_source_as_it_is_now() -> None:
    stamp = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:8]
    assert semel_js().body.decode().endswith(f"//{stamp}\n"), "run make js"


def test_it_has_no_eval_and_makes_no_inline_script() -> None:
    source = SOURCE.read_text("utf-8")
    for word in ("eval(", "new Function", "innerHTML", "createElement", "javascript:"):
        assert word not in source


def test_version_and_integrity_are_those_of_its_bytes() -> None:
    script = semel_js()
    digest = hashlib.sha384(script.body).digest()
    assert script.integrity == f"sha384-{base64.b64encode(digest).decode()}"
    assert hashlib.sha256(script.body).hexdigest().startswith(script.version)
    assert script.media_type.startswith("text/javascript")


def test_it_is_in_the_wheel(tmp_path: Path) -> None:
    [wheel] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("semel/web/browser/semel.min.js") == semel_js().body
        assert archive.read("semel/web/browser/semel.js") == SOURCE.read_bytes()
