"""What both probed applications have in common: the set-up we recommend, and every misfortune.

A request's body says which misfortune befalls the handler. It befalls the first run of a key only,
so that a retry, which is the same request, shows what comes after it.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from semel import Idempotency, Policy, failpoints
from semel.stores.sqlite import SQLiteStore

FOLDER = Path(os.environ["PROBE_FOLDER"])
DATABASE = FOLDER / "shop.db"
LEASE = timedelta(seconds=1)
ATOMIC = Policy(required=True, guarantee="atomic", lease=LEASE)
CHARGE = "insert into charges (who, amount) values (?, ?)"

idempotency = Idempotency(
    SQLiteStore(DATABASE, timeout=1),
    policy=ATOMIC,
    routes={
        "/impatient": Policy(required=True, guarantee="atomic", wait=timedelta()),
        "/brief": Policy(required=True, expires=timedelta(seconds=1), after_expiry="run"),
        "/stream": Policy(required=True, guarantee="at-least-once"),
        "/atomic-stream": ATOMIC,
    },
)


def open_tables() -> None:
    with sqlite3.connect(DATABASE) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("create table if not exists charges (who, amount)")
    connection.close()


def first_time(name: str) -> bool:
    """Whether this is the first time that anyone, in any process, asks about this name."""
    try:
        os.close(os.open(FOLDER / f"seen-{name}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def wait_for(name: str) -> None:
    """Wait until the test makes the file."""
    (FOLDER / f"waiting-{name}").touch()
    deadline = time.monotonic() + 20
    while not (FOLDER / name).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(name)
        time.sleep(0.005)


class Fate:
    """What befalls one run of the handler."""

    def __init__(self, wanted: dict[str, Any], key_hash: bytes) -> None:
        misfortune = wanted.get("misfortune")
        self.what = misfortune if misfortune and first_time(key_hash.hex()) else None

    def before_the_charge(self) -> None:
        if self.what == "raise before":
            raise RuntimeError("on purpose")
        if self.what == "kill before":
            os.kill(os.getpid(), signal.SIGKILL)

    def after_the_charge(self) -> None:
        if self.what == "raise after":
            raise RuntimeError("on purpose")
        if self.what == "kill after":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what in failpoints.NAMES:
            failpoints.arm(f"{self.what}=kill")

    @property
    def status(self) -> int | None:
        return 503 if self.what == "answer 503" else None


def answer(wanted: dict[str, Any], number: int) -> tuple[int, list[tuple[str, str]], bytes]:
    """The answer that the request asks for."""
    kind = wanted.get("answer", "json")
    location = [("Location", f"/charges/{number}"), ("X-Charge-Id", f"ch_{number}")]
    plain: dict[str, tuple[int, str | None, bytes]] = {
        "json": (201, "application/json", b'{"charge": %d, "rate": 1.0, "none": []}' % number),
        "large": (201, "application/json", b'{"pad": "%s"}' % (b"x" * 2_000_000)),
        "binary": (200, "application/octet-stream", bytes(range(256)) * 8),
        "text": (200, "text/plain; charset=utf-8", "caf\u00e9".encode()),
        "nothing": (204, None, b""),
        "redirect": (303, None, b""),
        "cookies": (200, "text/plain", b"welcome"),
    }
    status, content_type, body = plain[kind]
    headers = location + ([("Content-Type", content_type)] if content_type else [])
    if kind == "cookies":
        headers += [("Set-Cookie", "session=1; HttpOnly"), ("Set-Cookie", "theme=dark")]
    return status, headers, body
