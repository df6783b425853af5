"""Checkpoints: the WAL is moved back into the database file, so that it stays short."""

from __future__ import annotations

import logging
import sqlite3

from semel.failpoints import failpoint
from semel.stores.sqlite.file import File, has_wal_reset_race
from semel.stores.sqlite.turnstile import Turnstile

log = logging.getLogger("semel")

CHECKPOINT_CHANGES = 1000
"""Rows changed between checkpoints: about 4 MB of WAL with small answers."""


class Checkpoints:
    """Checkpoints after a commit whose results have been told, by whoever holds the writer.

    Nobody's reply waits for it, only the next write does. A checkpoint beside the writer would
    spare that wait and never end: while frames are added the WAL cannot start anew, and it grew by
    20 kB a request. It would also meet the WAL-reset race, which needs a write and a checkpoint at
    the same instant; this way all of Semel's writers are excluded, those of other processes too.
    """

    def __init__(self, file: File, turnstile: Turnstile) -> None:
        self._file = file
        self._turnstile = turnstile
        self._racy = has_wal_reset_race(sqlite3.sqlite_version_info)
        self._warned = False
        self._changes = 0

    def after_commit(self, connection: sqlite3.Connection) -> None:
        """Checkpoint if enough has changed. Called by whoever holds the writer."""
        if self._turnstile.contended and self._racy and not self._warned:
            self._warned = True
            log.warning(
                "several processes write %s with SQLite %s, which has the WAL-reset race (fixed in"
                " 3.51.3, 3.50.7, 3.44.6). Semel's own writes and checkpoints exclude each other;"
                " your other connections to this file do not: set wal_autocheckpoint to 0 on them,"
                " or upgrade SQLite",
                self._file.path,
                sqlite3.sqlite_version,
            )
        changes = connection.total_changes
        if changes - self._changes < CHECKPOINT_CHANGES:
            return
        self._changes = changes
        failpoint("before_checkpoint")
        connection.execute("pragma wal_checkpoint(passive)").fetchone()
