"""The rules of the house, on the source as it stands."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict

import pytest

from docs.imports import ROOT, Module, circles, modules
from semel.testing.programs import DEBIAN

SEMEL = modules()
LAB = modules("lab", ROOT)
LINES = 450


def test_no_modules_import_each_other() -> None:
    assert not circles({name: module.imports for name, module in SEMEL.items()})


def test_a_file_can_be_read_in_one_sitting() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sorted((ROOT / "src").rglob("*"))
        if path.suffix in (".py", ".sql", ".lua", ".js") and "migrations" not in path.parts
        if (lines := len(path.read_text("utf-8").splitlines())) > LINES
    }
    assert not long


def test_a_class_has_a_name_of_its_own() -> None:
    """Models of Django are named for what administrators see; `Meta` is Django's own."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, module in (SEMEL | LAB).items():
        if name != "semel.web.django.models":
            for node in ast.walk(module.tree):
                if isinstance(node, ast.ClassDef) and node.name != "Meta":
                    places[node.name].append(name)
    assert not {name: where for name, where in places.items() if len(where) > 1}


def first_lines(found: dict[str, Module]) -> dict[str, str]:
    return {
        name: (ast.get_docstring(module.tree) or "").partition("\n")[0]
        for name, module in found.items()
    }


def test_a_module_says_what_it_is() -> None:
    riddles = {
        name: line
        for name, line in first_lines(SEMEL | LAB).items()
        if re.match(r"(What|Where|Which|Who|How)\b", line)
    }
    assert not riddles


def test_every_module_has_a_docstring() -> None:
    empty = ("management", "commands", "migrations", "0001_initial")
    silent = [name for name, line in first_lines(SEMEL | LAB).items() if not line]
    assert not [name for name in silent if name.rpartition(".")[2] not in empty]


def contracts() -> dict[str, list[dict[str, object]]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    kinds: dict[str, list[dict[str, object]]] = defaultdict(list)
    for contract in settings["tool"]["importlinter"]["contracts"]:
        kinds[contract["type"]].append(contract)
    return kinds


@pytest.mark.parametrize("package", ["semel", "semel.stores", "semel.web"])
def test_every_part_of_a_package_has_its_floor(package: str) -> None:
    """A module that is in no layer may import what it likes, and nobody notices."""
    floors = {
        part.strip().removeprefix(f"{package}.")
        for contract in contracts()["layers"]
        if contract.get("containers", [""]) == ([package] if package != "semel" else [""])
        for layer in contract["layers"]  # type: ignore[attr-defined]
        for part in layer.split("|")
    }
    depth = package.count(".") + 1
    parts = {
        name.split(".")[depth]
        for name in SEMEL
        if name.startswith(f"{package}.") and name.count(".") >= depth
    }
    assert parts == floors


def test_the_core_is_forbidden_what_it_must_not_know() -> None:
    forbidden = [c for c in contracts()["forbidden"] if c["source_modules"] == ["semel.core"]]
    assert len(forbidden) == 2


def test_ci_installs_every_program_that_tests_need() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    installed = dict(re.findall(r"([\w-]+):([\w-]+)", script.split("for need in")[1].split(";")[0]))
    assert installed == DEBIAN


def test_the_laboratory_is_not_in_the_package() -> None:
    assert not [name for name in SEMEL if "lab" in {*name.split("."), *SEMEL[name].imports}]
    assert not [p for p in (ROOT / "src").iterdir() if p.name != "semel" and p.is_dir()]
    for module in SEMEL.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "lab", module.path
