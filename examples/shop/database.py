"""The shop's database: `SHOP_DB` is the path of a SQLite file, or a postgresql:// URL.

What the two say differently is in one file each, `sqlite.py` and `postgresql.py`. A shop of your
own has one of them, and none of this.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shop.postgresql import PostgreSQL
    from shop.sqlite import SQLite


def database(name: str) -> SQLite | PostgreSQL:
    """Return the database that `SHOP_DB` names. Raises `ValueError` where it names none."""
    if name.startswith(("postgresql://", "postgres://")):
        from shop.postgresql import PostgreSQL  # needs psycopg

        return PostgreSQL(name)
    if not name or "://" in name:
        raise ValueError(f"SHOP_DB: give a path or a postgresql:// URL, not {name!r}")
    from shop.sqlite import SQLite

    return SQLite(name)


DATABASE = database(os.environ.get("SHOP_DB", "shop.db"))
