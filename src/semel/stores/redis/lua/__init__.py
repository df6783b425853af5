"""Scripts, a file each, named after the command that they carry out."""

from __future__ import annotations

from importlib.resources import files


def load(name: str) -> str:
    """Return the script called `name`, with what all of them share before and after it."""
    folder = files(__package__)
    parts = ((folder / f"{part}.lua").read_text("utf-8") for part in ("common", name, "each"))
    return "\n".join(parts)
