"""SQL statements and numbered migrations, one file each, in the `sql` folder of their store."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable


def load(store: str, name: str) -> str:
    """Return the statement called `name` of a store, without its comments."""
    text = (_folder(store) / f"{name}.sql").read_text("utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("--"))
    return "\n".join(lines).strip()


def migrations(store: str) -> list[tuple[int, str]]:
    """Return the numbered migrations of a store in order: (number, script)."""
    folder = _folder(store) / "migrations"
    scripts = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(int(name.split("_")[0]), (folder / name).read_text("utf-8")) for name in scripts]


def _folder(store: str) -> Traversable:
    return files("semel.stores") / store / "sql"
