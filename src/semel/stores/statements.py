"""SQL statements and numbered migrations, one file each, in the `sql` folder of their store."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable

from semel.core.record import COLUMNS


def load(store: str, name: str) -> str:
    """Return the statement called `name` of a store, without its comments.

    `{columns}` in it stands for the columns of a record that `semel.core.record.read_row` takes.
    """
    text = (_folder(store) / f"{name}.sql").read_text("utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("--"))
    return "\n".join(lines).strip().replace("{columns}", ", ".join(COLUMNS))


def migrations(store: str) -> list[tuple[int, str]]:
    """Return the numbered migrations of a store in order: (number, script)."""
    folder = _folder(store) / "migrations"
    scripts = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(int(name.split("_")[0]), (folder / name).read_text("utf-8")) for name in scripts]


def _folder(store: str) -> Traversable:
    return files("semel.stores") / store / "sql"
