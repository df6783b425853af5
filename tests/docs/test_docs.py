"""Every code block in the documentation runs, and what follows from the code is up to date."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$|^<!-- check\n(.*?)^-->$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """Return the Python of a page, block by block, with the hidden checks between."""
    text = page.read_text("utf-8")
    found = []
    for match in BLOCK.finditer(text):
        code = match.group(2) if match.group(1) == "python" else match.group(3)
        if code:
            found.append((text.count("\n", 0, match.start()) + 1, code))
    return found


OWN_MODULES = ("shop", "shop.models")
"""Modules that a page makes of its own, and that are another's elsewhere: `examples/shop`."""


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_code_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    # FastAPI looks annotations up in the module of the handler.
    module = type(sys)("page")
    module.__dict__.update(namespace)
    monkeypatch.setitem(sys.modules, "page", module)
    before = {name: sys.modules.get(name) for name in OWN_MODULES}
    try:
        for line, code in blocks(page):
            exec(compile("\n" * line + code, str(page), "exec"), module.__dict__)
    finally:
        for name, known in before.items():
            sys.modules.pop(name, None)
            if known is not None:
                sys.modules[name] = known


def test_there_are_code_blocks() -> None:
    assert sum(len(blocks(page)) for page in PAGES) > 8


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date() -> None:
    for path, text in generator().pages().items():
        assert path.read_text("utf-8") == text, f"{path}: run python docs/generate.py"


def test_every_problem_has_its_page_and_every_page_its_problem() -> None:
    known = generator().CATALOGUE
    pages = {page.stem for page in (ROOT / "docs" / "problems").glob("*.md")} - {"index"}
    assert pages == {problem.slug for problem in known}


def test_every_probe_of_the_table_is_a_test() -> None:
    from docs.probes_table import PROBES

    tests = (ROOT / "tests" / "probes" / "test_probes.py").read_text("utf-8")
    tested = {int(number) for number in re.findall(r"def test_probe_(\d+)_", tests)}
    assert set(PROBES) <= tested


def test_relative_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "problems" / "in-flight" / "index.html").exists()
