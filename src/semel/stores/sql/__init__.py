"""Statements and numbered migrations, a file each, named after what they do."""

from __future__ import annotations

from importlib.resources import files


def load(dialect: str, name: str) -> str:
    """Return the statement called `name`, without its comments."""
    text = (files(__package__) / dialect / f"{name}.sql").read_text("utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("--"))
    return "\n".join(lines).strip()


def migrations(dialect: str) -> list[tuple[int, str]]:
    """Return the numbered migrations in order: (number, script)."""
    folder = files(__package__) / dialect / "migrations"
    scripts = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(int(name.split("_")[0]), (folder / name).read_text("utf-8")) for name in scripts]
