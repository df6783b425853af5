"""The business, the same for everybody: charges in a SQLite file that only the handler writes."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("PEER_FOLDER", "."))
REDIS = os.environ.get("PEER_REDIS", "redis://127.0.0.1:6379/0")
LEASE = 3
"""Seconds, where a library lets it be set."""
ACCOUNTS = {"Bearer alice": "alice", "Bearer bob": "bob"}
BEFORE, AFTER = 0.01, 0.03
"""Seconds that a handler works before its charge is committed, and after."""
CHARGE = "insert into charges (who, amount) values (?, ?)"


def open_tables() -> None:
    with sqlite3.connect(FOLDER / "shop.db") as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute(
            "create table if not exists charges (id integer primary key, who, amount)"
        )
    connection.close()


def charge(who: str, amount: int) -> int:
    """Charge, and commit. Returns its number."""
    connection = sqlite3.connect(FOLDER / "shop.db", timeout=10)
    try:
        with connection:
            return int(connection.execute(CHARGE, (who, amount)).lastrowid or 0)
    finally:
        connection.close()


def count() -> int:
    connection = sqlite3.connect(FOLDER / "shop.db", timeout=10)
    try:
        return int(connection.execute("select count(*) from charges").fetchone()[0])
    finally:
        connection.close()


def blocking(who: str, wanted: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, str]]:
    """One charge from end to end, for handlers in threads: status, body and headers."""
    if wanted["amount"] < 0:
        return 402, {"error": "declined"}, {}
    time.sleep(BEFORE)
    number = charge(who, wanted["amount"])
    time.sleep(AFTER)
    return answer(number)


def answer(number: int) -> tuple[int, dict[str, Any], dict[str, str]]:
    return 201, {"charge": number}, {"Location": f"/charges/{number}", "X-Charge-Id": str(number)}


def refusal() -> tuple[int, bytes]:
    """What a request without credentials gets."""
    return 401, json.dumps({"error": "unauthorized"}).encode()
