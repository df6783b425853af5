"""`docs/guides/as-it-is.md` shows what stands in the applications that are tested here."""

from __future__ import annotations

import re

import pytest

from tests.examples.applications import ROOT

PAGE = (ROOT / "docs" / "guides" / "as-it-is.md").read_text("utf-8")
SECTIONS = {
    folder: section
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)
    for folder in re.findall(r"`examples/(\w+)`", section)[:1]
}


def lines(code: str) -> list[str]:
    """Return the lines of some Python without their indentation and comments."""
    return [bare for line in code.splitlines() if (bare := re.sub(r"\s*# .*", "", line).strip())]


def test_every_application_has_its_section() -> None:
    kept = {path.parent.name for path in (ROOT / "examples").glob("as_it_is_*/*.py")}
    assert kept <= set(SECTIONS)


@pytest.mark.parametrize("folder", SECTIONS)
def test_the_lines_that_semel_adds_stand_in_the_application(folder: str) -> None:
    files = sorted((ROOT / "examples" / folder).rglob("*.py"))
    there = {line for path in files for line in lines(path.read_text("utf-8"))}
    shown = re.search(r"^```python\n(.*?)^```$", SECTIONS[folder], re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert [line for line in lines(shown.group(1)) if line not in there] == []
