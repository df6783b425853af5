"""The recipes of `docs/architecture.md`: how many files a change touches, counted on the source."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.generate import CATALOGUE
from docs.imports import ROOT, modules

SEMEL = modules()
STORES = ("memory", "postgres", "redis", "sqlalchemy", "sqlite")
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")

# A field that a record holds, step by step: the file, what stands there, what is put there.
FIELD = [
    (
        "core/record.py",
        '    """Why a parked record is parked."""\n',
        "    note: str | None = None\n",
    ),
    ("core/record.py", '    "reason": str,\n', '    "note": str,\n'),
    ("core/record.py", "lease, due, purge, answer, reason", ", note"),
    ("core/record.py", "if answer is not None else None,\n        reason,\n", "        note,\n"),
    ("stores/portable/schema.py", "MIGRATION: Final = ", "1 + "),
    (
        "stores/portable/schema.py",
        'PortableColumn("reason", ColumnType.TEXT, null=True),\n',
        '        PortableColumn("note", ColumnType.TEXT, null=True, since=2),\n',
    ),
]
MIGRATIONS = {
    "stores/sqlite/sql/migrations": "alter table semel_record add column note text;",
    "stores/postgres/sql/migrations": "alter table semel_record add column note text;\n"
    "alter type semel_found add attribute note text;\n",
}
DJANGO = """
from django.db import migrations, models

from semel.web.django.tables import migrate_tables


class Migration(migrations.Migration):
    dependencies = [("semel", "0001_initial")]
    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunPython(migrate_tables)],
            state_operations=[
                migrations.AddField("storedrecord", "note", models.TextField(null=True))
            ],
        )
    ]
"""
CHECK = """
from pathlib import Path

from tests.stores.contract import STORES
from semel.core.commands import Claim, Lookup
from semel.testing.store_contract import ManualClock

import pytest


@pytest.mark.parametrize("name", STORES)
def test_the_field_is_there(name: str, tmp_path: Path) -> None:
    store = STORES[name](tmp_path, ManualClock())
    store.start()
    store.execute(Claim(b"k" * 16, b"f", 30.0, b"me"))
    assert store.execute(Lookup(b"k" * 16)).record.note is None
    store.stop()


def test_what_is_written_into_it_comes_back(tmp_path: Path) -> None:
    import sqlite3

    store = STORES["sqlite"](tmp_path, ManualClock())
    store.start()
    store.execute(Claim(b"k" * 16, b"f", 30.0, b"me"))
    with sqlite3.connect(tmp_path / "records.db") as connection:
        connection.execute("update semel_record set note = 'hello'")
    assert store.execute(Lookup(b"k" * 16)).record.note == "hello"
    store.stop()
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("src", "tests", "lab", "docs", "examples"):
        ignored = shutil.ignore_patterns("__pycache__", "node_modules", "*.db*")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def files(folder: Path) -> dict[Path, str]:
    kinds = ("*.py", "*.sql", "*.lua")
    return {path: path.read_text("utf-8") for kind in kinds for path in folder.rglob(kind)}


@pytest.mark.slow
def test_a_field_of_a_record_touches_five_files(copy: Path) -> None:
    """The recipe is followed in a copy of the sources, and every store gives the field back."""
    source = copy / "src" / "semel"
    before = files(source)
    for file, there, added in FIELD:
        text = (source / file).read_text("utf-8")
        assert text.count(there) == 1, (file, there)
        (source / file).write_text(text.replace(there, there + added), "utf-8")
    for folder, script in MIGRATIONS.items():
        number = 1 + len(list((source / folder).glob("*.sql")))
        if "postgres" in folder:
            script += "".join(functions_of(source / folder))
        (source / folder / f"{number:04}_note.sql").write_text(script, "utf-8")
    (source / "web" / "django" / "migrations" / "0002_note.py").write_text(DJANGO, "utf-8")
    (copy / "tests" / "stores" / "test_note.py").write_text(CHECK, "utf-8")
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/stores/test_note.py"]
    run = subprocess.run(
        [sys.executable, *command],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy / "src"), "CI": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    after = files(source)
    touched = [path for path in after if before.get(path) != after[path]]
    assert len(touched) == stated("A field of a record") <= 6


def functions_of(folder: Path) -> Iterator[str]:
    """Give PostgreSQL's functions that return a record once more, with the field."""
    newest: dict[str, str] = {}
    for path in sorted(folder.glob("*.sql")):
        text = path.read_text("utf-8")
        for function in re.findall(r"^create (?:or replace )?function.*?\$\$;$", text, re.M | re.S):
            newest[re.findall(r"function (\w+)", function)[0]] = function
    for function in newest.values():
        if "setof semel_found" in function:
            whole = re.sub(r"^create function", "create or replace function", function)
            yield re.sub(
                r"(return query select r\.key.*?)(\n\s+from )", r"\1, r.note\2", whole, flags=re.S
            )


def stated(recipe: str) -> int:
    """Return the number of files that the page states."""
    return int(re.findall(rf"^\*\*{recipe}\*\* \(\D*(\d+)", PAGE, re.M)[0])


@pytest.mark.parametrize("problem", CATALOGUE, ids=lambda problem: problem.slug)
def test_a_problem_type_is_defined_in_one_file(problem: object) -> None:
    slug = problem.slug  # type: ignore[attr-defined]
    named = {
        path.name
        for folder in ("src", "docs")
        for path in (ROOT / folder).rglob("*.py")
        if f'"{slug}"' in path.read_text("utf-8")
    }
    assert named <= {"problems.py", "generate.py"}  # the latter where its text needs an example


def importers(name: str) -> set[str]:
    """Return the modules outside a package that import something of it."""
    inside = (name, f"{name}.")
    return {
        other
        for other, module in SEMEL.items()
        if not other.startswith(inside)
        if any(imported.startswith(inside) for imported in module.imports)
    }


@pytest.mark.parametrize("kind", STORES)
def test_only_the_factory_knows_a_store(kind: str) -> None:
    """What it needs elsewhere is data: its extra and its floor, its tests, its guide.

    Stores that build on SQLite's file are on the floor above it.
    """
    known = importers(f"semel.stores.{kind}") - {"semel.testing.store_contract.model"}
    if kind == "sqlalchemy":
        known -= SESSIONS
    assert {name for name in known if not name.startswith("semel.stores.")} <= {"semel.stores"}
    assert stated("A store") == 5


SESSIONS = {
    *("semel.sessions.joining", "semel.sessions.watch"),
    *("semel.web.fastapi.sessions", "semel.testing.joined_sqlalchemy"),
}
"""What puts SQLAlchemy's sessions into its store's transactions."""


@pytest.mark.parametrize("name", ["fastapi", "flask"])
def test_nobody_knows_a_framework(name: str) -> None:
    assert importers(f"semel.web.{name}") == set()


def test_the_page_names_files_that_exist() -> None:
    named = set(re.findall(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|toml|sql|yml|md))\b", PAGE))
    lost = {
        name
        for name in named
        if not (ROOT / name).exists() and not (ROOT / "src" / "semel" / name).exists()
    }
    assert not lost - {name for name in named if "/" not in name and name in BARE}


BARE = {"engine.py", "ending.py", "commands.py", "base.py", "admission.py"}
"""Files that the page names without their folder, where it has just named that."""
