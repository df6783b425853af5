"""Lua scripts, one file each, named after the command that they carry out."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from semel.core.record import COLUMNS

READ: Final = COLUMNS[1:]
"""The columns of a record that a script gives back: all but the key."""
_SHORT = {"lease_until": "lease", "due_at": "due", "purge_at": "purge"}
"""Columns that have a shorter name in a record's hash."""


def load(name: str) -> str:
    """Return the script called `name`, with what all of them share before and after it."""
    folder = files(__package__)
    parts = ((folder / f"{part}.lua").read_text("utf-8") for part in ("common", name, "each"))
    columns = ", ".join(f"'{_SHORT.get(column, column)}'" for column in READ)
    script = "\n".join(parts).replace("{columns}", columns)
    return script.replace("{answer_at}", str(READ.index("answer") + 1))
